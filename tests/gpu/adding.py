"""An engine without TensorRT: two kernels that double numbers and add rows, on a GPU or on one that is simulated.

The first kernel writes its result to the memory for activations and the second reads it there, so a run that is given
another's memory, or that begins too early, gives wrong sums.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from fake_gpu import FakeCuda

from fgclip_rt.engines.execution import Shape
from fgclip_rt.engines.lane import Tensors

#: The input float32 [B, N] and the outputs: twice the input, and the sums of its rows, float32 [B].
INPUT, DOUBLED, SUMS = "numbers", "doubled", "sums"
TENSORS = Tensors({name: np.dtype(np.float32) for name in (INPUT, DOUBLED, SUMS)}, [DOUBLED, SUMS])

SOURCE = """
extern "C" __global__ void twice(const float *numbers, float *scratch, int size, long long clocks) {
    long long start = clock64();
    while (clock64() - start < clocks) {}
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < size) scratch[index] = 2 * numbers[index];
}

extern "C" __global__ void add(const float *scratch, float *doubled, float *sums, int rows, int columns) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float sum = 0;
    for (int column = 0; column < columns; ++column) {
        float value = scratch[row * columns + column];
        doubled[row * columns + column] = value;
        sum += value / 2;
    }
    sums[row] = sum;
}
"""


class Kernels(Protocol):
    """The two kernels."""

    def enqueue(self, numbers: int, scratch: int, doubled: int, sums: int, shape: Shape, stream: Any) -> None:
        """Give both kernels to ``stream``; the tensors are given by their addresses."""


def compile_kernels() -> bytes:
    """The kernels in PTX for the oldest GPUs that NVRTC knows, whose drivers compile it for newer ones."""
    from cuda.bindings import nvrtc

    (architectures,) = checked(nvrtc.nvrtcGetSupportedArchs())
    (program,) = checked(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"adding.cu", 0, [], []))
    checked(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=compute_{architectures[0]}".encode()]))
    (size,) = checked(nvrtc.nvrtcGetPTXSize(program))
    ptx = b" " * size
    checked(nvrtc.nvrtcGetPTX(program, ptx))
    return ptx


def checked(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """The results of a call of cuda-bindings, which must have worked."""
    status, *results = answer
    assert int(status) == 0, status
    return tuple(results)


class NvidiaKernels:
    """The kernels on the current GPU.

    Attributes:
        clocks: clocks of the GPU that each run takes at least.
    """

    def __init__(self, ptx: bytes) -> None:
        from cuda.bindings import driver, runtime

        self.clocks = 0
        self._driver = driver
        checked(runtime.cudaFree(0))  # makes the context that the module goes into
        (self._module,) = checked(driver.cuModuleLoadData(ptx))
        self._twice, self._add = (
            checked(driver.cuModuleGetFunction(self._module, name))[0] for name in (b"twice", b"add")
        )

    def enqueue(self, numbers: int, scratch: int, doubled: int, sums: int, shape: Shape, stream: Any) -> None:
        rows, columns = shape
        pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
        size = rows * columns
        self._launch(self._twice, size, (numbers, scratch, size, self.clocks), (pointer, pointer, number, long), stream)
        values = (scratch, doubled, sums, rows, columns)
        self._launch(self._add, rows, values, (pointer, pointer, pointer, number, number), stream)

    def _launch(
        self, function: Any, threads: int, values: tuple[int, ...], types: tuple[type, ...], stream: Any
    ) -> None:
        blocks = -(-threads // 128)
        checked(self._driver.cuLaunchKernel(function, blocks, 1, 1, 128, 1, 1, 0, int(stream), (values, types), 0))


class SimulatedKernels:
    """The kernels on a simulated GPU."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def enqueue(self, numbers: int, scratch: int, doubled: int, sums: int, shape: Shape, stream: Any) -> None:
        def at(address: int, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
            return self._cuda.at(address)[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)

        def twice() -> None:
            at(scratch, *shape)[...] = 2 * at(numbers, *shape)

        def add() -> None:
            at(doubled, *shape)[...] = at(scratch, *shape)
            at(sums, shape[0])[...] = at(scratch, *shape).sum(1) / 2

        self._cuda.do(stream, twice)
        self._cuda.do(stream, add)


class AddingPlan:
    """The kernels as a plan.

    Attributes:
        executions: number of executions that were made.
        enqueued: number of times that the kernels were given to a stream, captures included.
        extra: bytes of activations beyond those that the kernels use.
    """

    captures_graphs = False

    def __init__(self, kernels: Kernels, extra: int = 0) -> None:
        self.kernels = kernels
        self.extra = extra
        self.executions = 0
        self.enqueued = 0

    def execution(self, shapes: Mapping[str, Shape], stream: Any) -> AddingExecution:  # noqa: ARG002 (nothing to set up)
        self.executions += 1
        return AddingExecution(self, shapes[INPUT])


class AddingExecution:
    """The kernels for one shape."""

    def __init__(self, plan: AddingPlan, shape: Shape) -> None:
        self._plan, self._shape = plan, shape

    @property
    def memory(self) -> int:
        return 4 * int(np.prod(self._shape)) + self._plan.extra * self._shape[0]

    def output_shape(self, name: str) -> Shape:
        return self._shape if name == DOUBLED else self._shape[:1]

    def bind(self, addresses: Mapping[str, int], memory: int, size: int) -> None:
        assert size >= self.memory
        self._arguments = (addresses[INPUT], memory, addresses[DOUBLED], addresses[SUMS])

    def enqueue(self, stream: Any) -> None:
        self._plan.enqueued += 1
        self._plan.kernels.enqueue(*self._arguments, self._shape, stream)
