"""Output files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError

from .errors import OutputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

#: Messages about a full disk from libraries that give no error number: safetensors, and NumPy after a short write.
_DISK_FULL = re.compile(r"no space left|\d+ requested and \d+ written", re.IGNORECASE)


def check_output(path: Path, overwrite: bool = False, option: str = "--output") -> None:
    """Make sure, before any work is done, that ``path`` can be written.

    Args:
        path: the output.
        overwrite: whether it may exist.
        option: the option that names it, in messages.

    Raises:
        OutputError: it exists and is not to be overwritten, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not overwrite:
        raise output_exists(path, option)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written because {folder} is not a folder; make it, or choose another.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written because {folder} is not writable; choose another {option}.")


def check_picture_output(path: Path, overwrite: bool = False) -> None:
    """As :func:`check_output`, for a picture in a format of :data:`PICTURE_SUFFIXES`.

    Raises:
        OutputError: as for :func:`check_output`, or the name ends in none of these suffixes.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise OutputError(
            f"{path} has no known format; end its name in {', '.join(PICTURE_SUFFIXES)}.", code="argument_invalid"
        )
    check_output(path, overwrite)


def check_space(path: Path, needed: int) -> None:
    """Make sure, before any work is done, that the disk has room for ``path``.

    Args:
        path: the output; its folder need not exist yet.
        needed: least number of bytes that it will take.

    Raises:
        OutputError: the disk has less free.
    """
    free = shutil.disk_usage(existing_parent(path)).free
    if free < needed:
        raise OutputError(
            f"{path} needs {needed:,} bytes and its disk has {free:,} free; free some space, or choose another "
            "--output.",
            code="disk_full",
        )


def existing_parent(path: Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


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
def written_whole(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """A path to write to; it takes the name of ``path`` when the block ends well.

    Args:
        path: the output.
        folder: a folder on the same disk to write in; None takes that of ``path``.

    Raises:
        OutputError: writing failed; nothing is left behind.
    """
    partial = _hidden(path if folder is None else folder / path.name, "partial")
    try:
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path, kept: Callable[[], Sequence[str]]) -> Iterator[Path]:
    """A folder beside ``path`` to write to; it takes the name of ``path`` when the block ends well.

    Args:
        path: the folder; its parents are made.
        kept: names of the files and folders that move to the new folder from one that stands at ``path`` by then; it
            raises an error if that must be kept as a whole.

    Raises:
        OutputError: writing failed; nothing is left behind, and what stood at ``path`` still does.
    """
    partial = _hidden(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        _open_permissions(partial)
        if path.exists():
            _replace(path, partial, kept())
        else:
            partial.rename(path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def first_change(
    then: Mapping[str, object], now: Mapping[str, object], shown: Callable[[object], str] = str
) -> str | None:
    """The first setting that an output was made with and that is another now, as part of a sentence with its remedy.

    Args:
        then: the output's settings, by the names that users know; None is one that was left out.
        now: those of this run.
        shown: spells a setting that was not left out.

    Returns:
        Such as ``with --dtype float32, and now it is float16; repeat the command as it was``; None if all are the same.
    """

    def spelled(setting: object) -> str:
        return "left out" if setting is None else shown(setting)

    for name in {**then, **now}:
        was, is_now = then.get(name), now.get(name)
        if was != is_now:
            return f"with {name} {spelled(was)}, and now it is {spelled(is_now)}; repeat the command as it was"
    return None


def output_exists(path: Path, option: str = "--output") -> OutputError:
    """The error for an output that exists and must not be replaced."""
    return OutputError(
        f"{path} exists already; choose another {option}, or replace it with --overwrite.", code="output_exists"
    )


def cannot_write(
    path: Path, error: Exception, remedy: str = "choose another --output", outcome: str | None = None
) -> OutputError:
    """The error for an output that could not be written.

    Args:
        path: the output.
        error: the error that writing raised.
        remedy: the user's way out, unless the disk is full.
        outcome: the part of the work that stays, as the end of the sentence.
    """
    end = "." if outcome is None else f"; {outcome}."
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or _DISK_FULL.search(str(error)):
        return OutputError(f"{path} cannot be written because the disk is full; free some space{end}", code="disk_full")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return OutputError(f"{path} cannot be written ({reason}); {remedy}{end}")


def _hidden(path: Path, purpose: str) -> Path:
    """A new hidden name beside ``path``, with the same suffix."""
    return path.with_name(f".{path.stem}.{purpose}-{uuid.uuid4().hex}{path.suffix}")


def _replace(path: Path, new: Path, kept: Sequence[str]) -> None:
    """Rename the folder ``new`` to ``path``; the folder that was there is kept if that fails.

    Args:
        path: the folder to replace.
        new: the folder that takes its place.
        kept: names in the old folder that move to the new one.

    Raises:
        OutputError: the new folder has something of one of these names itself.
    """
    for name in kept:
        if (new / name).exists():
            raise OutputError(
                f"{path / name} is no part of the old bundle, and the new one has a file of that name; move it away.",
                code="output_exists",
            )
    replaced = _hidden(path, "replaced")
    path.rename(replaced)
    try:
        new.rename(path)
    except BaseException:
        replaced.rename(path)
        raise
    for name in kept:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (replaced / name).rename(path / name)
    shutil.rmtree(replaced, ignore_errors=True)


def _open_permissions(folder: Path) -> None:
    """Give every file the mode of a newly made one; safetensors writes for the owner only."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)
