"""onnxruntime's CUDA provider on a machine that may have none: its options, its libraries, and the choice of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import fgclip_rt
from fgclip_rt.backends import onnxruntime as module
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend, open_session, preload_cuda
from fgclip_rt.bundle import Bundle
from fgclip_rt.devices import gpu_name, parse_device
from fgclip_rt.errors import ArgumentError, DeviceError
from helpers import assert_one_sentence

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """An onnxruntime that lists the CUDA provider; the calls that open sessions, as they came."""
    opened: list[Any] = []

    def session(source: object, _: object, providers: list[Any], **options: object) -> SimpleNamespace:
        opened.append((source, providers, options))
        return SimpleNamespace(get_providers=lambda: [CUDA])

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "preload_dlls", lambda: opened.append("preloaded"))
    preload_cuda.cache_clear()
    yield opened
    preload_cuda.cache_clear()


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("auto", ("auto", 0)),
        ("cpu", ("cpu", 0)),
        ("cuda", ("cuda", 0)),
        ("cuda:0", ("cuda", 0)),
        ("cuda:3", ("cuda", 3)),
    ],
)
def test_devices_by_name(name: str, parsed: tuple[str, int]) -> None:
    assert parse_device(name) == parsed
    if parsed[0] == "cuda":
        assert parse_device(gpu_name(parsed[1])) == parsed


@pytest.mark.parametrize("name", ["cuda:", "cuda:-1", "cuda:x", "cpu:1", "cuda:1:2", "", "cuda:99999", "cuda:¹"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(ArgumentError) as info:
        parse_device(name)
    assert_one_sentence(info.value, repr(name), "auto, cpu, cuda", "cuda:1")


def test_its_libraries_are_loaded_and_a_failure_is_not_replaced_by_the_cpu(
    provider: list[Any], bundle_path: Path
) -> None:
    """onnxruntime prints to standard output when it falls back, and goes on with the CPU."""
    for _ in range(2):
        open_session((bundle_path / "text.onnx").read_bytes(), 1, "cuda:2", weights=bundle_path)
    assert provider[0] == "preloaded"
    assert len(provider) == 3
    _, providers, options = provider[1]
    assert providers == [(CUDA, {"use_tf32": "0", "sdpa_kernel": "253", "device_id": "2"}), "CPUExecutionProvider"]
    assert options == {"enable_fallback": 0}
    open_session((bundle_path / "text.onnx").read_bytes(), 1, weights=bundle_path)
    assert provider[-1][1:] == (["CPUExecutionProvider"], {"enable_fallback": 0})


def test_onnxruntime_takes_the_option_that_keeps_it_from_falling_back(bundle_path: Path) -> None:
    assert open_session((bundle_path / "text.onnx").read_bytes(), 1, weights=bundle_path)._enable_fallback is False


def test_what_onnxruntime_prints_of_missing_libraries_becomes_the_reason(
    provider: list[Any], bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublasLt.so.13: no such file\nand more"))
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: SimpleNamespace(get_providers=list))
    backend = OnnxRuntimeBackend(Bundle.open(bundle_path), "fp32", "cuda")
    with pytest.raises(DeviceError) as info:
        backend.session("text")
    parts = ("libcublasLt.so.13", "onnxruntime-gpu[cuda,cudnn]", "device='cpu'")
    assert_one_sentence(info.value, *parts, code="device_missing")
    assert capsys.readouterr() == ("", "")
    assert provider == []


@pytest.mark.usefixtures("provider")
def test_a_gpu_that_is_not_there(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Fail("CUDA failure 101: invalid device ordinal ; GPU=7. More of it")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    backend = OnnxRuntimeBackend(Bundle.open(bundle_path), "fp32", "cuda:7")
    with pytest.raises(DeviceError) as info:
        backend.session("text")
    assert_one_sentence(info.value, "cuda:7", "invalid device ordinal", "nvidia-smi", code="device_failed")


def test_an_onnxruntime_that_cannot_load_them_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ort, "preload_dlls")
    preload_cuda.cache_clear()
    assert preload_cuda() == ""
    preload_cuda.cache_clear()


@pytest.mark.usefixtures("provider")
def test_auto_takes_the_gpu_that_cuda_gives_this_process(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi lists GPUs that CUDA_VISIBLE_DEVICES hides, and is missing in some containers."""
    monkeypatch.setattr("fgclip_rt.machine.nvidia_gpus", lambda: ["a GPU"])
    monkeypatch.setattr(module, "cuda_gpus", list)
    model = fgclip_rt.load(bundle_path)
    assert model.backend.device == "cpu"
    assert "gives this process no GPU" in str(model.backend)
    monkeypatch.setattr("fgclip_rt.machine.nvidia_gpus", list)
    monkeypatch.setattr(module, "cuda_gpus", lambda: ["a GPU"])
    model = fgclip_rt.load(bundle_path)
    assert model.backend.device == "cuda"
    assert model.backend.batch_size("vision", 1024) == 16
    assert model.backend.batch_size("vision", 16_384) == 1
    assert " on cuda (" in str(model.backend)
    assert " on cuda:1 (as asked)" in str(fgclip_rt.load(bundle_path, device="cuda:1").backend)


@pytest.mark.usefixtures("provider")
def test_eight_bits_without_engines_are_said_to_be_slow(pocket_path: Path) -> None:
    def described(precision: str, device: str) -> str:
        return str(fgclip_rt.load(pocket_path, device=device, precision=precision).backend)

    assert "int8 is for TensorRT, and computed in float32 here" in described("int8", "cuda")
    assert "TensorRT" not in described("fp16", "cuda")
    assert "TensorRT" not in described("int8", "cpu")
