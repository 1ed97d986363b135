"""A bundle on a GPU, the model alone: inputs lie on the device before the clock starts, and outputs stay there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnxruntime as ort

# PyTorch comes with CUDA's libraries, which onnxruntime finds once they are loaded.
import torch

from fgclip_rt.arrays import Array
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.bundle import Bundle
from fgclip_rt.choice import fit_engines
from fgclip_rt.engine_files import Engine
from fgclip_rt.graphs import feed
from fgclip_rt.model import Model, open_model
from fgclip_rt.turns import timed

from .events import around_all, between_events
from .inputs import make_inputs
from .runtime import end_to_end
from .task import Case, Clocked, Contender, Run, UnableError


class Provider:
    """A precision of a bundle, run by onnxruntime's provider and timed by the host's clock.

    Events cannot time it, because the provider has a stream of its own.
    """

    def __init__(self, contender: Contender) -> None:
        self._device = contender.device
        self._bundle = Bundle.open(Path(contender.bundle), check_hashes=False)
        self._backend = OnnxRuntimeBackend(self._bundle, contender.precision, self._device, contender.threads)

    def prepare(self, case: Case) -> Run:
        """As :meth:`fgclip_rt.benchmarks.task.Runner.prepare`."""
        if case.end_to_end:
            return end_to_end(Model(self._bundle, self._backend), case)
        inputs = _inputs(self._bundle, case)
        session = self._backend.session(case.graph)
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self._device, 0))
        binding.bind_output(session.get_outputs()[-1].name, self._device)

        def run() -> None:
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        def compute() -> Array:
            run()
            (output,) = binding.copy_outputs_to_cpu()
            return output

        return Clocked(compute, partial(timed, run))


class Engines:
    """A precision of a bundle, run by the engines of one library as a model runs them, and timed by events.

    Attributes:
        captured: whether a run is the launch of a CUDA graph, unless the library makes graphs by itself.
        clock: makes a clock of a function that gives one run to a stream.
    """

    captured = True
    clock = staticmethod(between_events)

    def __init__(self, contender: Contender) -> None:
        self._bundle = Bundle.open(Path(contender.bundle), check_hashes=False)
        self._model = open_model(
            self._bundle, contender.device, contender.precision, contender.threads, backend=contender.library
        )
        self._engines = [
            fit.engine
            for fit in fit_engines(self._bundle, contender.precision)
            if not fit.problem and fit.engine.key.library.name == contender.library
        ]

    def prepare(self, case: Case) -> Run:
        """As :meth:`fgclip_rt.benchmarks.task.Runner.prepare`."""
        if case.end_to_end:
            return end_to_end(self._model, case)
        inputs = _inputs(self._bundle, case)
        fitting = (engine for engine in self._engines if engine.key.graph == case.graph and _takes(engine, inputs))
        engine = next(fitting, None)
        if engine is None:
            raise UnableError(f"no engine takes {case}")
        return self._run(engine, inputs)

    def _run(self, engine: Engine, inputs: dict[str, Array]) -> Run:
        from fgclip_rt.engines.cuda import Cuda
        from fgclip_rt.engines.runner import plan_loader

        cuda = Cuda()
        stream = cuda.stream()
        plan = plan_loader(engine.key.library.name, cuda)(engine)
        if plan.captures_graphs and not self.captured:
            raise UnableError(f"{engine.key.library.name} makes CUDA graphs by itself")
        execution = plan.execution({name: array.shape for name, array in inputs.items()}, stream)
        specs = self._bundle.manifest.graphs[engine.key.graph][engine.key.precision].outputs
        input_tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
        output_tensors = {
            spec.name: torch.empty(execution.output_shape(spec.name), dtype=getattr(torch, spec.dtype), device="cuda")
            for spec in specs
        }
        activations = torch.empty(max(1, execution.memory), dtype=torch.uint8, device="cuda")
        addresses = {name: tensor.data_ptr() for name, tensor in {**input_tensors, **output_tensors}.items()}
        execution.bind(addresses, activations.data_ptr(), activations.numel())
        # The inputs were copied in another stream.
        torch.cuda.synchronize()
        graph = None
        if self.captured and not plan.captures_graphs:
            # The first run is not captured: the library sets itself up in it.
            execution.enqueue(stream)
            torch.cuda.synchronize()
            graph = cuda.capture(stream, partial(execution.enqueue, stream))
            if graph is None:
                raise UnableError("the engine's run cannot be captured as a CUDA graph")

        # An engine runs in memory that its execution does not own, and that must live as long as this function.
        def enqueue(_owned: object = (plan, input_tensors, activations)) -> None:
            if graph is None:
                execution.enqueue(stream)
            else:
                cuda.launch(graph, stream)

        timed_stream = torch.cuda.ExternalStream(int(stream))

        def compute() -> Array:
            enqueue()
            timed_stream.synchronize()
            output: Array = output_tensors[specs[-1].name].cpu().numpy()
            return output

        return Clocked(compute, type(self).clock(enqueue, timed_stream))


class EnginesEnqueued(Engines):
    """Engines whose kernels the host launches one by one."""

    captured = False

    def prepare(self, case: Case) -> Run:
        if case.end_to_end:
            raise UnableError("a model does not run engines so")
        return super().prepare(case)


class EnginesBackToBack(Engines):
    """Engines that get one run after another, with no pause between them."""

    clock = staticmethod(around_all)

    def prepare(self, case: Case) -> Run:
        if case.end_to_end:
            raise UnableError("end to end, batches follow each other anyway")
        return super().prepare(case)


def _inputs(bundle: Bundle, case: Case) -> dict[str, Array]:
    """The inputs of the graph of a case, by name."""
    if case.graph not in bundle.manifest.graphs:
        raise UnableError(f"the model has no {case.graph} graph")
    # A graph takes the same inputs in every precision.
    return feed(make_inputs(bundle, case), next(iter(bundle.manifest.graphs[case.graph].values())))


def _takes(engine: Engine, inputs: dict[str, Array]) -> bool:
    """Whether the shape of every input lies within the engine's profile."""
    return all(
        least <= size <= most
        for name, profile in engine.key.profiles.items()
        for size, least, most in zip(inputs[name].shape, profile.min, profile.max, strict=True)
    )
