"""The files that hold an ONNX model's weights: their names in the model, read and changed without the onnx package.

onnxruntime looks for weights by these names, and only below one folder that links must not lead out of. In a hub's
cache or a mount each file of a bundle may be a link to another folder. So the names become those of the files that the
links lead to, below a folder that holds them all.

A model is a message of protocol buffers: a sequence of fields, each a key (number · 8 + wire type) and a value
(https://protobuf.dev/programming-guides/encoding/). The numbers of the fields are those of ``onnx.proto``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

#: From a model to the entries of its weights: ``graph``, ``initializer``, ``external_data``.
_ENTRY = (7, 5, 13)
#: Fields of an entry, and the key of the entry that names a file.
_KEY, _VALUE = 1, 2
_LOCATION = b"location"

#: Wire types: a number of a varying length, eight bytes, bytes with their length before them, four bytes.
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class _Field(NamedTuple):
    """A field: its number, its wire type, and where in the message its key, its content and its end are."""

    number: int
    wire: int
    start: int
    content: int
    stop: int


class Model(NamedTuple):
    """A serialised model that finds its weights whatever links led to them.

    Attributes:
        content: the model.
        folder: the folder below which it finds them.
        files: each file of weights without links, by its name in the original.
    """

    content: bytes
    folder: Path
    files: dict[str, Path]


def without_links(content: bytes, beside: Path) -> Model:
    """A serialised model that names its files of weights without links.

    Args:
        content: the model.
        beside: the folder in which its weights have the names that the model gives them.

    Raises:
        ValueError: it is no model.
        OSError: a link leads in a circle.
    """
    files = {name: (beside / name).resolve() for name in locations(content)}
    folder = Path(os.path.commonpath([beside.resolve(), *(file.parent for file in files.values())]))
    return Model(renamed(content, lambda name: files[name].relative_to(folder).as_posix()), folder, files)


def locations(content: bytes) -> set[str]:
    """Names of the files that hold the weights of a serialised model.

    Raises:
        ValueError: it is no model.
    """
    found: set[str] = set()

    def note(location: str) -> str:
        found.add(location)
        return location

    renamed(content, note)
    return found


def renamed(content: bytes, rename: Callable[[str], str]) -> bytes:
    """A serialised model whose files of weights have other names.

    Args:
        content: the model.
        rename: from the name of a file to its new name.

    Raises:
        ValueError: it is no model.
    """

    def edit(entry: bytes) -> bytes:
        values = {field.number: entry[field.content : field.stop] for field in _fields(entry)}
        if values.get(_KEY) != _LOCATION:
            return entry
        return _written(_KEY, _LOCATION) + _written(_VALUE, rename(values.get(_VALUE, b"").decode()).encode())

    return _edited(content, _ENTRY, edit)


def _edited(message: bytes, numbers: Sequence[int], edit: Callable[[bytes], bytes]) -> bytes:
    """A message whose messages on the way of field ``numbers`` are edited; all else stays as it is."""
    if not numbers:
        return edit(message)
    first, *others = numbers
    parts = []
    for field in _fields(message):
        if (field.number, field.wire) == (first, _BYTES):
            parts.append(_written(first, _edited(message[field.content : field.stop], others, edit)))
        else:
            parts.append(message[field.start : field.stop])
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[_Field]:
    start = 0
    while start < len(message):
        key, content = _varint(message, start)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, stop = _varint(message, content)
        elif wire == _BYTES:
            size, content = _varint(message, content)
            stop = content + size
        elif wire in (_FOUR, _EIGHT):
            stop = content + (4 if wire == _FOUR else 8)
        else:
            raise ValueError(f"wire type {wire} at byte {start}")
        if stop > len(message):
            raise ValueError(f"field {number} at byte {start} ends past the message")
        yield _Field(number, wire, start, content, stop)
        start = stop


def _varint(message: bytes, start: int) -> tuple[int, int]:
    """The number that begins at ``start``, seven bits a byte and the lowest first, and where it ends."""
    number = 0
    for index, byte in enumerate(message[start : start + 10]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, start + index + 1
    raise ValueError(f"no number at byte {start}")


def _written(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(content)) + content


def _as_varint(number: int) -> bytes:
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])
