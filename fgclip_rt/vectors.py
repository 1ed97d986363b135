"""Files of vectors: NumPy's ``.npy`` and ``.npz``, and Parquet; each names the input of every row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import msgspec
import numpy as np

from .arrays import FloatArray, IntArray
from .errors import ArgumentError, reason
from .outputs import check_output, written_whole
from .packages import require
from .space import Origin

SUFFIXES = (".npy", ".npz", ".parquet")

#: Rows that are written at once; 50 MB at 768 dimensions.
_BLOCK = 16384

#: Bytes that the inputs of an ``.npz`` may take whatever its vectors take, and how many times as many as these.
_INPUTS_LEAST, _INPUTS_SHARE = 256 << 20, 4

#: Key of the origin in the metadata of a Parquet file.
_METADATA = "fgclip_rt"


class Row(msgspec.Struct, frozen=True):
    """Origin of one row of vectors: its number, ``image`` or ``text``, and the path of the image or the text itself."""

    row: int
    kind: str
    input: str


class _Index(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file beside an ``.npy``."""

    rows: list[Row]
    origin: Origin | None = None


@dataclass(frozen=True)
class Rows:
    """Vectors and their origin.

    Attributes:
        kinds: ``image`` or ``text``, by row.
        inputs: path of the image, as :func:`fgclip_rt.spell_path` spells it, or the text itself, by row.
        vectors: float32 [m, D], in memory or mapped from a file.
        order: for each row, the index of its vector in ``vectors``.
        origin: what made the vectors; None if the file does not say it, as those of earlier versions.
    """

    kinds: list[str]
    inputs: list[str]
    vectors: FloatArray
    order: IntArray
    origin: Origin | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and width D."""
        return len(self.order), self.vectors.shape[1]

    def index(self) -> list[Row]:
        """The origin of each row."""
        pairs = zip(self.kinds, self.inputs, strict=True)
        return [Row(row, kind, name) for row, (kind, name) in enumerate(pairs)]

    def blocks(self) -> Iterator[slice]:
        """Ranges of rows whose vectors fit into memory."""
        return (slice(start, start + _BLOCK) for start in range(0, len(self.order), _BLOCK))


def index_path(output: Path) -> Path:
    """Path of the file beside a ``.npy`` that names the input of every row."""
    return output.with_name(output.name + ".json")


def check_format(output: Path, overwrite: bool = False) -> None:
    """Make sure, before any work is done, that rows can be written to ``output``.

    Raises:
        ArgumentError: its suffix is not one of :data:`SUFFIXES`.
        MissingDependencyError: Parquet is asked for and pyarrow is not installed.
        OutputError: it exists or cannot be written.
    """
    if output.suffix not in SUFFIXES:
        raise ArgumentError(f"--output {output} has no known format; end it in {', '.join(SUFFIXES)}.")
    if output.suffix == ".parquet":
        require("parquet", ["pyarrow"], "writing .parquet needs {}, which is not installed", "write .npz")
    check_output(output, overwrite)
    if output.suffix == ".npy":
        check_output(index_path(output), overwrite)


def check_inputs(output: Path, inputs: Sequence[str], width: int) -> None:
    """Make sure, before any work is done, that ``output`` can hold the inputs of its rows beside the vectors.

    Args:
        output: the file, of a format that :func:`check_format` has accepted.
        inputs: path or text of each row.
        width: D of the vectors.

    Raises:
        ArgumentError: NumPy would pad an ``.npz`` to many times its content, or change an input.
    """
    if output.suffix == ".npz":
        for number, text in enumerate(inputs, 1):
            if text.endswith("\0"):
                raise ArgumentError(
                    f"input number {number} ends in a NUL character, which NumPy's texts in {output} would lose; "
                    "write .parquet or .npy."
                )
        padded, limit = _padded(inputs), max(_INPUTS_LEAST, _INPUTS_SHARE * 4 * width * len(inputs))
        if padded > limit:
            raise ArgumentError(
                f"{output} would take {padded:,} bytes for its inputs alone, because NumPy pads each of the "
                f"{len(inputs):,} to the longest, of {max(map(len, inputs)):,} characters; write .parquet or .npy."
            )


def size_of(output: Path, inputs: Sequence[str], width: int) -> int:
    """Least number of bytes of a file with a float32 vector of ``width`` for each of ``inputs``."""
    # Parquet compresses repeated values, so no least size is certain; the other formats do not compress.
    if output.suffix == ".parquet":
        return 0
    return 4 * len(inputs) * width + (_padded(inputs) if output.suffix == ".npz" else 0)


def write_rows(rows: Rows, output: Path, folder: Path | None = None) -> None:
    """Write ``rows`` in the format that the suffix of ``output`` names; only some of the vectors are in memory.

    ``.npy`` holds the vectors, and ``OUTPUT.json`` their inputs. ``.npz`` holds ``vectors`` float32 [n, D], ``kinds``
    and ``inputs``. Parquet has the columns ``kind``, ``input`` and ``vector`` (a list of D floats). The origin is JSON:
    ``origin`` in ``OUTPUT.json`` and in the ``.npz``, and ``fgclip_rt`` in the metadata of Parquet.

    Args:
        rows: the vectors and their origin.
        output: the file.
        folder: a folder to write in until the file is whole; None takes that of ``output``.

    Raises:
        OutputError: writing failed; nothing is left behind.
    """
    with written_whole(output, folder) as path:
        if output.suffix == ".npy":
            # The index is put in place first, because vectors without an index are worse than an index without vectors.
            with written_whole(index_path(output), folder) as index:
                index.write_text(
                    json.dumps(msgspec.to_builtins(_Index(rows.index(), rows.origin)), indent=1, ensure_ascii=False),
                    encoding="utf-8",
                )
                with path.open("wb") as file:
                    _write_vectors(rows, file)
        elif output.suffix == ".npz":
            _write_npz(rows, path)
        else:
            _write_parquet(rows, path)


def _padded(inputs: Sequence[str]) -> int:
    """Bytes of an array of texts, each of which NumPy pads to the longest."""
    return 4 * len(inputs) * max(map(len, inputs), default=0)


def _write_vectors(rows: Rows, file: IO[bytes]) -> None:
    """The vectors as an ``.npy``."""
    header = {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for block in rows.blocks():
        file.write(rows.vectors[rows.order[block]].tobytes())


def _write_npz(rows: Rows, path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        # Sizes over 4 GB need another header, and are not known beforehand.
        with archive.open("vectors.npy", "w", force_zip64=True) as file:
            _write_vectors(rows, file)
        arrays: dict[str, list[str] | str] = {"kinds": rows.kinds, "inputs": rows.inputs}
        if rows.origin is not None:
            arrays["origin"] = _encode(rows.origin)
        for name, texts in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.array(texts, dtype=np.str_), allow_pickle=False)


def _write_parquet(rows: Rows, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    vector = pa.list_(pa.float32(), rows.shape[1])
    metadata = None if rows.origin is None else {_METADATA: _encode(rows.origin)}
    schema = pa.schema([("kind", pa.string()), ("input", pa.string()), ("vector", vector)], metadata)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for block in rows.blocks():
            values = pa.array(rows.vectors[rows.order[block]].reshape(-1))
            columns = {
                "kind": rows.kinds[block],
                "input": rows.inputs[block],
                "vector": pa.FixedSizeListArray.from_arrays(values, rows.shape[1]),
            }
            writer.write_table(pa.table(columns, schema=schema))


def read_rows(path: Path) -> Rows:
    """The vectors of a file that :func:`write_rows` wrote, and their origin.

    Raises:
        ArgumentError: it is no such file.
        MissingDependencyError: it is Parquet and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        require("parquet", ["pyarrow"], "reading .parquet needs {}, which is not installed", "use .npz")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ArgumentError(f"{path} has no known format; give a file in {', '.join(SUFFIXES)} that 'embed' wrote.")
    try:
        kinds, inputs, vectors, origin = readers[path.suffix](path)
        order = np.arange(len(inputs), dtype=np.int32)
        rows = Rows(kinds, inputs, np.ascontiguousarray(vectors, np.float32), order, origin)
        complete = rows.vectors.ndim == 2 and len(rows.vectors) == len(kinds) == len(inputs)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read ({error.strerror or reason(error)}); give another file.") from None
    except Exception as error:  # each format's library has errors of its own
        raise ArgumentError(f"{path} is no file that 'embed' wrote ({reason(error)}); give another.") from None
    if not complete:
        raise ArgumentError(f"{path} has not one vector for each input; give another file.")
    return rows


#: Kinds, inputs, vectors and origin of a file.
_Read: TypeAlias = tuple[list[str], list[str], FloatArray, Origin | None]


def _read_npy(path: Path) -> _Read:
    index = msgspec.json.decode(index_path(path).read_bytes(), type=_Index)
    vectors = np.load(path, allow_pickle=False)
    return [row.kind for row in index.rows], [row.input for row in index.rows], vectors, index.origin


def _read_npz(path: Path) -> _Read:
    with np.load(path, allow_pickle=False) as archive:
        origin = _decode(archive["origin"].item()) if "origin" in archive else None
        return archive["kinds"].tolist(), archive["inputs"].tolist(), archive["vectors"], origin


def _read_parquet(path: Path) -> _Read:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=["kind", "input", "vector"])
    values = table["vector"].combine_chunks()
    vectors = values.flatten().to_numpy().reshape(len(table), values.type.list_size)
    text = (table.schema.metadata or {}).get(_METADATA.encode())
    return table["kind"].to_pylist(), table["input"].to_pylist(), vectors, None if text is None else _decode(text)


def _encode(origin: Origin) -> str:
    return msgspec.json.encode(origin).decode()


def _decode(text: str | bytes) -> Origin:
    return msgspec.json.decode(text, type=Origin)
