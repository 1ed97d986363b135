"""Names of files, and other people's texts, in characters that a terminal, a table and a file of vectors all can hold.

A character that could act on a terminal or turn the reading order, and a byte that is not UTF-8, are written as the
bytes that stand in the name: ``\\x`` and two hexadecimal digits in lower case for each. Everything else stays.
"""

from __future__ import annotations

import os
import re

#: Control characters, line separators, changes of the reading order, and surrogates, which stand for bytes.
UNSAFE = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"

_UNSAFE = re.compile(f"[{UNSAFE}]")

#: A backslash in a name that would read as the beginning of an escape is escaped itself, so no two names are alike.
_UNSAFE_IN_NAME = re.compile(rf"[{UNSAFE}]|\\(?=x[0-9a-f]{{2}})")

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def spell_path(path: str | os.PathLike[str]) -> str:
    r"""A path as it stands in every output: valid Unicode, on one line, and different for every path.

    ``caf\xe9.jpg`` is the name in which the byte E9 follows ``caf``; a tab is ``\x09``. A backslash is ``\x5c`` where
    ``x`` and two digits follow it, and itself otherwise. :func:`unspell_path` gives the path back.
    """
    return _UNSAFE_IN_NAME.sub(_escaped, os.fsencode(path).decode("utf-8", "surrogateescape"))


def unspell_path(spelling: str) -> str:
    """The path that :func:`spell_path` has spelled so, for :func:`open` and :class:`pathlib.Path`.

    Bytes that are not UTF-8 may also stand in it as Python's own surrogates.
    """
    return os.fsdecode(_ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), os.fsencode(spelling)))


def make_visible(text: str) -> str:
    """A text on one line, with every character that could act on a terminal escaped as in names."""
    return _UNSAFE.sub(_escaped, text)


def _escaped(unsafe: re.Match[str]) -> str:
    character = unsafe[0]
    # A byte that is not UTF-8 stands in Python's paths as a surrogate of this range.
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))
