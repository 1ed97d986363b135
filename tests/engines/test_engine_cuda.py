"""Calls of CUDA's runtime, and our errors for its own; the runtime is simulated, its names are real."""

from __future__ import annotations

import ctypes
import gc
import os
from types import SimpleNamespace
from typing import Any

import pytest

from fgclip_rt.engine_files import Gpu
from fgclip_rt.engines import cuda as module
from fgclip_rt.engines.cuda import Cuda, OutOfMemoryError, find_gpu
from fgclip_rt.errors import DeviceError
from helpers import assert_one_sentence

runtime = pytest.importorskip("cuda.bindings.runtime")
Status = runtime.cudaError_t


class Runtime:
    """A runtime whose calls succeed unless ``failing`` names them; it records every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, Any] = {}
        self.host = ctypes.create_string_buffer(64)
        self.results: dict[str, tuple[Any, ...]] = {
            "cudaGetDeviceCount": (1,),
            "cudaGetDeviceProperties": (SimpleNamespace(name=b"NVIDIA H200\0\0", major=9, minor=0),),
            "cudaMemGetInfo": (1000, 2000),
            "cudaMalloc": (4096,),
            "cudaHostAlloc": (ctypes.addressof(self.host),),
            "cudaStreamCreateWithFlags": ("stream",),
            "cudaEventCreateWithFlags": ("event",),
            "cudaStreamEndCapture": ("graph",),
            "cudaGraphInstantiate": ("executable",),
            "cudaGetErrorString": (b"something happened",),
        }

    def __getattr__(self, name: str) -> Any:
        real = getattr(runtime, name)
        if isinstance(real, (int, type)):  # a constant or an enumeration
            return real

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name in self.failing:
                return (self.failing[name], *[None] * len(self.results.get(name, ())))
            return (Status.cudaSuccess, *self.results.get(name, ()))

        return call

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    monkeypatch.setattr(module, "_runtime", lambda: made)
    return made


def test_the_gpu_is_named(made_up: Runtime) -> None:
    assert find_gpu() == Gpu("NVIDIA H200", "sm90")
    assert str(find_gpu()) == "NVIDIA H200 (sm90)"
    made_up.results["cudaGetDeviceCount"] = (0,)
    assert find_gpu() is None


def test_a_forked_child_gives_nothing_back(made_up: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    device, pinned = cuda.device_memory(64), cuda.pinned_memory(64)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    del device, pinned
    cuda.destroy("executable")
    gc.collect()
    assert made_up.names() == ["cudaSetDevice", "cudaMalloc", "cudaHostAlloc"]


def test_memory_goes_where_it_came_from(made_up: Runtime) -> None:
    cuda = Cuda()
    device, pinned = cuda.device_memory(64), cuda.pinned_memory(64)
    assert (device.address, device.size, cuda.free_memory()) == (4096, 64, 1000)
    pinned.bytes[:3] = [1, 2, 3]
    assert made_up.host.raw[:3] == b"\1\2\3"
    cuda.copy_in(device, pinned, 10, "stream")
    cuda.copy_out(pinned, device, 20, "stream")
    kinds = runtime.cudaMemcpyKind
    assert made_up.calls[-2:] == [
        ("cudaMemcpyAsync", 4096, pinned.address, 10, kinds.cudaMemcpyHostToDevice, "stream"),
        ("cudaMemcpyAsync", pinned.address, 4096, 20, kinds.cudaMemcpyDeviceToHost, "stream"),
    ]
    address = pinned.address
    del device, pinned
    gc.collect()
    assert {("cudaFree", 4096), ("cudaFreeHost", address)} <= set(made_up.calls)


def test_a_graph_is_captured_launched_and_given_back(made_up: Runtime) -> None:
    cuda = Cuda()
    made_up.calls.clear()
    graph = cuda.capture("stream", lambda: made_up.calls.append(("work",)))
    cuda.launch(graph, "stream")
    cuda.destroy(graph)
    assert made_up.names() == [
        "cudaStreamBeginCapture",
        "work",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
        "cudaGraphExecDestroy",
    ]


def test_what_cannot_be_captured_is_no_error(made_up: Runtime) -> None:
    cuda = Cuda()

    def refuse() -> None:
        raise DeviceError("no.")

    assert cuda.capture("stream", refuse) is None
    assert made_up.names()[-1] == "cudaStreamEndCapture"
    made_up.failing["cudaGraphInstantiate"] = Status.cudaErrorNotSupported
    assert cuda.capture("stream", lambda: None) is None


def test_errors_are_told_apart_and_forgotten(made_up: Runtime) -> None:
    cuda = Cuda()
    made_up.failing = {
        "cudaMalloc": Status.cudaErrorMemoryAllocation,
        "cudaEventSynchronize": Status.cudaErrorIllegalAddress,
    }
    with pytest.raises(OutOfMemoryError):
        cuda.device_memory(1 << 60)
    # Otherwise the next call would report the error again.
    assert made_up.names()[-1] == "cudaGetLastError"
    with pytest.raises(DeviceError) as info:
        cuda.wait(cuda.event())
    assert_one_sentence(info.value, "cudaEventSynchronize", "something happened", "nvidia-smi")


def test_events_order_streams(made_up: Runtime) -> None:
    cuda = Cuda()
    stream, event = cuda.stream(), cuda.event()
    cuda.record(event, stream)
    cuda.hold(stream, event)
    assert made_up.calls[-2:] == [("cudaEventRecord", event, stream), ("cudaStreamWaitEvent", stream, event, 0)]
