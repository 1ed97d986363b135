"""Bundles on an NVIDIA GPU, through onnxruntime's CUDA provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import fgclip_rt
from fgclip_rt import parity
from fgclip_rt.machine import nvidia_gpus
from fgclip_rt.probe import Probe

pytestmark = [
    pytest.mark.skipif(not nvidia_gpus(), reason="no NVIDIA GPU on this machine"),
    pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDA provider here"),
]


def test_the_probe_keeps_its_limits(bundle_path: Path, masked_bundle_path: Path) -> None:
    for path in (bundle_path, masked_bundle_path):
        assert failures(path, "fp32") == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_keep_their_limits(pocket_path: Path, precision: str) -> None:
    assert failures(pocket_path, precision) == []


def test_auto_takes_the_gpu_and_says_so(bundle_path: Path, goldens: Path) -> None:
    model = fgclip_rt.load(bundle_path)
    assert model.backend.device == "cuda"
    assert "GPU" in str(model.backend)
    photo = goldens / "fgclip2/images/1_chelsea_451x300.png"
    expected = fgclip_rt.load(bundle_path, device="cpu").embed_images([photo])
    np.testing.assert_allclose(model.embed_images([photo]), expected, atol=1e-4)


def failures(path: Path, precision: str) -> list[object]:
    model = fgclip_rt.load(path, device="cuda", precision=precision)
    probe = Probe.load(path / model.manifest.parity.probe)
    return [row for row in parity.check(model, probe, model.manifest.parity.limits[precision]) if not row.passed]
