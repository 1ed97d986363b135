"""Bundles on an NVIDIA GPU, through onnxruntime's CUDA provider."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import fgclip_rt
from fgclip_rt import parity
from fgclip_rt.backends.onnxruntime import CUDA_PROVIDER, OnnxRuntimeBackend
from fgclip_rt.engines.cuda import Cuda
from fgclip_rt.machine import cuda_gpus
from fgclip_rt.probe import Probe
from helpers import embed_anew

pytestmark = [
    pytest.mark.skipif(not cuda_gpus(), reason="no NVIDIA GPU that CUDA gives this process"),
    pytest.mark.skipif(CUDA_PROVIDER not in ort.get_available_providers(), reason="no CUDA provider here"),
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
    """The comparisons of the probe that fail on the GPU; all of the export's are made."""
    model = fgclip_rt.load(path, device="cuda", precision=precision)
    probe = Probe.load(path / model.manifest.parity.probe)
    rows = parity.check(model, probe, model.manifest.parity.limits[precision])
    assert len(rows) == len(model.manifest.parity.measured["fp32"])
    assert isinstance(model.backend, OnnxRuntimeBackend)
    for graph in model.manifest.graphs:
        # A graph that the provider gave to the CPU would keep its limits too.
        assert model.backend.session(graph).get_providers()[0] == CUDA_PROVIDER
    return [row for row in rows if not row.passed]


def test_eight_bits_run_and_are_said_to_be_slow(pocket_path: Path) -> None:
    assert "int8 is for TensorRT" in str(fgclip_rt.load(pocket_path, device="cuda", precision="int8").backend)


def test_without_a_gpu_that_it_may_use_auto_takes_the_cpu(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fgclip_rt.load(bundle_path).backend.device == "cpu"


def test_memory_stays_flat_over_ten_thousand_requests_of_eight_threads(pocket_path: Path, goldens: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    model = fgclip_rt.load(pocket_path, device="cuda", precision="fp16")
    photos = sorted((goldens / "fgclip2/images").glob("*.png"))
    images = [model.embed_images([photo]) for photo in photos]
    texts = ["a red star", "a blue ring", "a green square and a small dot"]
    vectors = embed_anew(model, texts)

    def request(number: int) -> None:
        if number % 10:
            rows = 1 + number % len(texts)
            np.testing.assert_allclose(embed_anew(model, texts[:rows]), vectors[:rows], atol=5e-3)
        else:
            photo = number // 10 % len(photos)
            np.testing.assert_allclose(model.embed_images([photos[photo]]), images[photo], atol=5e-3)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(request, range(2_000)))
        before = Cuda().free_memory()
        list(threads.map(request, range(10_000)))
        assert before - Cuda().free_memory() < 64 << 20
