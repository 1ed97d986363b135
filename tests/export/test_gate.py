"""A gate on answers: precisions that find a user's pairs, and those that do not and are refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporting import hasten, unused_source
from fgclip_rt import export
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError
from fgclip_rt.evaluation.running import Rate
from fgclip_rt.export import Gate
from fgclip_rt.model import Model, load
from helpers import GOLDENS, assert_one_sentence, error_of, picture, run_command

CHECKPOINT = str(GOLDENS / "fgclip2-masked" / "checkpoint")


def rate(name: str, right: int, total: int) -> Rate:
    return Rate(name, np.arange(total) < right, 0.0, 1.0)


@pytest.fixture(scope="module")
def pairs(masked_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that the golden checkpoint finds in fp32: for each of eight pictures the text that is nearest to it."""
    folder = tmp_path_factory.mktemp("pairs")
    files = [folder / f"{seed}.png" for seed in range(8)]
    for seed, file in enumerate(files):
        Image.fromarray(picture(60 + 10 * seed, 90, seed)).save(file)
    model = load(masked_bundle_path)
    texts = [f"{word} {number}" for word in ("a cat", "two DOGS", "黑猫", "naïve") for number in range(10)]
    cosines = model.embed_texts(texts) @ model.embed_images(files).T
    # A text whose nearest picture is this one, so that it is found by it.
    own = np.where(cosines == cosines.max(axis=1, keepdims=True), cosines, -np.inf).argmax(axis=0)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        writer.writerows([path.name, texts[row]] for path, row in zip(files, own, strict=True))
    return folder / "pairs.csv"


@pytest.mark.parametrize(
    ("max_loss", "after", "refused"),
    [(0.5, 199, False), (0.5, 198, True), (0.0, 200, False), (0.0, 199, True), (1.5, 197, False), (1.4, 197, True)],
)
def test_a_loss_of_the_limit_is_allowed_and_one_over_it_is_not(max_loss: float, after: int, refused: bool) -> None:
    gate = Gate(Path("pairs.csv"), None, None, max_loss)
    # Another figure's gain makes up for nothing.
    before = [rate("a R@1", 100, 200), rate("b R@1", 200, 200)]
    found = [rate("a R@1", 150, 200), rate("b R@1", after, 200)]
    reason = gate.judge("int8", before, found)
    assert (reason is not None) is refused
    if reason is not None:
        for part in ("int8", "b R@1", "pairs.csv", f"{after / 200:.1%}", "100.0%", f"{(200 - after) / 2:.2f} points"):
            assert part in reason
        assert f"--max-loss allows {max_loss:g}" in reason


def test_texts_that_are_all_alike_are_found_by_no_image(pairs: Path, masked_bundle_path: Path) -> None:
    model = load(masked_bundle_path)
    gate = Gate.read(pairs)
    names = [rate.name for rate in gate.answers(model)]
    assert names == [f"{way} R@{k}" for way in ("image to text", "text to image") for k in (1, 5, 10)]
    alike = np.ones((1, model.dim), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "embed_texts", lambda _, texts, *__: np.repeat(alike, len(texts), 0))
        # Ten of eight are all. A text finds the pictures that all texts find.
        assert [rate.right for rate in gate.answers(model)] == [0, 0, 8, 1, 5, 8]


def test_a_precision_that_answers_as_well_passes(
    pairs: Path, masked_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch, masked_bundle_path)
    precisions = ("--precision", "fp32", "--precision", "fp16")
    words = ("export", "--model", CHECKPOINT, "--output", tmp_path / "bundle", *precisions)
    printed = run_command(*words, "--gate", pairs, "--max-loss", 0).stdout
    assert re.search(r"    answers: .* R@\d+ is (.*%), and \1 in fp32; no other figure of --gate loses more\n", printed)
    assert Bundle.open(tmp_path / "bundle").manifest.precisions == ("fp32", "fp16")


def test_a_precision_that_answers_worse_is_refused_and_the_others_are_kept(
    pairs: Path, masked_bundle_path: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cosines pass; its answers are another model's."""
    hasten(monkeypatch, masked_bundle_path)
    monkeypatch.setattr("fgclip_rt.export.pipeline.as_on_a_gpu", lambda *_: load(bundle_path))
    words = (
        "export",
        "--model",
        CHECKPOINT,
        "--output",
        tmp_path / "bundle",
        "--precision",
        "fp32",
        "--precision",
        "fp16",
    )
    result = run_command(*words, "--gate", pairs, "--max-loss", 20, "--json", status=1)
    answer = json.loads(result.stdout)
    assert (answer["precisions"], answer["error"]["code"]) == (["fp32"], "precision_refused")
    assert all(row["passed"] for row in answer["refused"]["fp16"])
    message = answer["error"]["message"]
    assert_one_sentence(message, "fp16 was refused: its ", " on ", "that of fp32", "--max-loss allows 20", "fp32 only")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.precisions == ("fp32",)
    assert not [name for name in bundle.manifest.files if "fp16" in name]


def test_boxes_are_pairs_too(pairs: Path, bundle_path: Path, tmp_path: Path) -> None:
    boxed = tmp_path / "boxed.csv"
    boxed.write_text(f'image,text,box\n{pairs.parent}/0.png,a,"0,0,40,40"\n{pairs.parent}/1.png,b,"9,9,60,60"\n')
    rates = Gate.read(boxed).answers(load(bundle_path))
    assert [(rate.name, rate.total) for rate in rates] == [(f"region top-{k}", 2) for k in (1, 5, 10)]


@pytest.mark.parametrize("max_loss", [-0.1, 100, float("nan")])
def test_a_limit_that_is_no_loss_is_refused(pairs: Path, max_loss: float) -> None:
    with pytest.raises(ArgumentError) as refused:
        Gate.read(pairs, max_loss)
    assert_one_sentence(refused.value, "--max-loss is", "0 to 100")


def test_a_gate_without_a_lower_precision_is_refused_before_any_work(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a gate"):
        export.export(unused_source(), tmp_path / "bundle", ("fp32",), gate=Gate.read(pairs))
    words = ("export", "--model", CHECKPOINT, "--output", tmp_path / "bundle", "--precision", "fp16")
    assert "--max-loss goes with" in error_of(*words, "--max-loss", 1)
    assert "gone.csv" in error_of(*words, "--gate", "gone.csv")
    assert not (tmp_path / "bundle").exists()
