"""Where float32 itself misses the limits, the reference in float64 decides."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from exporting import SQUARE_CHECKPOINTS, Trace, tamper
from fgclip_rt import export, parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ParityError
from fgclip_rt.export import PRECISIONS, verify_against
from fgclip_rt.export.bundle.probe import draw_image, probe_boxes, probe_masks
from fgclip_rt.export.families.base import ReferenceModel
from fgclip_rt.export.reference.float64 import Float64
from fgclip_rt.model import open_model
from fgclip_rt.preparation import preparation
from fgclip_rt.probe import Probe
from fgclip_rt.text import Tokenizer
from helpers import GOLDEN_NAMES, GOLDENS, SQUARE_NAMES, Progress

FP32 = PRECISIONS["fp32"].limits
#: A value in the residual stream; float16 ends at 65,504.
HUGE = 7e4


def load(name: str) -> ReferenceModel:
    checkpoint, files = SQUARE_CHECKPOINTS.get(name, (str(GOLDENS / name / "checkpoint"), export.LocalFiles()))
    return export.checkpoint_source(checkpoint, files=files).load()[0]


@pytest.mark.parametrize("name", [*GOLDEN_NAMES, *SQUARE_NAMES])
def test_the_exact_reference_is_the_reference_without_its_rounding(name: str) -> None:
    model = load(name)
    patches = preparation(model.image_spec)(Image.fromarray(draw_image(120, 170, 3)))
    parts = probe_boxes(patches), probe_masks(*patches.grid)
    tokens = Tokenizer(model.tokenizer_json, model.text_spec)(["a red star 红色"], "short")
    usual, text = model.image(patches, *parts), model.text(tokens, "short")
    with Float64():
        exact, exact_text = model.image(patches, *parts), model.text(tokens, "short")
    pairs = {"text": (text, exact_text)}
    pairs |= {field: (getattr(usual, field), getattr(exact, field)) for field in vars(usual)}
    for part, (rounded, unrounded) in pairs.items():
        if rounded is None:
            continue
        assert (rounded.dtype, unrounded.dtype) == (np.float32, np.float64)
        error = np.abs(rounded - unrounded).max() / np.abs(unrounded).max()
        assert 1e-9 < error < 5e-6, part

    # The same by another way: a copy of the whole model in float64. The weights themselves stay as they were.
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    model.module.double()
    np.testing.assert_allclose(model.text(tokens, "short"), exact_text, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose residual streams hold huge values from its first attention to its last MLP."""
    folder = tmp_path_factory.mktemp("huge") / "checkpoint"
    shutil.copytree(GOLDENS / "fgclip2-masked" / "checkpoint", folder)
    tensors = load_file(folder / "model.safetensors")
    for tower in ("vision_model", "text_model"):
        for layer, size in (("0.self_attn.out_proj", HUGE), ("1.mlp.fc2", -HUGE)):
            tensors[f"{tower}.encoder.layers.{layer}.bias"][::7] += size
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_beyond_float32_is_held_to_float64(huge: Path, tmp_path: Path) -> None:
    progress = Progress()
    source = export.checkpoint_source(str(huge))
    bundle = export.export(source, tmp_path / "bundle", ("fp32", "fp16"), begin=progress)
    assert {"run reference in float64", "check fp32 parity by float64"} <= set(progress.finished())

    bundle = Bundle.open(bundle.path)
    measured = bundle.manifest.parity.measured
    decided = [row for row in measured["fp32"] if row.from_exact is not None]
    assert {row.graph for row in decided} >= {"vision", "dense", "text"}
    for row in decided:
        assert row.max_error > 2e-5
        assert row.from_exact.error <= 3 * row.from_exact.reference_error
    assert {row.from_exact for row in measured["fp16"]} == {None}
    assert min(row.min_cosine for row in measured["fp16"]) >= 0.9995

    # Later checks judge by the same rule, with no torch or with the checkpoint; by the limits alone, it would fail.
    model = open_model(bundle, device="cpu")
    probe = Probe.of(bundle)
    assert all(row.passed for row in parity.check(model, probe, FP32))
    assert all(row.passed for row in parity.check(model, verify_against(bundle, str(huge)), FP32))
    alone = parity.check(model, dataclasses.replace(probe, exact=None), FP32)
    assert [row.case for row in alone if not row.passed] == [row.case for row in decided]


@pytest.mark.parametrize(("weight", "by"), [("dense.attention.out.bias", 2.0), ("pooling.out.bias", 0.1)])
def test_a_wrong_graph_is_refused_all_the_same(
    huge: Path, tmp_path: Path, quick: Trace, monkeypatch: pytest.MonkeyPatch, weight: str, by: float
) -> None:
    tamper(monkeypatch, quick, weight, by)
    with pytest.raises(ParityError, match="parity failed"):
        export.export(export.checkpoint_source(str(huge)), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_without_fp32_its_exact_results_are_not_kept(huge: Path, tmp_path: Path) -> None:
    bundle = export.export(export.checkpoint_source(str(huge)), tmp_path / "bundle", ("fp16",))
    assert bundle.manifest.parity.exact_probe is None
    assert not list(bundle.path.glob("*float64*"))
    assert Probe.of(bundle).exact is None
