"""Files of vectors: NumPy's ``.npy`` and ``.npz``, and Parquet; each names the input of every row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from .arrays import FloatArray
from .errors import ArgumentError
from .outputs import check_output, written_whole
from .packages import require

SUFFIXES = (".npy", ".npz", ".parquet")


class Row(msgspec.Struct, frozen=True):
    """Origin of one row of vectors: its number, ``image`` or ``text``, and the path of the image or the text itself."""

    row: int
    kind: str
    input: str


@dataclass(frozen=True)
class Rows:
    """Vectors and their origin.

    Attributes:
        kinds: ``image`` or ``text``, by row.
        inputs: path of the image or the text itself, by row.
        vectors: float32 [n, D].
    """

    kinds: list[str]
    inputs: list[str]
    vectors: FloatArray

    def index(self) -> list[Row]:
        """The origin of each row."""
        pairs = zip(self.kinds, self.inputs, strict=True)
        return [Row(row, kind, name) for row, (kind, name) in enumerate(pairs)]


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


def size_of(output: Path, rows: int, width: int) -> int:
    """Least number of bytes of a file with ``rows`` float32 vectors of ``width``."""
    # Parquet compresses repeated values, so no least size is certain; the other formats do not compress.
    return 0 if output.suffix == ".parquet" else 4 * rows * width


def write_rows(rows: Rows, output: Path) -> None:
    """Write ``rows`` in the format that the suffix of ``output`` names.

    ``.npy`` holds the vectors, and ``OUTPUT.json`` their inputs. ``.npz`` holds ``vectors`` float32 [n, D], ``kinds``
    and ``inputs``. Parquet has the columns ``kind``, ``input`` and ``vector`` (a list of D floats).

    Raises:
        OutputError: writing failed; nothing is left behind.
    """
    with written_whole(output) as path:
        if output.suffix == ".npy":
            # The index is put in place first, because vectors without an index are worse than an index without vectors.
            with written_whole(index_path(output)) as index:
                index.write_text(
                    json.dumps({"rows": msgspec.to_builtins(rows.index())}, indent=1, ensure_ascii=False),
                    encoding="utf-8",
                )
                np.save(path, rows.vectors)
        elif output.suffix == ".npz":
            kinds, inputs = np.array(rows.kinds, dtype=np.str_), np.array(rows.inputs, dtype=np.str_)
            np.savez(path, vectors=rows.vectors, kinds=kinds, inputs=inputs)
        else:
            _write_parquet(rows, path)


def _write_parquet(rows: Rows, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    width = rows.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), width)
    table = pa.table({"kind": pa.array(rows.kinds), "input": pa.array(rows.inputs), "vector": vectors})
    pyarrow.parquet.write_table(table, path)
