"""Calls of CUDA's runtime, and our errors for its own; the runtime is simulated, its names are real."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from concurrent.futures import ThreadPoolExecutor
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
            "cudaGetDevice": (0,),
            "cudaDriverGetVersion": (13000,),
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
    monkeypatch.setattr(Cuda, "_lost", {})
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
    assert made_up.names() == ["cudaGetDevice", "cudaSetDevice", "cudaMalloc", "cudaHostAlloc"]


def test_memory_goes_where_it_came_from(made_up: Runtime) -> None:
    cuda = Cuda()
    device, pinned = cuda.device_memory(64), cuda.pinned_memory(64)
    assert (device.address, device.size, cuda.free_memory()) == (4096, 64, 1000)
    pinned.bytes[:3] = [1, 2, 3]
    assert made_up.host.raw[:3] == b"\1\2\3"
    stream = cuda.stream()
    cuda.copy_in(device, pinned, 10, stream)
    cuda.copy_out(pinned, device, 20, stream)
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
    stream = cuda.stream()
    made_up.calls.clear()
    graph = cuda.capture(stream, lambda: made_up.calls.append(("work",)))
    cuda.launch(graph, stream)
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
    stream = cuda.stream()

    def refuse() -> None:
        raise DeviceError("no.")

    assert cuda.capture(stream, refuse) is None
    assert made_up.names()[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]
    for status in (Status.cudaErrorNotSupported, Status.cudaErrorMemoryAllocation):
        made_up.failing["cudaGraphInstantiate"] = status
        made_up.calls.clear()
        assert cuda.capture(stream, lambda: None) is None
        # Otherwise the graph would stay for ever.
        assert made_up.calls[-1] == ("cudaGraphDestroy", "graph")
    made_up.failing = {"cudaStreamEndCapture": Status.cudaErrorStreamCaptureInvalidated}
    assert cuda.capture(stream, lambda: None) is None


@pytest.mark.parametrize("error", [OutOfMemoryError, RuntimeError, KeyboardInterrupt])
def test_whatever_ends_a_capture_the_stream_captures_no_longer(made_up: Runtime, error: type[BaseException]) -> None:
    cuda = Cuda()
    stream = cuda.stream()

    def fail() -> None:
        raise error

    with pytest.raises(error):
        cuda.capture(stream, fail)
    assert made_up.calls[-2:] == [("cudaStreamEndCapture", "stream"), ("cudaGraphDestroy", "graph")]
    assert not module.SETUP._is_owned()


def test_nothing_else_is_set_up_during_a_capture(made_up: Runtime) -> None:  # noqa: ARG001 (the runtime)
    cuda = Cuda()

    def others() -> None:
        with ThreadPoolExecutor(1) as threads:
            assert not threads.submit(module.SETUP.acquire, False).result()

    cuda.capture(cuda.stream(), others)


def test_streams_and_events_are_given_back(made_up: Runtime) -> None:
    cuda = Cuda()
    handles = [cuda.stream(), cuda.event()]
    made_up.calls.clear()
    handles.clear()
    gc.collect()
    assert sorted(made_up.calls) == [("cudaEventDestroy", "event"), ("cudaStreamDestroy", "stream")]


def test_a_thread_that_waits_leaves_its_core_to_others(made_up: Runtime) -> None:
    """CUDA's own way of waiting is to ask again and again."""
    event = Cuda().event()
    flags = runtime.cudaEventDisableTiming | runtime.cudaEventBlockingSync
    assert made_up.calls[-1] == ("cudaEventCreateWithFlags", flags)
    assert event.raw == "event"


def test_another_gpu_is_current_for_our_work_alone(made_up: Runtime) -> None:
    made_up.results["cudaGetDeviceCount"] = (2,)
    assert find_gpu(1) == Gpu("NVIDIA H200", "sm90")
    assert made_up.calls[-1] == ("cudaGetDeviceProperties", 1)
    assert find_gpu(2) is None
    cuda = Cuda(1)
    made_up.calls.clear()
    made_up.results["cudaGetDevice"] = (0,)
    with contextlib.suppress(ValueError), cuda.current():
        assert made_up.calls[-1] == ("cudaSetDevice", 1)
        raise ValueError
    assert made_up.calls[-1] == ("cudaSetDevice", 0)


def test_a_gpu_that_failed_for_good_is_not_asked_again(made_up: Runtime) -> None:
    """After such an error CUDA answers every call with it, whatever is loaded again."""
    cuda, other = Cuda(), Cuda(1)
    memory = cuda.device_memory(64)
    made_up.failing["cudaEventSynchronize"] = Status.cudaErrorIllegalAddress
    event = cuda.event()
    for call in (lambda: cuda.wait(event), lambda: cuda.device_memory(1), Cuda):
        with pytest.raises(DeviceError) as info:
            call()
        assert_one_sentence(info.value, "cudaEventSynchronize", "restart the process", code="device_lost")
    made_up.calls.clear()
    del memory
    gc.collect()
    assert made_up.calls == []
    assert other.driver() == 13000


def test_errors_are_told_apart_and_forgotten(made_up: Runtime) -> None:
    cuda = Cuda()
    made_up.failing = {
        "cudaMalloc": Status.cudaErrorMemoryAllocation,
        "cudaEventSynchronize": Status.cudaErrorNotReady,
    }
    with pytest.raises(OutOfMemoryError):
        cuda.device_memory(1 << 60)
    # Otherwise the next call would report the error again.
    assert made_up.names()[-1] == "cudaGetLastError"
    with pytest.raises(DeviceError) as info:
        cuda.wait(cuda.event())
    assert_one_sentence(info.value, "cudaEventSynchronize", "something happened", "nvidia-smi", code="device_failed")


def test_events_order_streams(made_up: Runtime) -> None:
    cuda = Cuda()
    stream, event = cuda.stream(), cuda.event()
    cuda.record(event, stream)
    cuda.hold(stream, event)
    assert made_up.calls[-2:] == [
        ("cudaEventRecord", event.raw, stream.raw),
        ("cudaStreamWaitEvent", stream.raw, event.raw, 0),
    ]
