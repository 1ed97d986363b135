"""Engines at work: inputs into page-locked memory, over the bus, through the engine and back, two at a time.

While the GPU runs one batch, the next is copied to it: each of an engine's two slots has its own memory on both sides,
and copies in either direction have streams of their own. Shapes that come again are captured as CUDA graphs. All
engines of a model run in one stream, one after another, and so in one block of memory for activations.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgclip_rt.arrays import Array
from fgclip_rt.errors import DeviceError

from .cuda import SETUP, Cuda, DeviceMemory, OutOfMemoryError, PinnedMemory
from .execution import Execution, Plan, Shape

#: Shapes of inputs whose executions a slot keeps; the one that came first goes first.
_KEPT_SHAPES = 32


@dataclass(frozen=True)
class Tensors:
    """The inputs and outputs of an engine.

    Attributes:
        dtypes: by name, of inputs and outputs.
        outputs: names of the outputs.
    """

    dtypes: Mapping[str, np.dtype[Any]]
    outputs: Sequence[str]

    def input_sizes(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Bytes of every input, when the inputs have ``shapes``."""
        return {name: math.prod(shape) * self.dtypes[name].itemsize for name, shape in shapes.items()}

    def output_sizes(self, execution: Execution) -> dict[str, int]:
        """Bytes of every output of an execution."""
        return self.input_sizes({name: execution.output_shape(name) for name in self.outputs})


class Pending:
    """Outputs on their way. Whoever first needs the outputs, or the memory they occupy, waits."""

    def __init__(self, collect: Callable[[], list[Array]]) -> None:
        self._collect: Callable[[], list[Array]] | None = collect
        self._lock = threading.Lock()
        self._outputs: list[Array] = []
        self._error: Exception | None = None

    def finish(self) -> None:
        """Wait until the outputs are here, and leave the memory that they came in."""
        with self._lock:
            if self._collect is None:
                return
            try:
                self._outputs = self._collect()
            except Exception as error:  # whoever asks for the result is told
                self._error = error
            finally:
                self._collect = None

    def result(self) -> list[Array]:
        """The outputs.

        Raises:
            DeviceError: the GPU failed.
        """
        self.finish()
        if self._error is not None:
            raise self._error
        return self._outputs


def round_up(rows: int) -> int:
    """The next number of images, texts, boxes or masks that engines run: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96 and so on.

    Every number of rows is set up once, and captured as a graph of its own, so there are few.
    """
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if power >= 32 and rows <= power * 3 // 4 else power


def round_down(rows: int) -> int:
    """The largest number of :func:`round_up` that is not above ``rows``; ``rows`` is at least one."""
    return next(smaller for smaller in range(rows, 0, -1) if round_up(smaller) == smaller)


class Workspace:
    """The part that all engines of a model share: the streams, and the memory of activations while an engine runs.

    Attributes:
        cuda: the GPU.
        lock: held while an engine is set up and its run is given to the stream :attr:`run`.
        copy_in: queue of copies to the GPU.
        run: queue of runs.
        copy_out: queue of copies to the host.
        generation: number of times that the memory was replaced. What is bound to it holds for one generation.
    """

    def __init__(self, cuda: Cuda) -> None:
        """Prepare to run engines on a GPU."""
        self.cuda = cuda
        self.lock = threading.RLock()
        self.copy_in, self.run, self.copy_out = (cuda.stream() for _ in range(3))
        self.generation = 0
        self._activations: DeviceMemory | None = None
        self._last_run = cuda.event()

    def activations(self, size: int) -> DeviceMemory:
        """Memory of at least ``size`` bytes, which later calls may replace.

        Raises:
            OutOfMemoryError: there is not that much left.
        """
        if self._activations is None or self._activations.size < size:
            self.release()
            self._activations = self.cuda.device_memory(max(1, size))
        return self._activations

    def release(self) -> None:
        """Give the memory back, once no run needs it."""
        self.cuda.record(self._last_run, self.run)
        self.cuda.wait(self._last_run)
        self._activations = None
        self.generation += 1


class Lane:
    """One engine. Safe to use from several threads, whose batches take turns."""

    def __init__(self, name: str, plan: Plan, tensors: Tensors, workspace: Workspace) -> None:
        """Prepare to run ``plan``.

        Args:
            name: of the engine, for messages.
            plan: to run.
            tensors: its inputs and outputs.
            workspace: of the GPU that the plan is on.
        """
        self._name = name
        self._plan = plan
        self._workspace = workspace
        self._lock = threading.Lock()
        self._tensors = tensors
        capture = not plan.captures_graphs
        self._slots = [_Slot(workspace, tensors, capture) for _ in range(2)]
        self._turn = 0

    def begin(self, inputs: Mapping[str, Array], shapes: Mapping[str, Shape], outputs: Sequence[str]) -> Pending:
        """Begin to run.

        Args:
            inputs: by name; each fills the first rows of its shape, and the rest of it is zero.
            shapes: of the engine's inputs.
            outputs: which to bring back.

        Raises:
            DeviceError: the GPU's memory cannot hold it, or the GPU failed.
        """
        with self._lock:
            slot = self._slots[self._turn]
            slot.drain()
            try:
                slot.stage(inputs, shapes)
                with self._workspace.lock:
                    execution = self._prepared(slot, shapes)
                    self._turn = 1 - self._turn
                    return slot.start(execution, outputs)
            except OutOfMemoryError:
                raise self._too_large(shapes) from None

    def _prepared(self, slot: _Slot, shapes: Mapping[str, Shape]) -> _Captured:
        """The slot's execution for ``shapes``, with memory for all that it needs."""
        known = slot.find(shapes)
        if known is not None:
            return known
        with SETUP:
            execution = self._plan.execution(shapes, self._workspace.run)
            slot.make_room(self._tensors.output_sizes(execution))
            return slot.keep(execution, shapes, self._workspace.activations(execution.memory))

    def _too_large(self, shapes: Mapping[str, Shape]) -> DeviceError:
        """Why these shapes do not fit, and how many rows do."""
        for slot in self._slots:
            slot.drain()
            slot.clear()
        with self._workspace.lock, SETUP:
            self._workspace.release()
            free = self._workspace.cuda.free_memory()
            rows = max(shape[0] for shape in shapes.values() if shape)
            needed = self._needed(shapes)
            fewer = (smaller for smaller in range(rows - 1, 0, -1) if round_up(smaller) == smaller)
            fits = next((smaller for smaller in fewer if self._can_hold(_with_rows(shapes, rows, smaller), free)), 0)
        remedy = (
            f"the largest batch that fits is {fits}, so pass batch_size={fits}"
            if fits
            else "not even one fits, so use fewer patches, or free memory"
        )
        return DeviceError(
            f"the GPU's memory ran out: {self._name} needs {needed / 1e9:.2f} GB for a batch of {rows}, and "
            f"{free / 1e9:.2f} GB is free; {remedy}.",
            code="out_of_memory",
        )

    def _can_hold(self, shapes: Mapping[str, Shape], free: int) -> bool:
        # A shape below the engine's profile is refused by it.
        with contextlib.suppress(Exception):
            return self._needed(shapes) <= free
        return False

    def _needed(self, shapes: Mapping[str, Shape]) -> int:
        """Bytes of the GPU that one slot takes."""
        execution = self._plan.execution(shapes, self._workspace.run)
        sizes = {**self._tensors.input_sizes(shapes), **self._tensors.output_sizes(execution)}
        return execution.memory + sum(sizes.values())


def _with_rows(shapes: Mapping[str, Shape], rows: int, fewer: int) -> dict[str, Shape]:
    """Shapes whose first axis is ``fewer`` where it was ``rows``."""
    return {name: (fewer, *shape[1:]) if shape[:1] == (rows,) else shape for name, shape in shapes.items()}


class _Captured:
    """An execution, and the CUDA graph of it once it has run."""

    def __init__(self, cuda: Cuda, execution: Execution, capture: bool) -> None:
        self._cuda = cuda
        self._execution = execution
        self._graph: Any = None
        # The first run is not captured: the library sets itself up in it.
        self._runs_until_capture = 1 if capture else -1

    def output_shape(self, name: str) -> Shape:
        return self._execution.output_shape(name)

    def enqueue(self, stream: Any) -> None:
        if self._runs_until_capture == 0:
            self._graph = self._cuda.capture(stream, lambda: self._execution.enqueue(stream))
            if self._graph is not None:
                weakref.finalize(self, self._cuda.destroy, self._graph)
        self._runs_until_capture -= 1
        if self._graph is None:
            self._execution.enqueue(stream)
        else:
            self._cuda.launch(self._graph, stream)


class _Slot:
    """Memory for one batch, on both sides of the bus."""

    def __init__(self, workspace: Workspace, tensors: Tensors, capture: bool) -> None:
        self._workspace = workspace
        self._cuda = workspace.cuda
        self._tensors = tensors
        self._capture = capture
        self._device: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, PinnedMemory] = {}
        self._executions: dict[tuple[tuple[str, Shape], ...], _Captured] = {}
        self._generation = 0
        self._copied_in, self._ran, self._copied_out = (self._cuda.event() for _ in range(3))
        self._staged = False
        self._pending: Pending | None = None

    def drain(self) -> None:
        """Wait until the memory is free again."""
        if self._pending is not None:
            self._pending.finish()
            self._pending = None
        elif self._staged:  # inputs whose run could not begin
            self._cuda.wait(self._copied_in)
        self._staged = False

    def find(self, shapes: Mapping[str, Shape]) -> _Captured | None:
        """The execution for ``shapes``, if they came before and the memory is the same."""
        self._forget_stale()
        return self._executions.get(tuple(shapes.items()))

    def keep(self, execution: Execution, shapes: Mapping[str, Shape], activations: DeviceMemory) -> _Captured:
        """Bind an execution to this slot's memory, and keep it for when the shapes come again."""
        addresses = {name: memory.address for name, memory in self._device.items()}
        execution.bind(addresses, activations.address, activations.size)
        self._forget_stale()
        while len(self._executions) >= _KEPT_SHAPES:
            self._executions.pop(next(iter(self._executions)))
        captured = _Captured(self._cuda, execution, self._capture)
        self._executions[tuple(shapes.items())] = captured
        return captured

    def _forget_stale(self) -> None:
        """Drop executions that are bound to activations which are gone."""
        if self._generation != self._workspace.generation:
            self._executions.clear()
            self._generation = self._workspace.generation

    def clear(self) -> None:
        """Give all memory back."""
        self._executions.clear()
        self._device.clear()
        self._pinned.clear()

    def make_room(self, sizes: Mapping[str, int]) -> None:
        """Take memory for those inputs or outputs that have not enough yet.

        Raises:
            OutOfMemoryError: there is not that much left.
        """
        for name, size in sizes.items():
            if name not in self._device or self._device[name].size < size:
                # They are bound to the memory that goes.
                self._executions.clear()
                for memory in (self._device, self._pinned):
                    memory.pop(name, None)
                with SETUP:
                    self._device[name] = self._cuda.device_memory(size)
                    self._pinned[name] = self._cuda.pinned_memory(size)

    def stage(self, inputs: Mapping[str, Array], shapes: Mapping[str, Shape]) -> None:
        """Begin to copy a batch to the GPU.

        Raises:
            OutOfMemoryError: there is not enough memory left.
        """
        self.make_room(self._tensors.input_sizes(shapes))
        streams = self._workspace
        for name, shape in shapes.items():
            view = self._view(name, shape)
            if inputs[name].shape != shape:
                view[...] = 0
            view[tuple(slice(size) for size in inputs[name].shape)] = inputs[name]
            self._cuda.copy_in(self._device[name], self._pinned[name], view.nbytes, streams.copy_in)
        self._cuda.record(self._copied_in, streams.copy_in)
        self._staged = True

    def start(self, execution: _Captured, outputs: Sequence[str]) -> Pending:
        """Give a run of the staged batch to the streams; the result brings the outputs back."""
        cuda, streams = self._cuda, self._workspace
        cuda.hold(streams.run, self._copied_in)
        execution.enqueue(streams.run)
        cuda.record(self._ran, streams.run)
        cuda.hold(streams.copy_out, self._ran)
        views = [self._view(name, execution.output_shape(name)) for name in outputs]
        for name, view in zip(outputs, views, strict=True):
            cuda.copy_out(self._pinned[name], self._device[name], view.nbytes, streams.copy_out)
        cuda.record(self._copied_out, streams.copy_out)

        def collect() -> list[Array]:
            cuda.wait(self._copied_out)
            return [view.copy() for view in views]

        self._pending = Pending(collect)
        return self._pending

    def _view(self, name: str, shape: Shape) -> Array:
        dtype = self._tensors.dtypes[name]
        return self._pinned[name].bytes[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
