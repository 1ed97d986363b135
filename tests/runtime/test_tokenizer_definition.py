"""A ``tokenizer.json`` of the right form whose tokenizer cannot be relied on is refused before it meets a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fgclip_rt.errors import BundleError
from fgclip_rt.manifest import TextSpec, WalkTypeSpec
from fgclip_rt.text import Tokenizer
from fgclip_rt.tokenizer_definition import check_tokenizer, read_tokenizer, text_ends
from helpers import GOLDENS, Json, assert_one_sentence

GOLDEN = GOLDENS / "fgclip2" / "checkpoint" / "tokenizer.json"
LENGTH = 64

SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
END = {"SpecialToken": {"id": "<eos>", "type_id": 0}}


@pytest.fixture
def document() -> Json:
    """The golden tokenizer, which a test may change."""
    parsed: Json = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return parsed


def with_single(*pieces: Json) -> Callable[[Json], None]:
    def edit(document: Json) -> None:
        document["post_processor"]["single"] = list(pieces)

    return edit


def with_end_id(document: Json) -> None:
    document["post_processor"]["special_tokens"]["<eos>"]["ids"] = [2**31]


def with_token_id(document: Json) -> None:
    document["model"]["vocab"]["☃"] = 2**31


def with_dropout(document: Json) -> None:
    document["model"]["dropout"] = 0.1


def without_unknown(document: Json) -> None:
    document["model"] |= {"unk_token": "<none>", "byte_fallback": False}


def of_words(document: Json) -> None:
    document["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}
    document["added_tokens"] = document["added_tokens"][:1]


def with_normalizer(pattern: str) -> Callable[[Json], None]:
    def edit(document: Json) -> None:
        document["normalizer"] = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "z"}

    return edit


HOSTILE: list[tuple[Callable[[Json], None], str]] = [
    (with_dropout, "has dropout 0.1"),
    (with_single(SEQUENCE, *[END] * 65), "adds 65 tokens to every text, and the model reads 64"),
    (with_single(SEQUENCE, *[END] * 64), "adds 64 tokens to every text, and the model reads 64"),
    (with_single(SEQUENCE, SEQUENCE, END), "does not hold the text once"),
    (with_single(END), "does not hold the text once"),
    (with_end_id, "has the token id 2147483648"),
    (with_token_id, "has the token id 2147483648"),
    (without_unknown, "cannot encode the text"),
    (of_words, "cannot encode the text"),
    (with_normalizer("(a+)+$"), "cannot encode the text"),
    (with_normalizer("("), "is not a tokenizer"),
]


@pytest.mark.parametrize(("edit", "fault"), HOSTILE)
def test_a_tokenizer_that_fails_on_a_text_is_refused(document: Json, edit: Callable[[Json], None], fault: str) -> None:
    edit(document)
    with pytest.raises(ValueError, match=fault):
        check(json.dumps(document))


@pytest.mark.parametrize(("edit", "fault"), HOSTILE)
def test_a_bundle_with_such_a_tokenizer_is_refused(document: Json, edit: Callable[[Json], None], fault: str) -> None:
    edit(document)
    spec = TextSpec("tokenizer.json", True, 0, False, {"long": WalkTypeSpec(1, 196), "short": WalkTypeSpec(0, LENGTH)})
    with pytest.raises(BundleError) as info:
        Tokenizer(json.dumps(document), spec)
    assert_one_sentence(info.value, "tokenizer.json", fault, code="bundle_invalid")


@pytest.mark.parametrize(
    "edit",
    [
        lambda _: None,
        with_single(SEQUENCE),
        with_single(SEQUENCE, *[END] * 63),
        lambda document: document["model"].update(dropout=0.0),
        # Ten digits in a token are no id.
        lambda document: document["model"]["vocab"].update({'": 2147483648': 774}),
        # Unknown characters are left out, without an error.
        lambda document: document["model"].update(unk_token=None, byte_fallback=False),
    ],
)
def test_a_tokenizer_that_encodes_any_text_passes(document: Json, edit: Callable[[Json], Any]) -> None:
    edit(document)
    check(json.dumps(document))


def check(definition: str) -> None:
    check_tokenizer(read_tokenizer(definition), definition, LENGTH)


def test_the_largest_id_passes(document: Json) -> None:
    document["model"]["vocab"]["☃"] = 2**31 - 1
    check(json.dumps(document))


def test_cutting_and_padding_of_the_file_are_left_out(document: Json) -> None:
    padding = {"strategy": {"Fixed": 5}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    document["padding"] = padding | {"pad_type_id": 0, "pad_token": "<pad>"}
    document["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    changed, plain = read_tokenizer(json.dumps(document)), read_tokenizer(GOLDEN.read_text(encoding="utf-8"))
    assert changed.encode("a cat on a mat").ids == plain.encode("a cat on a mat").ids


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        ([SEQUENCE, END], ([], [1])),
        ([END, SEQUENCE], ([1], [])),
        ([SEQUENCE], ([], [])),
        ([END, SEQUENCE, END, END], ([1], [1, 1])),
    ],
)
def test_the_tokens_around_a_text_are_found(
    document: Json, pieces: list[Json], ends: tuple[list[int], list[int]]
) -> None:
    with_single(*pieces)(document)
    assert text_ends(read_tokenizer(json.dumps(document))) == ends
