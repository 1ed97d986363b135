"""The graphs of a bundle in TensorRT engines; inputs that no engine takes go to another backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fgclip_rt import forks
from fgclip_rt.arrays import Array
from fgclip_rt.backends import GPU_TOKENS_PER_BATCH, Backend, Result, lost_cuda
from fgclip_rt.bundle import Bundle
from fgclip_rt.devices import gpu_name
from fgclip_rt.engine_files import Engine, axes
from fgclip_rt.manifest import Axis, GraphFile, TensorSpec

from .cuda import Cuda, find_gpu
from .execution import Plan, Shape, TensorRtPlan
from .lane import Lane, Pending, Tensors, Workspace, round_down, round_up
from .libraries import LIBRARIES, TensorRtLibrary
from .profiles import Range

#: Axes that an engine has in one size. Patches may be fewer, for the graph ignores those past an image's grid; tokens
#: may not, for it reads padding too.
_LENGTHS = (Axis.PATCHES, Axis.TOKENS)
_EXACT = (Axis.TOKENS,)

#: Axes along which a run may be split: boxes do not know of each other, nor do masks, images or texts.
_SPLIT = (Axis.BOXES, Axis.MASKS, Axis.BATCH)


class EngineBackend:
    """Engines by graph and size, each loaded when it is first needed. Safe to use from several threads.

    Attributes:
        precision: the precision that runs.
        device: ``cuda``.
    """

    device = "cuda"

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        engines: Sequence[Engine],
        fallback: Backend,
        load: Callable[[Engine], Plan] | None = None,
        cuda: Cuda | None = None,
        index: int = 0,
    ) -> None:
        """Prepare to run ``engines``, which fit the bundle, the library and the GPU.

        Args:
            bundle: an opened bundle.
            precision: one of the manifest's.
            engines: of this precision and one library.
            fallback: runs inputs that no engine takes, or refuses them.
            load: makes a plan ready; None does so by the library that built it.
            cuda: the GPU; None takes the one at ``index``.
            index: of the GPU, as CUDA counts them.

        Raises:
            MissingDependencyError: the library or cuda-bindings is not installed.
            DeviceError: there is no GPU.
        """
        self._bundle = bundle
        self.precision = precision
        self._fallback = fallback
        self._library = engines[0].key.library
        self._name = gpu_name(index)
        self._cuda = cuda or Cuda(index)
        with self._cuda.current():
            self._workspace = Workspace(self._cuda)
        self._load = load or plan_loader(self._library.name, self._cuda, index)
        self._lock = threading.Lock()
        candidates = [_Candidate(engine, bundle.manifest.graphs[engine.key.graph][precision]) for engine in engines]
        # The smallest that takes an input runs it, and of those the one that takes most at a time.
        self._candidates = sorted(candidates, key=lambda candidate: candidate.order)
        self._lanes: dict[str, Lane] = {}
        self._lost_cuda = False
        forks.call_in_children(self._leave_lanes)

    def __str__(self) -> str:
        graphs: dict[str, list[str]] = {}
        for candidate in self._candidates:
            graphs.setdefault(candidate.name, []).append(str(candidate.length or ""))
        engines = ", ".join(f"{graph} {'/'.join(dict.fromkeys(sizes))}".rstrip() for graph, sizes in graphs.items())
        return f"{self._library} on {self._name} (engines: {engines}; what they do not take: {self._fallback})"

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """Run ``graph``, while the caller prepares what comes next.

        Raises:
            ArgumentError: the bundle has no such graph.
            DeviceError: memory ran out, the GPU failed, neither an engine nor another backend takes the inputs, or this
                process was forked since.
            EngineError: the engine is damaged.
        """
        if self._lost_cuda:
            raise lost_cuda()
        candidate = self._find(graph, {name: array.shape for name, array in inputs.items()})
        if candidate is None:
            return self._fallback.submit(graph, inputs, outputs)
        with self._cuda.current():
            return candidate.run_in_parts(self._lane(candidate), inputs, outputs)

    def batch_size(self, graph: str, length: int) -> int:
        """Images or texts of ``length`` patches or tokens that keep a GPU busy, if an engine takes so many."""
        candidate = next((each for each in self._candidates if each.name == graph and each.takes_length(length)), None)
        if candidate is not None:
            rows = GPU_TOKENS_PER_BATCH // (candidate.length or length)
            return round_down(min(max(1, rows), candidate.ranges[Axis.BATCH][2]))
        return self._fallback.batch_size(graph, length)

    def _find(self, graph: str, shapes: Mapping[str, Shape]) -> _Candidate | None:
        return next((each for each in self._candidates if each.name == graph and each.takes(shapes)), None)

    def _leave_lanes(self) -> None:
        """Have a forked child refuse every run, and give nothing back to the GPU, which is its parent's."""
        self._lost_cuda = True
        forks.leave_alone(self._lanes)
        forks.leave_alone(self._workspace)

    def _lane(self, candidate: _Candidate) -> Lane:
        name = candidate.engine.path.name
        with self._lock:
            if name not in self._lanes:
                self._bundle.check_unchanged()
                plan = self._load(candidate.engine)
                self._lanes[name] = Lane(name, plan, candidate.tensors, self._workspace)
            return self._lanes[name]


def plan_loader(library: str, cuda: Cuda, index: int = 0) -> Callable[[Engine], TensorRtPlan]:
    """Makes plans ready by the library called ``library``, for the GPU at ``index``.

    Raises:
        MissingDependencyError: the library is not installed.
        EngineError: it cannot be loaded.
    """
    loaded = LIBRARIES[library]()
    assert isinstance(loaded, TensorRtLibrary)
    gpu = find_gpu(index)
    machine = f"{gpu.slug if gpu else index}-{cuda.driver()}"
    return lambda engine: TensorRtPlan(loaded, engine, machine)


@dataclass(frozen=True)
class _Candidate:
    """An engine, and the inputs that it takes.

    Attributes:
        engine: its folder and record.
        graph: the graph's inputs and outputs.
    """

    engine: Engine
    graph: GraphFile

    @property
    def name(self) -> str:
        """Of the graph."""
        return self.engine.key.graph

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """Smallest, usual and largest size of every axis, by the axis's name."""
        return axes(self.engine.key.profiles, self.graph.inputs)

    @property
    def order(self) -> tuple[int, int]:
        """Its place among the engines of its graph: smaller lengths first, and of the same length larger batches."""
        return self.length or 0, -self.ranges[Axis.BATCH][2]

    @property
    def length(self) -> int | None:
        """Number of patches or tokens."""
        return next((most for axis, (_, _, most) in self.ranges.items() if axis in _LENGTHS), None)

    @property
    def tensors(self) -> Tensors:
        """Its inputs and outputs."""
        specs = (*self.graph.inputs, *self.graph.outputs)
        return Tensors({spec.name: np.dtype(spec.dtype) for spec in specs}, [spec.name for spec in self.graph.outputs])

    def takes_length(self, length: int) -> bool:
        """Whether it takes images or texts of this many patches or tokens."""
        return all(_fits(axis, length, most) for axis, (_, _, most) in self.ranges.items() if axis in _LENGTHS)

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether it takes inputs of these shapes, in parts if need be."""
        sizes = self._sizes(shapes)
        return all(axis == self._split or _fits(axis, sizes[axis], most) for axis, (_, _, most) in self.ranges.items())

    def run_in_parts(self, lane: Lane, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """Give the inputs to the engine, in parts if they are more than it takes."""
        sizes = self._sizes({name: array.shape for name, array in inputs.items()})
        most = self.ranges[self._split][2]
        specs = {spec.name: spec for spec in self.graph.outputs}
        parts = []
        for start in range(0, max(1, sizes[self._split]), most):
            actual = {**sizes, self._split: min(most, sizes[self._split] - start)}
            taken = {
                axis: largest if axis in _LENGTHS else min(largest, max(smallest, round_up(actual[axis])))
                for axis, (smallest, _, largest) in self.ranges.items()
            }
            rows = slice(start, start + actual[self._split])
            part = {
                spec.name: inputs[spec.name][rows] if spec.shape[:1] == (self._split,) else inputs[spec.name]
                for spec in self.graph.inputs
            }
            shapes = {spec.name: _shape(spec, taken) for spec in self.graph.inputs}
            parts.append((lane.begin(part, shapes, outputs), [_shape(specs[name], actual) for name in outputs]))
        return _Parts(parts)

    @property
    def _split(self) -> str:
        return next(axis for axis in _SPLIT if axis in self.ranges)

    def _sizes(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Size of every axis in inputs of these shapes."""
        pairs = (pair for spec in self.graph.inputs for pair in zip(spec.shape, shapes[spec.name], strict=True))
        return {axis: size for axis, size in pairs if isinstance(axis, str)}


@dataclass(frozen=True)
class _Parts:
    """Outputs that come in parts, each with the shapes to cut it to."""

    parts: Sequence[tuple[Pending, Sequence[Shape]]]

    def result(self) -> list[Array]:
        """The outputs, joined."""
        results = [
            [array[tuple(map(slice, shape))] for array, shape in zip(pending.result(), shapes, strict=True)]
            for pending, shapes in self.parts
        ]
        return [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def _fits(axis: str, size: int, most: int) -> bool:
    """Whether an axis of an input fits into that of an engine."""
    return size == most if axis in _EXACT else size <= most


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
