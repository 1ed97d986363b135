"""Damaged tokenizers, graphs and weights: both readers give the same verdict, and the same results if they accept.

Digests are fitted to the damage, as somebody would who meant it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import fgclip_rt
from fgclip_rt.errors import FgclipError, NativeError
from fgclip_rt.manifest import TextSpec, WalkTypeSpec
from fgclip_rt.native.library import Library
from fgclip_rt.text import Tokenizer
from helpers import fit_digests
from native import oracle
from native.conftest import NATIVE
from native.oracle import Oracle, Refusal
from native.test_refusals import copied, mutations, silent, write

TEXTS = ["a cat", "naïve 一只黑猫 🦊", "", "ab " * 50]

#: Small tokenizers of every kind, which fuzzing begins with.
DEFINITIONS = sorted((NATIVE / "fuzz/corpus/tokenizer").iterdir())

Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def core() -> Iterator[Oracle]:
    reason = oracle.missing()
    if reason is not None:
        pytest.skip(reason)
    program = Oracle(oracle.build())
    yield program
    program.close()


def ids_or_code(content: str) -> list[list[int]] | str:
    """Token ids of the texts by the Python runtime, or the code of its refusal."""
    spec = TextSpec("tokenizer.json", True, 0, False, {"short": WalkTypeSpec(0, 8)})
    try:
        ids: list[list[int]] = Tokenizer(content, spec)(TEXTS, "short").input_ids.tolist()
    except FgclipError as error:
        return error.code
    return ids


def core_ids_or_code(core: Oracle, content: str) -> list[list[int]] | str:
    """The same by the Rust core."""
    answers = [core.ask("tokenizer", content.encode(), shortest=8)]
    if not isinstance(answers[0], Refusal):
        answers = [core.ask("encode", text.encode(), lowercase=True, length=8, pad=0) for text in TEXTS]
    refused = [answer.status for answer in answers if isinstance(answer, Refusal)]
    return refused[0] if refused else [answer[0]["ids"] for answer in answers if not isinstance(answer, Refusal)]


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.name)
def test_every_place_of_a_tokenizer(core: Oracle, path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    sound = ids_or_code(json.dumps(document))
    assert not isinstance(sound, str)
    outcomes = {}
    for name, mutated in mutations(document):
        content = json.dumps(mutated)
        outcomes[name] = ids_or_code(content), core_ids_or_code(core, content)
    assert {name: both for name, both in outcomes.items() if both[0] != both[1]} == {}
    kinds = {both[0] if isinstance(both[0], str) else "accepted" for both in outcomes.values()}
    assert {"accepted", "bundle_invalid"} <= kinds


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.name)
def test_a_tokenizer_that_is_cut(core: Oracle, path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    for end in range(0, len(content), 37):
        assert ids_or_code(content[:end]) == core_ids_or_code(core, content[:end]) == "bundle_invalid"


def cut(share: float) -> Damage:
    return lambda data: data[: int(len(data) * share)]


def flipped(seed: int) -> Damage:
    """One bit anywhere."""

    def damage(data: bytes) -> bytes:
        changed, draw = bytearray(data), random.Random(seed)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    return damage


DAMAGES = {
    **{f"cut to {share:.0%}": cut(share) for share in (0, 0.01, 0.3, 0.5, 0.9, 0.999)},
    **{f"bit {seed}": flipped(seed) for seed in range(24)},
    "zeros": lambda data: bytes(len(data)),
    "twice": lambda data: data + data,
    "a tail": lambda data: data + b"\xff\xff\xff\xff",
}


def python_vectors(bundle: Path) -> np.ndarray | str:
    """The texts' vectors by the Python runtime, or the code of its refusal."""
    try:
        return fgclip_rt.load(bundle, device="cpu", threads=1).embed_texts(TEXTS)
    except FgclipError as error:
        return error.code


def native_vectors(library: Library, bundle: Path) -> np.ndarray | str:
    """The same by the C library, which prints nothing."""
    try:
        with silent():
            return library.open(bundle, threads=1).embed_texts(TEXTS)
    except NativeError as error:
        return error.code


@pytest.mark.parametrize("name", ["text.onnx", "weights.safetensors"])
def test_damaged_graphs_and_weights(library: Library, masked_bundle_path: Path, tmp_path: Path, name: str) -> None:
    data = (masked_bundle_path / name).read_bytes()
    outcomes = {}
    for number, (damage, apply) in enumerate(DAMAGES.items()):
        bundle = copied(masked_bundle_path, tmp_path / str(number))
        write(bundle / name, apply(data))
        fit_digests(bundle, name)
        outcomes[damage] = python_vectors(bundle), native_vectors(library, bundle)
    for damage, (expected, found) in outcomes.items():
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected, damage
        else:
            np.testing.assert_array_equal(found, expected, damage)
    refused = {damage for damage, (expected, _) in outcomes.items() if isinstance(expected, str)}
    assert {"cut to 0%", "cut to 50%"} <= refused
    assert len(refused) < len(DAMAGES)
