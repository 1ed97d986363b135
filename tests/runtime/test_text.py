"""Texts are tokenised to their exact length, and values that are no text are refused by their index."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import fgclip_rt
from fgclip_rt.errors import ArgumentError, BundleError, SpecialTokenWarning, TextError
from fgclip_rt.model import Embedded, Model
from fgclip_rt.starts import MOST
from fgclip_rt.text import Tokenizer
from helpers import GOLDENS, WALK_TYPES, Golden, Json, assert_one_sentence, embed_anew

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


def definition(name: str = "fgclip2") -> str:
    return (GOLDENS / name / "checkpoint" / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def clip(square_path: Callable[[str], Path]) -> Model:
    """A model whose tokenizer splits at white space."""
    return fgclip_rt.load(square_path("fgclip1"), device="cpu")


@pytest.mark.parametrize("walk_type", WALK_TYPES)
def test_a_megabyte_of_text_has_the_ids_of_its_start(model: Model, clip: Model, walk_type: str) -> None:
    for tested, lengths in ((model, LENGTHS), (clip, {"short": 77, "box": 77, "long": 248})):
        plain = tokenizers.Tokenizer.from_str(tested.bundle.read_text("tokenizer.json"))
        for text in ("the Cat sat on 3 mats, ", LONG, "猫 在, ", "Σ ʰΣ aΣʰb "):
            huge = text * (1_000_000 // len(text))
            whole = plain.encode(huge[:50_000].lower() if tested is model else huge[:50_000]).ids
            tokens = tested.tokenizer([huge, text[:9]], walk_type)
            assert tokens.input_ids[0].tolist() == [*whole[: lengths[walk_type] - 1], whole[-1]]
            assert tokens.truncated.tolist() == [True, False]
            assert tested.truncated([text[:9], huge], walk_type) == [1]


def test_what_is_kept_of_a_huge_text_is_small(model: Model) -> None:
    """Vectors are kept by their texts; a thousand huge ones would fill the memory."""
    huge = LONG * 1000
    assert len(model.tokenizer.prepare(huge)) <= MOST
    assert len(model.tokenizer.prepare(huge)) <= len(model.tokenizer.prepare(huge, "long"))
    np.testing.assert_allclose(model.embed_texts([huge]), embed_anew(model, [LONG]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["a" * (MOST + 1), "😀" * 1_000_000, "\u0301" * 300_000, "\x0b" * 9000 + "a cat"])
def test_a_run_without_a_break_is_refused_with_its_length(clip: Model, text: str) -> None:
    for call in (clip.embed_texts, clip.truncated):
        with pytest.raises(TextError) as info:
            call(["a cat", text])
        assert_one_sentence(info.value, "text 1 has", f"{len(text):,} characters", "75 tokens", code="text_too_long")
    assert clip.embed_texts([text[:MOST]]).shape == (1, clip.dim)


def test_a_bad_text_need_not_lose_the_call(model: Model, clip: Model) -> None:
    good = ["a cat", "a dog", "a cat"]
    for tested, bad in ((model, [7, "\ud800"]), (clip, ["x" * 9000, None])):
        texts: list[Any] = [bad[0], good[0], bad[1], bad[0], good[1], good[2]]
        found = tested.embed_texts((text for text in texts), on_error="skip")
        assert isinstance(found, Embedded)
        assert found.rows == (1, 4, 5)
        assert [failure.index for failure in found.failures] == [0, 2, 3]
        for failure in found.failures:
            assert isinstance(failure.error, TextError)
            assert f"text {failure.index} " in str(failure.error)
        np.testing.assert_array_equal(found.vectors, tested.embed_texts(good))
    nothing = clip.embed_texts(bad, on_error="skip")
    assert (nothing.vectors.shape, nothing.rows, len(nothing.failures)) == ((0, clip.dim), (), 2)
    with pytest.raises(ArgumentError, match="on_error is 'ignore'"):
        model.embed_texts(good, on_error="ignore")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("a photo <eos> of a cat", "<eos>"),
        ("A <EOS> star", "<eos>"),  # the text is lower-cased first
        ("<pad><bos>", "<pad>"),
        ("a <0x0a> <0x0A>", None),  # lower-cased, it is none
        ("a cat, <e os>, <unknown>", None),
        ("🦊 \x00", None),  # its bytes are special tokens in this vocabulary, but nobody spelt them
        ("cat " * 100 + "<eos>", None),  # it is cut off
    ],
)
def test_special_tokens_in_a_text_are_told(model: Model, text: str, token: str | None) -> None:
    encoded = model.tokenizer.encode(model.tokenizer.prepare(text))
    assert encoded.special == token
    plain = tokenizers.Tokenizer.from_str(definition())
    plain.enable_truncation(64)
    assert encoded.ids == plain.encode(text.lower()).ids, "the ids stay those of the reference"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # at first from the graph, then from the vectors that are kept
            model.embed_texts(["a cat", text])
    assert [warning.category for warning in caught] == [SpecialTokenWarning] * (2 if token else 0)
    for warning in caught:
        assert_one_sentence(warning.message, "text 1 holds", repr(token))
        assert warning.filename == __file__


@pytest.mark.parametrize(
    ("name", "text", "token"),
    [
        ("fgclip1", "a <|ENDOFTEXT|> b", "<|endoftext|>"),
        ("fgclip1", "a <end_of_text> b", None),
        ("fineclip", "a &lt;end_of_text&gt; b", "<end_of_text>"),
        ("fineclip", "stop!<end_of_text>", None),
    ],
)
def test_special_tokens_are_told_as_the_tokenizer_cleans_them(
    square_path: Callable[[str], Path], name: str, text: str, token: str | None
) -> None:
    tokenizer = fgclip_rt.load(square_path(name), device="cpu").tokenizer
    assert tokenizer.encode(tokenizer.prepare(text)).special == token


def test_one_warning_stands_for_all_texts_of_a_call(model: Model) -> None:
    with pytest.warns(SpecialTokenWarning) as caught:
        model.embed_texts(["a", "b <pad>", "c", "d <eos>", "b <pad>"])
    assert len(caught) == 1
    assert_one_sentence(caught[0].message, "text 1 and 2 more hold", "'<pad>'")


def edited(model: Model, edit: Callable[[Json], None]) -> Tokenizer:
    document: Json = json.loads(definition())
    edit(document)
    return Tokenizer(json.dumps(document), model.manifest.text)


def test_a_failure_of_the_library_names_the_text(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    """The pattern takes too long for the library, which panics: that is no Exception in Python."""
    slow = {"type": "Replace", "pattern": {"Regex": "(q|q)+$"}, "content": "x"}
    tokenizer = edited(model, lambda document: document.update(normalizer=slow))
    with pytest.raises(TextError) as info:
        tokenizer(["fine", "q" * 40 + "b"], first=5)
    assert_one_sentence(info.value, "text 6 ", "retry-limit", code="text_invalid")
    assert "panicked" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda document: document["model"].update(dropout=0.1), "dropout"),
        (
            lambda document: document["post_processor"]["single"].extend(
                [document["post_processor"]["single"][1]] * 64
            ),
            "65",
        ),
        (
            lambda document: document["post_processor"]["single"].append(document["post_processor"]["single"][0]),
            "hold the text once",
        ),
        (
            lambda document: document.update(
                model={"type": "WordLevel", "vocab": {"<eos>": 1}, "unk_token": "[UNK]"}, added_tokens=[]
            ),
            "cannot encode the text 'a cat'",
        ),
    ],
)
def test_a_tokenizer_that_no_model_was_trained_with_is_refused(
    model: Model, edit: Callable[[Json], None], part: str
) -> None:
    with pytest.raises(BundleError) as info:
        edited(model, edit)
    assert_one_sentence(info.value, "tokenizer.json", part, code="bundle_invalid")
