"""Reading what commands are given: images, folders of images, and files of texts."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ImageError, TextError
from ..folders import Found, search_folder
from ..model import Model
from ..names import spell_path
from .output import warn

#: Name that stands for standard input instead of a file of texts.
STANDARD_INPUT = Path("-")

#: Number of names in a message.
_SHOWN = 5

#: What a user can do about images that were passed over, by their kind.
_REMEDIES = {"HEIC": "install pillow-heif", "AVIF": "convert them", "JPEG XL": "convert them", "RAW": "convert them"}


def find_images(paths: Iterable[Path]) -> Found:
    """Image files: those given, and instead of a folder all that lie below it, in order; the rest is reported.

    A file that is given by name is kept, whatever it is and whether it is there: reading it will tell.

    Raises:
        ImageError: a folder cannot be read or holds no image, or something is given that is no file at all.
    """
    found = Found()
    for path in paths:
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            below = search_folder(path)
            if not below.files:
                rest = _passed_over(below)
                holds = f" ({rest})" if rest else ""
                raise ImageError(
                    f"{path} holds no image files that can be read{holds}; give a folder with some, or the files "
                    "themselves."
                )
            _warn_of_rest(path, below)
            found.add(below)
        elif _waits(path, mode):
            raise ImageError(f"{path} is no file but a pipe, socket or device; save the image to a file and give that.")
        else:
            found.files.append(str(path))
    _warn_of_unreadable(found)
    return found


def warn_of_found(folder: Path, found: Found) -> None:
    """Report what lies below a folder besides images, and what could not be looked into."""
    _warn_of_rest(folder, found)
    _warn_of_unreadable(found)


def read_texts(path: Path) -> list[str]:
    """One text a line, UTF-8; an empty line is an empty text. ``-`` is standard input.

    Raises:
        TextError: the file cannot be read, is not UTF-8, or holds no line.
    """
    name = "standard input" if path == STANDARD_INPUT else str(path)
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
    except OSError as error:
        raise TextError(f"{name} cannot be read ({error.strerror}); check the path.") from None
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise TextError(f"{name} is empty; put one text on each line.")
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise TextError(
                f"{name}, line {number}, is not valid UTF-8 (byte {line[error.start]:#04x}); save the file as UTF-8."
            ) from None
    return texts


def warn_of_texts(model: Model, texts: Sequence[str], walk_type: str, *, fixed: bool = False) -> list[int]:
    """Report texts that lose their end or spell special tokens, and return the indices of the former.

    Args:
        model: tokenises them.
        texts: the texts.
        walk_type: their kind.
        fixed: whether the command has no other kind.
    """
    indices, special = [], {}
    for index, text in enumerate(model.tokenizer.encode_each(texts, walk_type)):
        if text.truncated:
            indices.append(index)
        if text.special is not None:
            special[index] = text.special
    if special:
        number, token = next(iter(special.items()))
        warn(
            f"fgclip-rt: {len(special)} of {len(texts)} texts spell special tokens, which the tokenizer reads as such "
            f"and not as characters (number {number + 1}: {token}); spell them in another way unless that is meant."
        )
    if indices:
        limit = model.tokenizer.walk_type(walk_type).length
        others = [name for name, spec in model.manifest.text.walk_types.items() if spec.length > limit]
        longer = f"use --walk-type {others[0]}" if others and not fixed else "shorten them"
        shown = ", ".join(str(index + 1) for index in indices[:5]) + (", …" if len(indices) > 5 else "")
        warn(
            f"fgclip-rt: {len(indices)} of {len(texts)} texts exceed {limit} tokens and lose their end "
            f"(number {shown}); {longer} to keep it."
        )
    return indices


def _warn_of_rest(folder: Path, found: Found) -> None:
    rest = _passed_over(found)
    if rest:
        images = "1 image" if len(found.files) == 1 else f"{len(found.files):,} images"
        warn(f"fgclip-rt: {folder}: {images}; {rest}.")


def _warn_of_unreadable(found: Found) -> None:
    if found.unreadable:
        shown = ", ".join(map(spell_path, found.unreadable[:_SHOWN])) + (", …" if found.unreadable[_SHOWN:] else "")
        warn(f"fgclip-rt: unreadable: {shown}")


def _mode(path: Path) -> int:
    """Type of what stands at ``path``; 0 if that cannot be told."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _waits(path: Path, mode: int) -> bool:
    """Whether reading may wait for ever: from a pipe, socket or device, but for a pipe that the shell has opened."""
    opened = stat.S_ISFIFO(mode) and path.parts[:2] == ("/", "dev")
    return mode != 0 and not stat.S_ISREG(mode) and not opened


def _passed_over(found: Found) -> str:
    """What was passed over in a folder, and what can be done about it; empty if there was nothing."""
    parts = []
    for kind, count in found.passed_over.items():
        remedy = f" ({_REMEDIES[kind]})" if kind in _REMEDIES else ""
        parts.append(f"{count:,} {kind}{remedy}")
    if found.unreadable:
        parts.append(f"{len(found.unreadable):,} unreadable")
    return f"passed over: {', '.join(parts)}" if parts else ""
