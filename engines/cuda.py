"""The part of CUDA that engines need, over cuda-bindings: the GPU, memory, streams, events and graphs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fgclip_rt.arrays import ByteArray
from fgclip_rt.engine_files import Gpu
from fgclip_rt.errors import DeviceError, MissingDependencyError
from fgclip_rt.machine import nvidia_gpus


class OutOfMemoryError(Exception):
    """The GPU, or the page-locked memory of the host, has not that many bytes left."""


def find_gpu() -> Gpu | None:
    """The GPU that CUDA takes first, by CUDA_VISIBLE_DEVICES if that is set; None if there is none.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        DeviceError: there is one that CUDA cannot use, as when its driver is too old.
    """
    runtime = _runtime()
    status, count = runtime.cudaGetDeviceCount()
    if status == runtime.cudaError_t.cudaSuccess and count:
        status, properties = runtime.cudaGetDeviceProperties(0)
        if status == runtime.cudaError_t.cudaSuccess:
            name = properties.name.split(b"\0")[0].decode()
            return Gpu(name, f"sm{properties.major}{properties.minor}")
    # CUDA says of a machine with no driver at all that its driver is too old.
    if gpus := nvidia_gpus():
        text = runtime.cudaGetErrorString(status)[1].decode()
        raise DeviceError(
            f"CUDA cannot use {gpus[0]} ({text}); update its driver or install the cuda-bindings of an older CUDA, and "
            "look at CUDA_VISIBLE_DEVICES."
        )
    return None


class Cuda:
    """CUDA's runtime, whose calls work or raise. Handles are those of cuda-bindings, addresses are numbers."""

    def __init__(self) -> None:
        """Take the first GPU.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            DeviceError: there is no GPU, or no driver.
        """
        self._runtime = _runtime()
        self._process = os.getpid()
        self._call("cudaSetDevice", 0)

    def free_memory(self) -> int:
        """Bytes that the GPU has left."""
        return int(self._call("cudaMemGetInfo")[0])

    def device_memory(self, size: int) -> DeviceMemory:
        """Memory of the GPU.

        Raises:
            OutOfMemoryError: there is not that much left.
        """
        (address,) = self._call("cudaMalloc", size)
        return DeviceMemory(int(address), size, lambda: self._free("cudaFree", int(address)))

    def pinned_memory(self, size: int) -> PinnedMemory:
        """Memory of the host that the GPU reads and writes by itself.

        Raises:
            OutOfMemoryError: there is not that much left.
        """
        (address,) = self._call("cudaHostAlloc", size, 0)
        return PinnedMemory(int(address), size, lambda: self._free("cudaFreeHost", int(address)))

    def stream(self) -> Any:
        """A new stream, which does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)[0]

    def event(self) -> Any:
        """A new event, which keeps no time."""
        return self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)[0]

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size: int, stream: Any) -> None:
        """Copy the first ``size`` bytes to the GPU, in the order of ``stream``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target.address, source.address, size, kind, stream)

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size: int, stream: Any) -> None:
        """Copy the first ``size`` bytes from the GPU, in the order of ``stream``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.address, source.address, size, kind, stream)

    def record(self, event: Any, stream: Any) -> None:
        """Have ``event`` stand for all that ``stream`` was given so far."""
        self._call("cudaEventRecord", event, stream)

    def hold(self, stream: Any, event: Any) -> None:
        """Have all work that ``stream`` is given from now on wait for ``event``."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def wait(self, event: Any) -> None:
        """Wait for ``event``; other threads go on."""
        self._call("cudaEventSynchronize", event)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """The work that ``enqueue`` gives to ``stream``, as a graph to launch; None if it cannot be captured."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except DeviceError:
            with contextlib.suppress(DeviceError):
                self._call("cudaStreamEndCapture", stream)
            return None
        try:
            (graph,) = self._call("cudaStreamEndCapture", stream)
            (executable,) = self._call("cudaGraphInstantiate", graph, 0)
            self._call("cudaGraphDestroy", graph)
        except DeviceError:
            return None
        return executable

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a captured graph, in the order of ``stream``."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy(self, graph: Any) -> None:
        """Give a captured graph back."""
        self._free("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._runtime, name)(*arguments)
        if status == self._runtime.cudaError_t.cudaSuccess:
            return tuple(results)
        # Else the next call would report this one's error.
        self._runtime.cudaGetLastError()
        if status == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise OutOfMemoryError
        text = self._runtime.cudaGetErrorString(status)[1].decode()
        raise DeviceError(
            f"{name} failed ({text}); check the GPU and its driver with nvidia-smi, and load the model again."
        )

    def _free(self, name: str, handle: Any) -> None:
        # A forked child has no part of the GPU, and finalizers run in it too as it ends.
        if os.getpid() != self._process:
            return
        # A GPU that has failed has nothing to give back.
        with contextlib.suppress(DeviceError, OutOfMemoryError):
            self._call(name, handle)


class DeviceMemory:
    """Memory of the GPU, given back with the object."""

    def __init__(self, address: int, size: int, free: Callable[[], None]) -> None:
        """Take charge of ``size`` bytes at ``address``; ``free`` gives them back."""
        self.address = address
        self.size = size
        weakref.finalize(self, free)


class PinnedMemory(DeviceMemory):
    """Page-locked memory of the host, given back with the object."""

    @property
    def bytes(self) -> ByteArray:
        """All of it, uint8 [size]; not to be kept longer than the object."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "cuda-bindings is not installed; run pip install 'fgclip-rt[tensorrt]' or 'fgclip-rt[tensorrt-rtx]'."
        ) from None
    return runtime
