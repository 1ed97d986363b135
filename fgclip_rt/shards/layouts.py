"""Files of a shard's rows, written block by block, and read again to add rows to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..arrays import Array
from .job import Job
from .storage import Store

#: Rows that are written at once, and kept in memory until then; 12 MB at 768 dimensions.
BLOCK = 4096


class Rows(msgspec.Struct):
    """Rows of an output, each of the lists by row.

    Attributes:
        ids: the items' ids.
        vectors: float32 or float16 [D].
        widths: of their images, in pixels.
        heights: likewise.
        captions: None for an item without one.
    """

    ids: list[str] = []
    vectors: list[Array] = []
    widths: list[int] = []
    heights: list[int] = []
    captions: list[str | None] = []


class Letter(msgspec.Struct, frozen=True):
    """A dead letter: an item without a vector.

    Attributes:
        id: its id; None if it stands for the rest of a shard that breaks off.
        code: code of the error.
        error: the sentence of the error.
        digest: SHA-256 of the image's bytes, in hexadecimal; None if they could not be read.
    """

    id: str | None
    code: str
    error: str
    digest: str | None


class RowWriter(Protocol):
    """Writes the rows of a shard."""

    def write(self, rows: Rows) -> None:
        """Write a block of rows."""

    def close(self) -> dict[str, Path | None]:
        """End the files, and name them by their place in the output."""


def row_writer(job: Job, name: str, folder: Path) -> RowWriter:
    """A writer of a shard's rows in the layout of the job, to files in ``folder``."""
    return _ParquetRows(job, name, folder) if job.layout == "parquet" else _ClipRetrievalRows(job, name, folder)


def read_rows(store: Store, job: Job, name: str, folder: Path) -> Iterator[Rows]:
    """The rows of a shard that is done, block by block; copies of remote files go to ``folder``."""
    if job.layout == "parquet":
        path = store.fetch(f"{name}.parquet", folder)
        for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(BLOCK):
            vectors = batch.column("vector").flatten().to_numpy().reshape(-1, job.dim)
            yield _rows(batch, "id", "width", "height", list(vectors))
    else:
        vectors = np.load(store.fetch(f"img_emb/img_emb_{name}.npy", folder), mmap_mode="r")
        path, first = store.fetch(f"metadata/metadata_{name}.parquet", folder), 0
        for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(BLOCK):
            yield _rows(batch, "image_path", "width", "height", list(vectors[first : first + len(batch)]))
            first += len(batch)


def write_letters(letters: list[Letter], name: str, folder: Path) -> dict[str, Path | None]:
    """Write the dead letters of a shard, and name the file by its place in the output; None if there are none."""
    place = f"{name}.errors.parquet"
    if not letters:
        return {place: None}
    columns = {field: [getattr(letter, field) for letter in letters] for field in Letter.__struct_fields__}
    schema = pa.schema([(field, pa.string()) for field in Letter.__struct_fields__])
    pq.write_table(pa.table(columns, schema=schema), folder / place)
    return {place: folder / place}


def read_letters(store: Store, name: str, folder: Path) -> list[Letter]:
    """The dead letters of a shard that has some."""
    table = pq.read_table(store.fetch(f"{name}.errors.parquet", folder))
    return [Letter(**row) for row in table.to_pylist()]


class _ParquetRows:
    """``SHARD.parquet``."""

    def __init__(self, job: Job, name: str, folder: Path) -> None:
        self._job = job
        self._place = f"{name}.parquet"
        self._path = folder / self._place
        number = pa.float16() if job.dtype == "float16" else pa.float32()
        self._schema = pa.schema(
            [
                ("id", pa.string()),
                ("vector", pa.list_(number, job.dim)),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("caption", pa.string()),
            ]
        )
        # Vectors do not compress, and trying takes longer than writing them.
        self._writer = pq.ParquetWriter(
            self._path,
            self._schema,
            compression={"id": "zstd", "width": "zstd", "height": "zstd", "caption": "zstd"},
            use_dictionary=["caption"],
        )

    def write(self, rows: Rows) -> None:
        values = pa.array(_stack(rows, self._job).reshape(-1))
        columns: dict[str, Any] = {
            "id": rows.ids,
            "vector": pa.FixedSizeListArray.from_arrays(values, self._job.dim),
            "width": rows.widths,
            "height": rows.heights,
            "caption": rows.captions,
        }
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> dict[str, Path | None]:
        self._writer.close()
        return {self._place: self._path}


class _ClipRetrievalRows:
    """``img_emb/img_emb_SHARD.npy`` and ``metadata/metadata_SHARD.parquet``, whose rows belong together."""

    def __init__(self, job: Job, name: str, folder: Path) -> None:
        self._job = job
        self._vectors, self._metadata = folder / f"img_emb_{name}.npy", folder / f"metadata_{name}.parquet"
        self._schema = pa.schema(
            [("image_path", pa.string()), ("caption", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
        )
        self._count = 0
        self._file: BinaryIO = self._vectors.open("wb")
        self._write_header()
        self._writer = pq.ParquetWriter(self._metadata, self._schema)

    def write(self, rows: Rows) -> None:
        columns = {"image_path": rows.ids, "caption": rows.captions, "width": rows.widths, "height": rows.heights}
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._file.write(_stack(rows, self._job).tobytes())
        self._count += len(rows.ids)

    def close(self) -> dict[str, Path | None]:
        self._writer.close()
        # NumPy's header has room for the number of rows, which is known only now.
        self._file.seek(0)
        self._write_header()
        self._file.close()
        return {
            f"img_emb/{self._vectors.name}": self._vectors,
            f"metadata/{self._metadata.name}": self._metadata,
        }

    def _write_header(self) -> None:
        kind = np.lib.format.dtype_to_descr(np.dtype(self._job.dtype).newbyteorder("<"))
        header = {"descr": kind, "fortran_order": False, "shape": (self._count, self._job.dim)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _stack(rows: Rows, job: Job) -> Array:
    """The vectors of a block, [n, D], as the job wants their numbers."""
    return np.stack(rows.vectors).astype(job.dtype, copy=False)


def _rows(batch: Any, id_: str, width: str, height: str, vectors: list[Array]) -> Rows:
    return Rows(
        batch.column(id_).to_pylist(),
        vectors,
        batch.column(width).to_pylist(),
        batch.column(height).to_pylist(),
        batch.column("caption").to_pylist(),
    )
