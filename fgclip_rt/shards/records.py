"""The items of a shard one by one. Only a few of them are in memory."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Generator, Iterator, Mapping
from typing import IO, Any

import msgspec

from ..ahead import read_ahead
from ..errors import FgclipError, ImageError, ShardError, reason
from ..packages import require
from .inputs import IMAGES
from .job import Columns, Shard
from .storage import is_url, opened

#: Names of columns that are taken if none are given, the best first.
_IMAGE_COLUMNS = ("image", "jpg", "bytes")
_ID_COLUMNS = ("id", "key", "__key__")
_CAPTION_COLUMNS = ("caption", "txt", "text")

#: Rows of a Parquet file that are read at once, and bytes of its columns.
_ROWS, _BUFFER = 16, 1 << 20

_CAPTION = ".txt"

#: Bytes of images that are read ahead from a store, so that its latency costs no time of the model.
_AHEAD = 64 << 20


class Record(msgspec.Struct, frozen=True):
    """An item as it stands in its shard.

    Attributes:
        id: its id; None if it stands for the rest of a shard that breaks off.
        image: bytes of its file, or the path or URL of that; None if there is an error.
        caption: its caption; None if it has none.
        error: why it has no image; None if it has one.
    """

    id: str | None
    image: bytes | str | None
    caption: str | None = None
    error: FgclipError | None = None

    def read(self) -> bytes:
        """The bytes of its image's file.

        Raises:
            FgclipError: it has none, or that cannot be read.
        """
        if self.error is not None:
            raise self.error
        assert self.image is not None
        return self.image if isinstance(self.image, bytes) else _read_file(self.image)


def read_records(shard: Shard, columns: Columns) -> Iterator[Record]:
    """The items of a shard in their order. If it breaks off, the last record has an error and no id.

    Raises:
        ShardError: it cannot be opened or read on, or lacks a column.
        MissingDependencyError: it is a Parquet file and pyarrow is not installed.
    """
    if shard.kind == "files":
        return (Record(id_, location) for id_, location in shard.files)
    records = _whole(shard, _read_tar(shard) if shard.kind == "tar" else _read_parquet(shard, columns))
    # A disk answers in less time than a thread would save.
    return read_ahead(records, _size, _AHEAD) if is_url(shard.source) else records


def _read_file(location: str) -> bytes:
    try:
        with opened(location) as file:
            return file.read()
    except ShardError as error:
        raise ImageError(str(error), code="image_unreadable") from None


def _size(record: Record) -> int:
    return len(record.image or b"") + len(record.caption or "")


def _whole(shard: Shard, records: Iterator[Record]) -> Generator[Record]:
    """Pass records on, and end with one of an error if the shard breaks off."""
    count = 0
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except FgclipError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything
            if isinstance(error, MemoryError):
                raise
            broken = ShardError(
                f"{shard.source} breaks off after {count:,} items ({reason(error)}); restore it, and repeat the "
                "command with --retry-errors.",
                code="shard_damaged",
            )
            yield Record(None, None, error=broken)
            return
        yield record
        count += 1


def _read_tar(shard: Shard) -> Iterator[Record]:
    """The samples of a webdataset: members that stand together and have one key."""
    with opened(shard.source) as raw:
        file: IO[bytes] = raw
        if not shard.source.lower().endswith(".tar"):
            file = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
        with tarfile.open(fileobj=file, mode="r:") as tar:
            key, members = "", dict[str, bytes]()
            while (member := tar.next()) is not None:
                # They would pile up, a kilobyte each.
                tar.members.clear()  # type: ignore[attr-defined]
                folder, _, name = member.name.rpartition("/")
                if not member.isfile() or name.startswith((".", "__")):
                    continue
                stem, dot, suffix = name.partition(".")
                found = f"{folder}/{stem}" if folder else stem
                if found != key:
                    if members:
                        yield _sample(shard, key, members)
                    key, members = found, {}
                if suffix.lower() and f".{suffix.lower()}".endswith((*IMAGES, _CAPTION)):
                    content = tar.extractfile(member)
                    assert content is not None
                    members[(dot + suffix).lower()] = content.read()
                else:
                    members[(dot + suffix).lower()] = b""
            if members:
                yield _sample(shard, key, members)
            # A tar that was cut between two members has no block of zeros, and tarfile says nothing.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it has no end-of-archive block")


def _sample(shard: Shard, key: str, members: Mapping[str, bytes]) -> Record:
    image = next((data for suffix, data in members.items() if suffix.endswith(IMAGES)), None)
    caption = members.get(_CAPTION)
    text = None if caption is None else caption.decode("utf-8", "replace").strip()
    if image is None:
        return Record(key, None, text, _without_image(shard, key))
    return Record(key, image, text)


def _read_parquet(shard: Shard, columns: Columns) -> Iterator[Record]:
    require("parquet", ["pyarrow"], "reading .parquet needs {}, which is not installed")
    import pyarrow.parquet

    with opened(shard.source) as file:
        try:
            # Without this, a row group is read as a whole, which may be gigabytes.
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
        except FgclipError:
            raise
        except Exception as error:  # as above
            raise ShardError(f"{shard.source} is no Parquet file ({reason(error)}); restore it.") from None
        names = table.schema_arrow.names
        image = _column(shard, names, columns.image, _IMAGE_COLUMNS, "image", needed=True)
        id_ = _column(shard, names, columns.id, _ID_COLUMNS, "id")
        caption = _column(shard, names, columns.caption, _CAPTION_COLUMNS, "caption")
        wanted = [name for name in (image, id_, caption) if name is not None]
        number = 0
        # Group by group, because a batch that reaches into a damaged one gives nothing of the one before.
        for group in range(table.num_row_groups):
            for batch in table.iter_batches(_ROWS, [group], columns=wanted, use_threads=False):
                for row in batch.to_pylist():
                    yield _row(shard, number, row, image, id_, caption)
                    number += 1


def _row(
    shard: Shard, number: int, row: Mapping[str, Any], image: str | None, id_: str | None, caption: str | None
) -> Record:
    name = str(number)
    text = row[caption] if caption is not None else None
    if id_ is not None:
        if row[id_] is None:
            missing = ShardError(
                f"row {number} of {shard.source} has no {id_}; give it one, or another --id-column.",
                code="item_missing",
            )
            return Record(f"row {number}", None, error=missing)
        name = str(row[id_])
    data = row[image] if image is not None else None
    if isinstance(data, Mapping):
        data = data.get("bytes")
    if not isinstance(data, bytes):
        return Record(name, None, error=_without_image(shard, name))
    return Record(name, data, None if text is None else str(text))


def _column(
    shard: Shard, names: list[str], given: str | None, usual: tuple[str, ...], role: str, *, needed: bool = False
) -> str | None:
    """The column of some role; None if there is none and none is needed."""
    found = next((name for name in ((given,) if given is not None else usual) if name in names), None)
    if found is None and (needed or given is not None):
        wanted = given if given is not None else " or ".join(usual)
        raise ShardError(
            f"{shard.source} has no column {wanted} (it has {', '.join(names)}); name one with --{role}-column."
        )
    return found


def _without_image(shard: Shard, id_: str) -> ShardError:
    return ShardError(f"{id_} of {shard.source} has no image; add one, or leave the item out.", code="item_missing")
