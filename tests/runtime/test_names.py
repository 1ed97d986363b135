"""Names of files are spelled safely, differently for each name, and can be read back."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fgclip_rt.names import make_visible, spell_path, unspell_path

#: Bytes of names that come near to escapes far more often than any bytes would.
NAMES = st.binary(max_size=12) | st.lists(
    st.sampled_from([b"\\", b"x", b"\\x", b"e9", b"E9", b"5c", b"\xe9", b"\xc3\xa9", b"\n", b"a", b"\xe2\x80\xae"]),
    max_size=8,
).map(b"".join)


def acts(character: str) -> bool:
    """Whether a character may act on a terminal, end a line, or turn the reading order of others."""
    turns = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in turns


@given(NAMES)
@example(rb"caf\xe9.jpg")
@example(b"caf\xe9.jpg")
@example(rb"\\x5cx5c")
@example(b"\xed\xa0\x80")
def test_a_spelling_gives_its_name_back(name: bytes) -> None:
    spelling = spell_path(os.fsdecode(name))
    assert os.fsencode(unspell_path(spelling)) == name
    # It is valid Unicode on one line, and nothing in it acts on a terminal.
    assert spelling.encode().decode() == spelling
    assert len(spelling.splitlines()) <= 1
    assert not [character for character in spelling if acts(character)]
    # Showing it changes it no more.
    assert make_visible(spelling) == spelling


@given(NAMES, NAMES)
def test_two_names_have_two_spellings(one: bytes, other: bytes) -> None:
    assert (spell_path(os.fsdecode(one)) == spell_path(os.fsdecode(other))) == (one == other)


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        (b"caf\xe8.jpg", r"caf\xe8.jpg"),
        ("café 猫.jpg".encode(), "café 猫.jpg"),
        (rb"caf\xe9.jpg", r"caf\x5cxe9.jpg"),
        (rb"C:\photos\xylophone\xE9.jpg", r"C:\photos\xylophone\xE9.jpg"),
        (b"a\tb\nc\x1b[31m\x7f.jpg", r"a\x09b\x0ac\x1b[31m\x7f.jpg"),
        ("gpj.\u202ecod\x9b.jpg".encode(), r"gpj.\xe2\x80\xaecod\xc2\x9b.jpg"),
    ],
)
def test_names_are_spelled_so(name: bytes, spelling: str) -> None:
    assert spell_path(os.fsdecode(name)) == spelling


@given(st.text() | st.text(alphabet=st.characters(categories=["Cc", "Cs", "Cf", "Zl", "Zp"])))
def test_a_visible_text_cannot_act(text: str) -> None:
    visible = make_visible(text)
    assert visible.encode().decode() == visible
    assert not [character for character in visible if acts(character)]


def test_a_visible_text_keeps_what_is_harmless() -> None:
    text = "Größe 猫 👩‍👩‍👧 עברית \\x41 \\n"
    assert make_visible(text) == text
    assert make_visible("\x1b]0;evil\x07\u2066") == r"\x1b]0;evil\x07\xe2\x81\xa6"
