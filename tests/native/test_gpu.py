"""Devices of the C library: what is refused on a machine without a GPU, and what runs on one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import fgclip_rt
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import NativeError
from fgclip_rt.machine import cuda_gpus
from fgclip_rt.native.library import DEVICES, Library
from helpers import picture

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def lacks(device: str) -> str:
    """Why a device cannot run here; empty if it can."""
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {PROVIDERS[device]}"
    return "" if cuda_gpus() else "CUDA gives this process no GPU"


@pytest.mark.parametrize("device", PROVIDERS)
def test_a_device_that_is_missing_is_refused(library: Library, shipped_path: Path, device: str) -> None:
    if not lacks(device):
        pytest.skip("the device is there")
    with pytest.raises(NativeError, match=rf"device '{device}' .*; .*or use device 'cpu'") as caught:
        library.open(shipped_path, device=DEVICES[device])
    assert caught.value.code == "device_missing"


def test_auto_says_why_it_took_the_cpu(library: Library, shipped_path: Path) -> None:
    if not lacks("cuda"):
        pytest.skip("there is a GPU")
    native = library.open(shipped_path, device=DEVICES["auto"])
    device = native.json("runtime_info")["device"]
    assert (device["name"], device["number"]) == ("cpu", None)
    assert "CUDA" in device["why"]
    native.close()


@pytest.mark.parametrize("device", PROVIDERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_vectors_of_a_gpu_are_near(library: Library, pocket_path: Path, device: str, precision: str) -> None:
    if reason := lacks(device):
        pytest.skip(reason)
    native = library.open(pocket_path, device=DEVICES[device], precision=precision)
    info = native.json("runtime_info")
    assert info["device"]["name"] == device
    assert info["device"]["why"].startswith("as asked")
    expected = fgclip_rt.load(pocket_path, device="cpu", precision="fp32")
    images = [picture(height, width, height) for height, width in ((40, 90), (300, 200), (61, 61))]
    for found, wanted in (
        (native.embed_images(images), expected.embed_images(images)),
        (native.embed_texts(["a cat", "一只黑猫"]), expected.embed_texts(["a cat", "一只黑猫"])),
        (native.dense(images[0]), expected.dense(images[0]).features()),
    ):
        assert (found * wanted).sum(-1).min() > (0.999999 if precision == "fp32" else 0.9995)
    native.close()


def test_ep_context_models_are_run(library: Library, pocket_path: Path, tmp_path: Path) -> None:
    if reason := lacks("tensorrt"):
        pytest.skip(reason)
    from fgclip_rt.engines import Shapes, build

    bundle = tmp_path / "bundle"
    shutil.copytree(pocket_path, bundle)
    native = library.open(bundle, device=DEVICES["tensorrt"])
    assert native.json("runtime_info")["engines"] == []
    assert "the bundle has no EP-context models" in native.json("runtime_info")["device"]["why"]
    native.close()
    shapes = Shapes(buckets=[256], text_lengths=[64])
    build(Bundle.open(bundle), "onnxruntime-tensorrt", ["fp32"], graphs=["vision", "text"], shapes=shapes)
    native = library.open(bundle, device=DEVICES["tensorrt"])
    assert len(native.json("runtime_info")["engines"]) == 2
    expected = fgclip_rt.load(pocket_path, device="cpu")
    # The last one is of another bucket, so that the graph itself runs it.
    images = [picture(height, width, height) for height, width in ((250, 250), (240, 250), (40, 90))]
    for count in (1, 3):
        vectors = native.embed_images(images[:count])
        assert (vectors * expected.embed_images(images[:count])).sum(-1).min() > 0.99999
    np.testing.assert_allclose(native.embed_texts(["a cat"]), expected.embed_texts(["a cat"]), atol=1e-4)
    native.close()
