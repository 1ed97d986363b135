"""Reading what commands are given: images, folders of images, and files of texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ..errors import ImageError, TextError
from ..model import Model
from .output import warn

#: Name that stands for standard input instead of a file of texts.
STANDARD_INPUT = Path("-")


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Image files: those given, and instead of a folder all that lie below it, sorted.

    A file that is given by name is kept, whatever it is and whether it is there: reading it will tell. In a folder the
    suffix decides.

    Raises:
        ImageError: a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            Image.init()  # every format that Pillow knows, which takes a while
            suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not below:
                raise ImageError(f"{path} holds no image files; give a folder with some, or the files themselves.")
            found += below
        else:
            found.append(path)
    return found


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


def warn_truncated(model: Model, texts: Sequence[str], walk_type: str) -> list[int]:
    """Report texts that lose their end or spell out special tokens, and return the indices of the former."""
    indices = model.truncated(texts, walk_type)
    if indices:
        limit = model.tokenizer.walk_type(walk_type).length
        others = [name for name, spec in model.manifest.text.walk_types.items() if spec.length > limit]
        longer = f"use --walk-type {others[0]}" if others else "shorten them"
        shown = ", ".join(str(index + 1) for index in indices[:5]) + (", …" if len(indices) > 5 else "")
        warn(
            f"fgclip-rt: {len(indices)} of {len(texts)} texts exceed {limit} tokens and lose their end "
            f"(number {shown}); {longer} to keep it."
        )
    special = {number: found for number, text in enumerate(texts, 1) if (found := model.tokenizer.special_tokens(text))}
    if special:
        number, found = next(iter(special.items()))
        warn(
            f"fgclip-rt: {len(special)} of {len(texts)} texts spell out special tokens and are encoded as these "
            f"(number {number}: {', '.join(found)}); remove them if they are meant as text."
        )
    return indices
