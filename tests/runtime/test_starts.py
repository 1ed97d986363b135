"""The start of a long text has the first ids of the whole, for every kind of tokenizer, at a cost that has a limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fgclip_rt.export.checkpoints.registry import MODELS
from fgclip_rt.export.families.fineclip.tokenizer import fineclip_tokenizer
from fgclip_rt.starts import MOST, Starts
from helpers import GOLDENS, Json

NAMES = ("fgclip1", "fineclip", "fgclip2", "pocket", "lower-cased")
#: Those that split words at white space, and so refuse a run that is too long; the others merge over all of a text.
OF_WORDS = ("fgclip1", "fineclip")

#: Whatever normalizers, patterns, special tokens and merges look at beyond a single character.
FRAGMENTS = (
    *(
        "a",
        "cat ",
        " ",
        "  ",
        "\n",
        "\t\r\n",
        "'s",
        "'",
        "don't",
        "ﬁ",
        "İ",
        "é",
        "e\u0301",
        "\u0301",
        "\u0345",
        "1",
        "12 ",
    ),
    *(
        "Σ",
        "aΣ",
        "Σʰ",
        "ʰ",
        "ΟΔΟΣ",
        "😀",
        "👩\u200d👩",
        "你好",
        "，",
        "。 ",
        "ｗ",
        "\x00",
        "\x0b",
        "\x1b[1m",
        "\x1b[",
        "!",
        "?! ",
    ),
    *("&", "&amp", "&amp;", "&#38", "&#0", "0", ";", "&lt;", "&quot", "&nbsp; ", "\u3000", "\u2028", "▁", "<", ">"),
    *("<eos>", "<EOS>", "<pad>", "<0x0A>", "<|endoftext|>", "<end_of_text>", "<end_of_", "<start_of_text> ", "</w>"),
)


def definition(name: str) -> str:
    if name == "fineclip":
        return fineclip_tokenizer(definition("fgclip1"))
    if name == "lower-cased":
        document: Json = json.loads(definition("fgclip2"))
        document["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, document["normalizer"]]}
        return json.dumps(document)
    folder = MODELS["fg-clip2-pocket"].folder if name == "pocket" else GOLDENS / name / "checkpoint"
    assert folder is not None
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


@cache
def tokenizer(name: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(definition(name))
    made.no_truncation()
    made.no_padding()
    return made


@cache
def starts(name: str) -> Starts:
    return Starts(tokenizer(name))


@cache
def fragments(name: str) -> tuple[str, ...]:
    """Fragments, and the longest words of a vocabulary, inside of which a careless cut would fall."""
    longest = sorted(tokenizer(name).get_vocab(), key=len)[-60:]
    words = [word.removesuffix("</w>").replace("▁", " ") for word in longest]
    return (*FRAGMENTS, *(word for word in words if word.isascii() or name not in OF_WORDS))


def ids(name: str, text: str) -> list[int]:
    found: list[int] = tokenizer(name).encode(text, add_special_tokens=False).ids
    return found


@st.composite
def long_texts(draw: st.DrawFn, name: str, least: int) -> str:
    """Texts of more than ``least`` characters, of a few fragments that come again and again."""
    choice = draw(st.lists(st.sampled_from(fragments(name)) | st.characters(codec="utf-8"), min_size=1, max_size=8))
    separator = draw(st.sampled_from(["", " ", "\n"]))
    text = separator.join(draw(st.lists(st.sampled_from(choice), min_size=1, max_size=30))) + separator
    return text * (least // len(text) + 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_ids_of_a_start_are_those_of_the_whole(name: str) -> None:
    settled = 0

    @settings(max_examples=100)
    @given(long_texts(name, 300), st.integers(1, 30))
    def check(text: str, count: int) -> None:
        nonlocal settled
        start = starts(name).settle(text, count, most=250)
        if start is not None:
            whole, first = ids(name, text), ids(name, start)
            assert first[:count] == whole[:count]
            assert (len(first) > count) == (len(whole) > count)
            assert len(start) <= 250
            settled += 1

    check()
    assert settled > 30, "too few texts have a start"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [63, 195])
def test_long_words_are_not_cut(name: str, count: int) -> None:
    """The first cut that is tried falls into each character of a long word in turn."""
    word = max((word for word in fragments(name) if word.strip() == word), key=len)
    for offset in range(0, len(word), 2):
        text = ("x" * offset + " " + word + " ") * 1000
        start = starts(name).settle(text, count)
        assert start is not None
        assert len(start) <= MOST
        assert ids(name, start)[:count] == ids(name, text[: 2 * MOST])[:count]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "a cat", "x" * MOST, "\u0301" * MOST])
def test_texts_that_are_not_long_stay_as_they_are(name: str, text: str) -> None:
    assert starts(name).settle(text, 63) == text


@pytest.mark.parametrize("name", OF_WORDS)
def test_white_space_in_excess_is_no_length(name: str) -> None:
    text = "\n" * 100_000 + "a " + " \t" * 100_000 + "cat" + " " * 100_000
    start = starts(name).settle(text, 75)
    assert start is not None
    assert len(start) < 10
    assert ids(name, start) == ids(name, "a cat")


class Counting:
    """A tokenizer that notes the lengths of the texts that it encodes."""

    def __init__(self, counted: tokenizers.Tokenizer) -> None:
        self._counted = counted
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._counted, name)

    def encode(self, text: str, **options: Any) -> tokenizers.Encoding:
        self.lengths.append(len(text))
        return self._counted.encode(text, **options)


HUGE: dict[str, Callable[[int], str]] = {
    "words": lambda n: "the cat sat on a mat " * (n // 21),
    "letters": lambda n: "a" * n,
    "spaces": lambda n: "a cat" + " " * n,
    "marks": lambda n: "\u0301" * n,
    "emoji": lambda n: "😀" * n,
    "Chinese": lambda n: "你好，" * (n // 3),
    "special": lambda n: "<eos>" * (n // 5),
    "zeros": lambda n: "&#" + "0" * n,
    "sigma": lambda n: "ʰ" * (n // 2) + "Σ" + "ʰ" * (n // 2) + "!",
    "removed": lambda n: "\x00" * n,
    "double": lambda n: "İ" * n,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", HUGE)
def test_the_work_does_not_grow_with_the_text(name: str, kind: str) -> None:
    work = []
    for length in (100_000, 1_000_000):
        counting = Counting(tokenizer(name))
        start = Starts(counting).settle(HUGE[kind](length), 195)  # type: ignore[arg-type]
        assert start is None or len(start) <= MOST
        assert max(counting.lengths, default=0) <= MOST
        work.append(sum(counting.lengths))
    assert work[0] == work[1] <= 400_000


@pytest.mark.parametrize("name", NAMES)
def test_only_unbroken_runs_have_no_start(name: str) -> None:
    none = {kind for kind, make in HUGE.items() if starts(name).settle(make(100_000), 63) is None}
    if name in OF_WORDS:
        assert none == set(HUGE) - {"words", "spaces"}
    else:
        assert none == ({"double"} if name == "lower-cased" else set())


def edited(name: str, edit: Callable[[Json], None]) -> Starts:
    document = json.loads(definition(name))
    edit(document)
    return Starts(tokenizers.Tokenizer.from_str(json.dumps(document)))


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("fgclip2", lambda document: document["added_tokens"][4].update(lstrip=True)),
        ("fgclip2", lambda document: document["added_tokens"][4].update(single_word=True)),
        ("fgclip2", lambda document: document.update(normalizer={"type": "NFC"})),
        ("fgclip2", lambda document: document["normalizer"].update(content="▁▁")),
        ("fgclip2", lambda document: document["pre_tokenizer"].update(pattern={"Regex": "x+"})),
        ("fgclip2", lambda document: document["model"].update(ignore_merges=True)),
        ("fgclip2", lambda document: document["model"].update(end_of_word_suffix="</w>")),
        ("fgclip1", lambda document: document["added_tokens"][1].update(rstrip=True)),
        ("fgclip1", lambda document: document["added_tokens"][1].update(content="<|end of text|>")),
        ("fgclip1", lambda document: document["pre_tokenizer"]["pretokenizers"][0].update(invert=False)),
    ],
)
def test_a_tokenizer_of_another_kind_has_no_starts(name: str, edit: Callable[[Json], None]) -> None:
    text = "a cat on a mat " * 1000
    assert starts(name).settle(text, 63) is not None
    assert edited(name, edit).settle(text, 63) is None
    assert edited(name, edit).settle("a cat", 63) == "a cat"
