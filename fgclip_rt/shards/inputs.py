"""Inputs of a job to its shards: tars and Parquet files as they are, lists and folders of images cut into parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import ArgumentError, FgclipError, ShardError
from ..folders import search_folder
from ..names import spell_path
from .job import Kind, Shard
from .storage import cannot_open, is_url, open_url, opened

TARS = (".tar", ".tar.gz", ".tgz")
PARQUETS = (".parquet", ".parq")
_LISTS = (".txt",)

#: Suffixes of images in a folder of an object store, whose first bytes would take a request for each file.
IMAGES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".jp2", ".ppm", ".qoi"),
)


def find_shards(inputs: Sequence[str], size: int) -> list[Shard]:
    """The shards of the inputs, in their order.

    Args:
        inputs: paths and URLs of tars, Parquet files, lists and folders; URLs may be patterns.
        size: number of images in a shard of a list or a folder.

    Raises:
        ArgumentError: two shards have one name, a name is taken by the output, or the size is not positive.
        ShardError: an input cannot be read, is of no known kind, or has no shard.
        MissingDependencyError: a URL is given and fsspec is not installed.
    """
    if size < 1:
        raise ArgumentError(f"--shard-size is {size}; give a positive number of images.")
    shards: dict[str, Shard] = {}
    for location in inputs:
        found = list(_shards(location, size))
        if not found:
            raise ShardError(
                f"{location} holds no tar, no Parquet file and no image; give files, a folder or a list.",
                code="shard_unreadable",
            )
        for shard in found:
            if shard.name == "job" or shard.name.endswith(".errors"):
                raise ArgumentError(
                    f"{shard.source} would be the shard {shard.name}, whose files have names of the output's own; "
                    "rename it."
                )
            other = shards.setdefault(shard.name, shard)
            if other is not shard:
                raise ArgumentError(
                    f"{other.source} and {shard.source} would both be the shard {shard.name}; rename one, or give them "
                    "outputs of their own."
                )
    return list(shards.values())


def part_of(shards: Sequence[Shard], part: str | None) -> list[Shard]:
    """The shards of part ``K/N``, that is, each N-th from the K-th on; all if there are no parts.

    Raises:
        ArgumentError: the part is not of this form.
    """
    if part is None:
        return list(shards)
    first, _, count = part.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise ArgumentError(f"--part is {part}; give the number of the part and of all parts, such as 2/8.")
    return list(shards[int(first) - 1 :: int(count)])


def _shards(location: str, size: int) -> Iterator[Shard]:
    if is_url(location):
        yield from _remote_shards(location, size)
        return
    path = Path(location)
    try:
        if path.is_dir():
            files = sorted(each for each in path.iterdir() if _kind(each.name) and not each.name.startswith("."))
            if files:
                yield from (_of_file(str(each), each.stat().st_size) for each in files)
            else:
                below = search_folder(path).files
                items = [(spell_path(os.path.relpath(each, path)), each) for each in below]
                yield from _cut(path.resolve().name, location, items, size)
        elif _kind(location):
            yield _of_file(location, path.stat().st_size)
        elif location.endswith(_LISTS):
            yield from _of_list(location, size)
        else:
            raise _unknown(location)
    except OSError as error:
        raise cannot_open(location, error) from None


def _remote_shards(url: str, size: int) -> Iterator[Shard]:
    system, path = open_url(url)

    def full(name: str) -> str:
        return str(system.unstrip_protocol(name))

    try:
        if "*" in path or "?" in path or "[" in path:
            files = {name: info for name, info in system.glob(path, detail=True).items() if info["type"] == "file"}
            for name in sorted(files):
                if not _kind(name):
                    raise _unknown(full(name))
                yield _of_file(full(name), files[name]["size"])
        elif _kind(path):
            yield _of_file(url, system.size(path))
        elif path.endswith(_LISTS):
            yield from _of_list(url, size)
        else:
            below = system.find(path, detail=True)
            direct = sorted(name for name in below if _kind(name) and name.rsplit("/", 1)[0] == path.rstrip("/"))
            if direct:
                yield from (_of_file(full(name), below[name]["size"]) for name in direct)
            else:
                images = sorted(name for name in below if name.lower().endswith(IMAGES))
                items = [(name.removeprefix(path).lstrip("/"), full(name)) for name in images]
                yield from _cut(path.rstrip("/").rsplit("/", 1)[-1], url, items, size)
    except FgclipError:
        raise
    except Exception as error:  # the stores' libraries have errors of their own
        raise cannot_open(url, error) from None


def _of_file(location: str, size: int) -> Shard:
    name = location.rsplit("/", 1)[-1]
    kind = _kind(name)
    assert kind is not None
    suffix = max((each for each in TARS + PARQUETS if name.lower().endswith(each)), key=len)
    return Shard(name[: -len(suffix)], kind, location, str(size))


def _of_list(location: str, size: int) -> Iterator[Shard]:
    with opened(location) as file:
        data = file.read()
    try:
        lines = [line.removesuffix("\r") for line in data.decode().removeprefix("\ufeff").split("\n")]
    except UnicodeDecodeError as error:
        raise ShardError(
            f"{location} is not valid UTF-8 at byte {error.start:,}; save the list as UTF-8.", code="shard_unreadable"
        ) from None
    items = [(line, line) for line in lines if line]
    return _cut(location.rsplit("/", 1)[-1].removesuffix(".txt"), location, items, size)


def _cut(name: str, source: str, items: Sequence[tuple[str, str]], size: int) -> Iterator[Shard]:
    for number, first in enumerate(range(0, len(items), size)):
        files = list(items[first : first + size])
        yield Shard(f"{name}-{number:05d}", "files", source, _digest(id_ for id_, _ in files), files)


def _digest(ids: Iterable[str]) -> str:
    total = hashlib.sha256()
    for id_ in ids:
        total.update(id_.encode() + b"\n")
    return total.hexdigest()


def _kind(name: str) -> Kind | None:
    """The kind of shard that a file is by its name; None if it is none."""
    lower = name.lower()
    return "tar" if lower.endswith(TARS) else "parquet" if lower.endswith(PARQUETS) else None


def _unknown(location: str) -> ShardError:
    return ShardError(
        f"{location} is no tar, Parquet file, list or folder by its name; end it in .tar, .tar.gz, .parquet or .txt.",
        code="shard_unreadable",
    )
