"""Output files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from .errors import OutputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(path: Path, overwrite: bool = False) -> None:
    """Make sure, before any work is done, that ``path`` can be written.

    Raises:
        OutputError: it exists and is not to be overwritten, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another --output, or replace it with --overwrite.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written because {folder} is not a folder; make it, or choose another.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written because {folder} is not writable; choose another --output.")


def check_picture_output(path: Path, overwrite: bool = False) -> None:
    """As :func:`check_output`, for a picture in a format of :data:`PICTURE_SUFFIXES`.

    Raises:
        OutputError: as there, or the name ends in none of them.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise OutputError(f"{path} has no known format; end its name in {', '.join(PICTURE_SUFFIXES)}.")
    check_output(path, overwrite)


def check_space(path: Path, needed: int) -> None:
    """Make sure, before any work is done, that the disk has room for ``path``.

    Args:
        path: what will be written; its folder need not be there yet.
        needed: bytes that it will take at the least.

    Raises:
        OutputError: the disk has less.
    """
    free = shutil.disk_usage(existing_parent(path)).free
    if free < needed:
        raise OutputError(
            f"{path} needs {needed:,} bytes and its disk has {free:,} free; free some space, or choose another "
            "--output."
        )


def existing_parent(path: Path) -> Path:
    """The nearest folder above ``path`` that is there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def is_disk_full(error: BaseException) -> bool:
    """Whether writing failed for want of space; libraries in other languages say it in words."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in str(error)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all.

    Raises:
        OutputError: the format cannot hold a picture of this size, or writing failed.
    """
    with written_whole(path) as partial:
        try:
            picture.save(partial)
        except ValueError as error:
            size = f"{picture.width}×{picture.height}"
            raise OutputError(f"{path} cannot hold a picture of {size} ({error}); write .png instead.") from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name of ``path`` when the block ends well.

    Raises:
        OutputError: writing failed; nothing is left behind.
    """
    partial = path.with_name(f".{path.stem}.partial-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if is_disk_full(error):
            raise OutputError(f"{path} cannot be written because the disk is full; free some space.") from None
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another --output.") from None
    finally:
        partial.unlink(missing_ok=True)
