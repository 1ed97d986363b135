"""The part of CUDA that engines need, over cuda-bindings: the GPU, memory, streams, events and graphs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from fgclip_rt.arrays import ByteArray
from fgclip_rt.engine_files import Gpu
from fgclip_rt.errors import DeviceError, MissingDependencyError
from fgclip_rt.machine import nvidia_gpus

#: Held while a graph is captured, and while a library loads plans or sets them up. These may wait for all work of the
#: GPU, which CUDA forbids in one thread while another captures: either call would fail.
SETUP = threading.RLock()

#: Errors after which CUDA refuses this process every call.
_FATAL = (
    "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorMisalignedAddress",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorHardwareStackError",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorAssert",
    "cudaErrorECCUncorrectable",
    "cudaErrorNvlinkUncorrectable",
    "cudaErrorContained",
    "cudaErrorExternalDevice",
    "cudaErrorMpsClientTerminated",
)


class OutOfMemoryError(Exception):
    """The GPU, or the page-locked memory of the host, has not that many bytes left."""


def find_gpu(index: int = 0) -> Gpu | None:
    """A GPU, counted as CUDA counts them, by CUDA_VISIBLE_DEVICES if that is set; None if there are not so many.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        DeviceError: there is one that CUDA cannot use, as when its driver is too old.
    """
    runtime = _runtime()
    status, count = runtime.cudaGetDeviceCount()
    if status == runtime.cudaError_t.cudaSuccess and count:
        if index >= count:
            return None
        status, properties = runtime.cudaGetDeviceProperties(index)
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


class Handle:
    """A stream or an event of CUDA, given back with the object."""

    def __init__(self, raw: Any, destroy: Callable[[], None]) -> None:
        """Take charge of ``raw``, a handle of cuda-bindings; ``destroy`` gives it back."""
        self.raw = raw
        weakref.finalize(self, destroy)

    def __int__(self) -> int:
        """The handle as a number, as TensorRT takes streams."""
        return int(self.raw)


class Cuda:
    """One GPU through CUDA's runtime, whose calls work or raise. Addresses are numbers.

    Whatever makes memory, streams, events or graphs, or gives them work, is called under :meth:`current`.
    """

    #: By GPU, the error after which this process reaches it no more.
    _lost: ClassVar[dict[int, str]] = {}

    def __init__(self, index: int = 0) -> None:
        """Take a GPU, counted as CUDA counts them. The caller's own current GPU stays what it is.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            DeviceError: there is no such GPU, or no driver.
        """
        self._runtime = _runtime()
        self._process = os.getpid()
        self._index = index
        with self.current():
            pass

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU the current one of this thread, and the one that was so again when the block ends."""
        (before,) = self._call("cudaGetDevice")
        self._call("cudaSetDevice", self._index)
        try:
            yield
        finally:
            if before != self._index:
                self._free("cudaSetDevice", before)

    def driver(self) -> int:
        """The version of CUDA that the driver is made for, such as 13000."""
        return int(self._call("cudaDriverGetVersion")[0])

    def free_memory(self) -> int:
        """Bytes that the GPU has left."""
        with self.current():
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

    def stream(self) -> Handle:
        """A new stream, which does not wait for the default one."""
        (raw,) = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return Handle(raw, lambda: self._free("cudaStreamDestroy", raw))

    def event(self) -> Handle:
        """A new event, which keeps no time. A thread that waits for it sleeps, so that others have its core."""
        flags = self._runtime.cudaEventDisableTiming | self._runtime.cudaEventBlockingSync
        (raw,) = self._call("cudaEventCreateWithFlags", flags)
        return Handle(raw, lambda: self._free("cudaEventDestroy", raw))

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size: int, stream: Handle) -> None:
        """Copy the first ``size`` bytes to the GPU, in the order of ``stream``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target.address, source.address, size, kind, stream.raw)

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size: int, stream: Handle) -> None:
        """Copy the first ``size`` bytes from the GPU, in the order of ``stream``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.address, source.address, size, kind, stream.raw)

    def record(self, event: Handle, stream: Handle) -> None:
        """Have ``event`` stand for all that ``stream`` was given so far."""
        self._call("cudaEventRecord", event.raw, stream.raw)

    def hold(self, stream: Handle, event: Handle) -> None:
        """Have all work that ``stream`` is given from now on wait for ``event``."""
        self._call("cudaStreamWaitEvent", stream.raw, event.raw, 0)

    def wait(self, event: Handle) -> None:
        """Wait for ``event``; other threads go on."""
        self._call("cudaEventSynchronize", event.raw)

    def capture(self, stream: Handle, enqueue: Callable[[], None]) -> Any:
        """The work that ``enqueue`` gives to ``stream``, as a graph to launch; None if it cannot be captured."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with SETUP:
            self._call("cudaStreamBeginCapture", stream.raw, mode)
            try:
                enqueue()
            except BaseException as error:
                # Otherwise the stream would capture for ever.
                self._free("cudaGraphDestroy", self._end_capture(stream))
                if isinstance(error, DeviceError):
                    return None
                raise
            graph = self._end_capture(stream)
            if graph is None:
                return None
            try:
                (executable,) = self._call("cudaGraphInstantiate", graph, 0)
            except (DeviceError, OutOfMemoryError):
                return None
            finally:
                self._free("cudaGraphDestroy", graph)
            return executable

    def launch(self, graph: Any, stream: Handle) -> None:
        """Run a captured graph, in the order of ``stream``."""
        self._call("cudaGraphLaunch", graph, stream.raw)

    def destroy(self, graph: Any) -> None:
        """Give a captured graph back."""
        self._free("cudaGraphExecDestroy", graph)

    def _end_capture(self, stream: Handle) -> Any:
        """The graph of a capture that ends here; None if there is none."""
        try:
            return self._call("cudaStreamEndCapture", stream.raw)[0]
        except (DeviceError, OutOfMemoryError):
            return None

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        if self._index in self._lost:
            raise _device_lost(self._lost[self._index])
        status, *results = getattr(self._runtime, name)(*arguments)
        errors = self._runtime.cudaError_t
        if status == errors.cudaSuccess:
            return tuple(results)
        # Else the next call would report this one's error.
        self._runtime.cudaGetLastError()
        if status == errors.cudaErrorMemoryAllocation:
            raise OutOfMemoryError
        text = self._runtime.cudaGetErrorString(status)[1].decode()
        if status in [getattr(errors, fatal) for fatal in _FATAL if hasattr(errors, fatal)]:
            self._lost[self._index] = f"{name} failed: {text}"
            raise _device_lost(self._lost[self._index])
        raise DeviceError(
            f"{name} failed ({text}); check the GPU and its driver with nvidia-smi, and load the model again."
        )

    def _free(self, name: str, handle: Any) -> None:
        # A forked child has no part of the GPU, and finalizers run in it too as it ends.
        if os.getpid() != self._process:
            return
        # A GPU that has failed has nothing to give back.
        if handle is not None:
            with contextlib.suppress(DeviceError, OutOfMemoryError):
                self._call(name, handle)


def _device_lost(why: str) -> DeviceError:
    return DeviceError(
        f"the GPU failed in a way that CUDA does not recover from in a running process ({why}); restart the process, "
        "and check the GPU with nvidia-smi.",
        code="device_lost",
    )


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
