"""A simulated GPU with NumPy's memory and onnxruntime's engines. It delays and reorders work as far as streams allow.

Streams do no work until somebody waits for an event. They then go on in a random order, so work that no stream or
event orders will sooner or later be done in the wrong order. Memory that was given back is gone, and new memory holds
rubbish.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import RECIPE, Engine, EngineKey, EngineRecord, Gpu, Library
from fgclip_rt.engines.cuda import SETUP, DeviceMemory, OutOfMemoryError, PinnedMemory
from fgclip_rt.engines.execution import Shape
from fgclip_rt.engines.profiles import EngineSpec
from fgclip_rt.errors import EngineError

Array = np.ndarray[Any, Any]
GPU = Gpu("Test GPU", "sm89")
LIBRARY = Library("tensorrt-rtx", "1.2.3")


def _held(lock: Any) -> bool:
    """Whether this thread holds a lock that it may take twice."""
    return bool(lock._is_owned())


class FakePinned(PinnedMemory):
    """Page-locked memory that is an array."""

    def __init__(self, array: Array, free: Callable[[], None]) -> None:
        super().__init__(0, array.nbytes, free)
        self._array = array

    @property
    def bytes(self) -> Array:
        return self._array


class FakeCuda:
    """The part of CUDA that engines need.

    Attributes:
        capacity: bytes of the GPU.
        used: bytes that are taken.
        launched: number of graphs that were launched.
        executions: number of executions that plans were asked for.
        activations: bytes of the activations that executions were bound to, in their order.
    """

    def __init__(self, seed: int = 0, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.used = 0
        self.launched = 0
        self.executions = 0
        self.activations: list[int] = []
        self._current = threading.local()
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._numbers = count(1)
        self._memory: dict[int, Array] = {}
        #: Pending work of each stream: a function to run, an event's ticket to mark as done, or a ticket to wait for.
        self._streams: dict[int, list[tuple[str, Any]]] = {}
        self._tickets: dict[int, int] = {}
        self._done: set[int] = set()

    @contextmanager
    def current(self) -> Iterator[None]:
        """As :meth:`Cuda.current`: whatever follows fails outside of it."""
        self._current.depth = getattr(self._current, "depth", 0) + 1
        try:
            yield
        finally:
            self._current.depth -= 1

    def _check_current(self) -> None:
        assert getattr(self._current, "depth", 0), "another GPU may be the current one"

    def free_memory(self) -> int:
        return self.capacity - self.used

    def device_memory(self, size: int) -> DeviceMemory:
        self._check_current()
        with self._lock:
            if self.used + size > self.capacity:
                raise OutOfMemoryError
            self.used += size
            address = next(self._numbers)
            self._memory[address] = np.full(size, 0xAB, np.uint8)
        return DeviceMemory(address, size, lambda: self._free(address))

    def pinned_memory(self, size: int) -> PinnedMemory:
        self._check_current()
        return FakePinned(np.full(size, 0xCD, np.uint8), lambda: None)

    def stream(self) -> int:
        self._check_current()
        with self._lock:
            stream = next(self._numbers)
            self._streams[stream] = []
            return stream

    def event(self) -> int:
        self._check_current()
        return next(self._numbers)

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size: int, stream: int) -> None:
        to, array = target.address, source.bytes
        self.do(stream, lambda: self.at(to).__setitem__(slice(size), array[:size]))

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size: int, stream: int) -> None:
        array, origin = target.bytes, source.address
        self.do(stream, lambda: array.__setitem__(slice(size), self.at(origin)[:size]))

    def record(self, event: int, stream: int) -> None:
        with self._lock:
            self._tickets[event] = next(self._numbers)
            self._streams[stream].append(("done", self._tickets[event]))

    def hold(self, stream: int, event: int) -> None:
        with self._lock:
            self._streams[stream].append(("wait", self._tickets[event]))

    def wait(self, event: int) -> None:
        with self._lock:
            while self._tickets[event] not in self._done:
                self._step()

    def capture(self, stream: int, enqueue: Callable[[], None]) -> list[tuple[str, Any]]:
        self._check_current()
        with SETUP, self._lock:
            before, self._streams[stream] = self._streams[stream], []
            enqueue()
            graph, self._streams[stream] = self._streams[stream], before
            return graph

    def launch(self, graph: list[tuple[str, Any]], stream: int) -> None:
        self._check_current()
        with self._lock:
            self.launched += 1
            self._streams[stream] += graph

    def destroy(self, graph: list[tuple[str, Any]]) -> None:
        graph.append(("do", self._gone))

    def _gone(self) -> None:
        raise AssertionError("a graph was launched that was given back")

    def check_setup(self, stream: int) -> None:
        """Check, and count, what is set up: no graph may be captured meanwhile, which only the lock can ensure."""
        self._check_current()
        assert stream in self._streams
        assert _held(SETUP)
        self.executions += 1

    def do(self, stream: int, work: Callable[[], None]) -> None:
        """Give work to a stream."""
        with self._lock:
            self._streams[stream].append(("do", work))

    def sizes(self) -> list[int]:
        """Bytes of each block of memory that is taken."""
        return [memory.nbytes for memory in self._memory.values()]

    def at(self, address: int) -> Array:
        """The memory at an address, uint8."""
        return self._memory[address]

    def _free(self, address: int) -> None:
        with self._lock:
            self.used -= self._memory.pop(address).nbytes

    def _step(self) -> None:
        """Does the next work of a random stream that need not wait."""
        streams = [stream for stream in self._streams.values() if stream]
        ready = [stream for stream in streams if stream[0][0] != "wait" or stream[0][1] in self._done]
        assert ready, "everything waits for something"
        kind, what = self._random.choice(ready).pop(0)
        if kind == "do":
            what()
        elif kind == "done":
            self._done.add(what)


class FakePlan:
    """A graph of a bundle in onnxruntime, for the shapes of an engine's profiles only."""

    def __init__(self, bundle: Bundle, engine: Engine, cuda: FakeCuda, captures_graphs: bool) -> None:
        graph = bundle.manifest.graphs[engine.key.graph]["fp32"]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.captures_graphs = captures_graphs
        self.cuda = cuda
        self.session = ort.InferenceSession(bundle.file(graph.file), options, providers=["CPUExecutionProvider"])
        self.key = engine.key
        self.graph = graph

    def execution(self, shapes: Mapping[str, Shape], stream: int) -> FakeExecution:
        self.cuda.check_setup(stream)
        for name, profile in self.key.profiles.items():
            for size, least, most in zip(shapes[name], profile.min, profile.max, strict=True):
                if not least <= size <= most:
                    raise EngineError(f"{name} of {shapes[name]} is outside of {profile}.")
        return FakeExecution(self, dict(shapes))


class FakeExecution:
    """An execution whose activations take 16 bytes for every number of its inputs."""

    def __init__(self, plan: FakePlan, shapes: Mapping[str, Shape]) -> None:
        self._plan = plan
        self._shapes = shapes
        self._sizes = {
            axis: size
            for spec in plan.graph.inputs
            for axis, size in zip(spec.shape, shapes[spec.name], strict=True)
            if isinstance(axis, str)
        }

    @property
    def memory(self) -> int:
        return 16 * sum(int(np.prod(shape)) for shape in self._shapes.values())

    def output_shape(self, name: str) -> Shape:
        spec = next(spec for spec in self._plan.graph.outputs if spec.name == name)
        return tuple(self._sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)

    def bind(self, addresses: Mapping[str, int], memory: int, size: int) -> None:
        assert size >= self.memory
        self._plan.cuda.activations.append(size)
        self._addresses, self._activations = dict(addresses), memory

    def enqueue(self, stream: int) -> None:
        self._plan.cuda.do(stream, self._run)

    def _run(self) -> None:
        cuda, plan = self._plan.cuda, self._plan
        cuda.at(self._activations)[:8] = 0
        inputs = {}
        for spec in plan.graph.inputs:
            shape, dtype = self._shapes[spec.name], np.dtype(spec.dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            inputs[spec.name] = cuda.at(self._addresses[spec.name])[:size].view(dtype).reshape(shape)
        names = [spec.name for spec in plan.graph.outputs]
        for name, values in zip(names, plan.session.run(names, inputs), strict=True):
            assert values.shape == self.output_shape(name)
            cuda.at(self._addresses[name])[: values.nbytes] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)


def make_engine(
    bundle: Bundle,
    spec: EngineSpec,
    *,
    library: Library = LIBRARY,
    targets: tuple[str, ...] = ("sm86", "sm89"),
    gpu: str | None = None,
) -> Engine:
    """The record of an engine that was never built."""
    files = {spec.file: bundle.manifest.files[spec.file].sha256}
    key = EngineKey(spec.graph, spec.precision, files, library, targets, gpu, dict(spec.profiles), False, RECIPE)
    record = EngineRecord("fgclip-rt-engine", 1, key, key.digest, "engine.plan", {}, 1.0, 7)
    return Engine(Path(f"{spec.graph}-{'-'.join(map(str, spec.fixed.values()))}"), record)
