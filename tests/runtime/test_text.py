"""Texts are tokenised to their exact length, and values that are no text are refused by their index."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.errors import ArgumentError, BundleError, TextError
from fgclip_rt.model import Model
from fgclip_rt.text import Tokenizer
from helpers import GOLDENS, WALK_TYPES, Golden, assert_one_sentence

LENGTHS = {"short": 64, "box": 64, "long": 196}
PAD, EOS = 0, 1
LONG = "一个繁忙的街头市场 with fruit filled stalls 🦊 " * 40


def test_texts_are_lower_cased(model: Model) -> None:
    upper, lower = model.tokenizer(["A Photo of a CAT, ÄÉŠ Ω", "a photo of a cat, äéš ω"]).input_ids
    np.testing.assert_array_equal(upper, lower)
    np.testing.assert_array_equal(*model.embed_texts(["A Red CAR", "a red car"]))


@pytest.mark.parametrize("walk_type", WALK_TYPES)
def test_long_texts_lose_their_end_but_not_the_end_token(model: Model, walk_type: str) -> None:
    length = LENGTHS[walk_type]
    plain = tokenizers.Tokenizer.from_file(str(GOLDENS / "fgclip2" / "checkpoint" / "tokenizer.json"))
    whole = plain.encode(LONG, add_special_tokens=False).ids
    tokens = model.tokenizer(["short", LONG, "x"], walk_type)
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (3, length)
    assert tokens.input_ids[1].tolist() == [*whole[: length - 1], EOS]
    assert tokens.attention_mask[1].all()
    assert tokens.truncated.tolist() == [False, True, False]
    assert model.truncated(["short", LONG, "x", LONG], walk_type) == [1, 3]


@pytest.mark.parametrize("walk_type", WALK_TYPES)
def test_a_text_of_exactly_the_length_is_not_truncated(model: Model, walk_type: str) -> None:
    words = "cat " * 300
    count = [int(model.tokenizer([words[: 4 * n]], "long").attention_mask.sum()) for n in (1, 2, 3)]
    per_word = count[2] - count[1]
    assert per_word == count[1] - count[0] > 0
    fitting = (LENGTHS[walk_type] - count[0]) // per_word + 1
    texts = [words[: 4 * n] for n in (fitting, fitting + 1)]
    assert model.truncated(texts, walk_type) == [1]


@pytest.mark.parametrize("walk_type", WALK_TYPES)
@pytest.mark.parametrize("text", ["", "a", "🦊", "👩‍👩‍👧‍👦 e\u0301 \x00", "猫"])
def test_texts_are_padded_to_the_full_length(model: Model, text: str, walk_type: str) -> None:
    tokens = model.tokenizer([text], walk_type)
    count = int(tokens.attention_mask.sum())
    assert 1 <= count < LENGTHS[walk_type]
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int32
    assert tokens.input_ids[0, count - 1] == EOS
    assert (tokens.input_ids[0, count:] == PAD).all()
    assert tokens.attention_mask[0].tolist() == [1] * count + [0] * (LENGTHS[walk_type] - count)
    assert not tokens.truncated.any()


def test_the_empty_text_is_the_end_token_alone(model: Model) -> None:
    assert model.tokenizer([""]).input_ids[0, :2].tolist() == [EOS, PAD]
    assert np.isfinite(model.embed_texts("")).all()


@given(texts=st.lists(st.text(), max_size=4), walk_type=st.sampled_from(WALK_TYPES))
def test_any_text_has_its_length_and_ends_with_the_end_token(model: Model, texts: list[str], walk_type: str) -> None:
    tokens = model.tokenizer(texts, walk_type)
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (len(texts), LENGTHS[walk_type])
    for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True):
        count = int(mask.sum())
        assert ids[count - 1] == EOS
        assert (ids[count:] == PAD).all()
        assert not mask[count:].any()


def test_threads_tokenise_as_one_does(model: Model) -> None:
    texts = [*Golden("fgclip2").texts, LONG]
    jobs = [(texts[i:] + texts[:i], walk_type) for i in range(len(texts)) for walk_type in WALK_TYPES] * 4
    serial = [model.tokenizer(*job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for expected, actual in zip(serial, pool.map(lambda job: model.tokenizer(*job), jobs), strict=True):
            np.testing.assert_array_equal(actual.input_ids, expected.input_ids)
            np.testing.assert_array_equal(actual.attention_mask, expected.attention_mask)
            np.testing.assert_array_equal(actual.truncated, expected.truncated)


@pytest.mark.parametrize("walk_type", ["medium", "", "Short", None, 0, ["short"]])
@pytest.mark.parametrize("texts", [["a"], []])
def test_an_unknown_walk_type_lists_those_there_are(model: Model, walk_type: Any, texts: list[str]) -> None:
    for call in (model.embed_texts, model.tokenizer):
        with pytest.raises(ArgumentError) as info:
            call(texts, walk_type)
        assert_one_sentence(info.value, repr(walk_type), "short, box, long", code="walk_type_missing")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("\ud83e", "surrogate"), ("ok \udc00", "surrogate"), (7, "int"), (None, "NoneType"), (b"cat", "bytes")],
)
@pytest.mark.parametrize("index", [0, 3, 100])
def test_what_is_no_text_is_refused_by_its_index(model: Model, bad: Any, reason: str, index: int) -> None:
    texts = ["a cat"] * index + [bad, "a dog"]
    for call in (model.embed_texts, model.truncated):
        with pytest.raises(TextError) as info:
            call(texts)
        assert_one_sentence(info.value, f"text {index} ", reason, code="text_invalid")


def test_the_index_counts_on_over_many_batches(masked_model: Model) -> None:
    texts = ["a cat"] * 5000 + ["\ud800"]
    for call in (masked_model.embed_texts, masked_model.truncated):
        with pytest.raises(TextError, match="text 5000 "):
            call(texts)


@pytest.mark.parametrize("texts", [7, None])
def test_texts_that_are_no_list_are_refused(model: Model, texts: Any) -> None:
    with pytest.raises(ArgumentError) as info:
        model.embed_texts(texts)
    assert_one_sentence(info.value, type(texts).__name__, code="argument_invalid")


def test_a_file_that_is_no_tokenizer_is_refused(model: Model) -> None:
    text = (GOLDENS / "fgclip2" / "index.json").read_text(encoding="utf-8")
    with pytest.raises(BundleError, match="is not a tokenizer"):
        Tokenizer(text, model.manifest.text)
