"""Files of benchmarks: finding them in a folder, and reading them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from ..errors import BenchmarkError

_T = TypeVar("_T")


def find_image(folder: Path, name: str, *subfolders: str) -> Path:
    """An image in one of the subfolders, in the folder itself or in its ``images/``.

    Raises:
        BenchmarkError: it is in none of them.
    """
    places = [folder / place / name for place in (*subfolders, "", "images")]
    for path in places:
        if path.is_file():
            return path
    raise BenchmarkError(f"{places[0]} is missing; give the folder that holds the benchmark's images.")


def find_file(folder: Path, *names: str) -> Path:
    """The first of these files that is there; the first name of all if none is."""
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def only_file(folder: Path, pattern: str) -> Path:
    """The folder's only file of a pattern.

    Raises:
        BenchmarkError: there is none, or there are several.
    """
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise BenchmarkError(f"{folder} holds {len(files)} files {pattern}; leave the benchmark's alone in it.")
    return files[0]


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        BenchmarkError: it cannot be read, or is in another encoding.
    """
    try:
        return _read(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{file} is not UTF-8 at byte {error.start:,}; save it as UTF-8.") from None


def read_lines(file: Path) -> list[str]:
    """The lines of a text that are not blank, without blanks at their ends.

    Raises:
        BenchmarkError: as for :func:`read_text`.
    """
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]


def decode(file: Path, kind: type[_T]) -> _T:
    """A JSON file as a struct.

    Raises:
        BenchmarkError: it cannot be read, or is not so.
    """
    return decode_bytes(str(file), _read(file), kind)


def decode_lines(file: Path, kind: type[_T]) -> Iterator[_T]:
    """Each line of a file of JSON lines as a struct.

    Raises:
        BenchmarkError: the file cannot be read, or a line is not so; the message has its number.
    """
    for number, line in enumerate(_read(file).split(b"\n"), 1):
        if line.strip():
            yield decode_bytes(f"{file}, line {number},", line, kind)


def decode_bytes(name: str, data: bytes | str, kind: type[_T]) -> _T:
    """JSON as a struct; ``name`` begins the message of the error.

    Raises:
        BenchmarkError: it is not so.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BenchmarkError(f"{name} is not as the benchmark's files are ({error}); download it again.") from None


def csv_rows(
    file: Path, columns: Iterable[str], remedy: str, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of a CSV file by its columns' names, with the number of its last line.

    Args:
        file: the file.
        columns: names that it must have.
        remedy: ends the message if it lacks one.
        delimiter: between cells.

    Raises:
        BenchmarkError: it cannot be read, or lacks a column.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True, delimiter=delimiter)
    try:
        lacking = set(columns).difference(reader.fieldnames or ())
        if lacking:
            raise BenchmarkError(f"{file} has no column {min(lacking)!r}; {remedy}.")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise BenchmarkError(f"{file} is no CSV file ({error}); close its quotation marks.") from None


def known(file: Path, table: Mapping[int, _T], id_: int, kind: str) -> _T:
    """The entry of an annotation's image or category.

    Raises:
        BenchmarkError: the file lists none of this number.
    """
    if id_ not in table:
        raise BenchmarkError(
            f"{file} has an annotation of the {kind} {id_}, which it does not list; download it again."
        )
    return table[id_]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{file} cannot be read ({error.strerror}); check the path of the data.") from None
