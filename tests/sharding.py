"""Makers of shards, and readers of what became of them."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from helpers import picture

NAME = "fg-clip2-pocket"

_SIZES = ((60, 80), (200, 280), (300, 330))


def jpeg(seed: int) -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(picture(*_SIZES[seed % len(_SIZES)], seed)).save(file, "JPEG")
    return file.getvalue()


def bomb() -> bytes:
    """A file of a hundred bytes that says it has 3,600 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar with these members in their order."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_folder(path: Path, images: Iterable[bytes]) -> Path:
    """A folder of images, named by their numbers."""
    path.mkdir(parents=True)
    for number, data in enumerate(images):
        (path / f"{number:03d}.jpg").write_bytes(data)
    return path


def write_parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    """A Parquet file of these columns."""
    pq.write_table(pa.table(dict(columns)), path, row_group_size=5)
    return path


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file, by their ids, of which none may come twice."""
    rows = pq.read_table(path).to_pylist()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def letters_of(path: Path) -> list[tuple[str | None, str]]:
    """Id and code of each dead letter, in the order of the ids."""
    found = pq.read_table(path).to_pylist() if path.exists() else []
    return sorted(((row["id"], row["code"]) for row in found), key=str)
