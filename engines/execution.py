"""A plan on the GPU: deserialised once, with an execution for every shape that it meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fgclip_rt.engine_files import REFIT, Engine
from fgclip_rt.errors import DeviceError, EngineError

from .cuda import SETUP
from .libraries import TensorRtLibrary
from .logger import make_logger, ran_out_of_memory, reason

Shape = tuple[int, ...]


class Execution(Protocol):
    """A plan with the shapes of its inputs set. Its activations lie in memory that it is given."""

    @property
    def memory(self) -> int:
        """Bytes that its activations take."""

    def output_shape(self, name: str) -> Shape:
        """Shape of an output."""

    def bind(self, addresses: Mapping[str, int], memory: int, size: int) -> None:
        """Say where inputs and outputs lie, and the ``size`` bytes for activations.

        Raises:
            DeviceError: the library refused.
        """

    def enqueue(self, stream: Any) -> None:
        """Run, in the order of ``stream``.

        Raises:
            DeviceError: the library refused.
        """


class Plan(Protocol):
    """A plan that is ready to run."""

    @property
    def captures_graphs(self) -> bool:
        """Whether its executions use CUDA graphs by themselves, so that the caller must not capture any."""

    def execution(self, shapes: Mapping[str, Shape], stream: Any) -> Execution:
        """An execution for inputs of these shapes, which is set up in the order of ``stream`` and runs there."""


class TensorRtPlan:
    """A plan in TensorRT or TensorRT-RTX."""

    def __init__(self, library: TensorRtLibrary, engine: Engine, machine: str) -> None:
        """Deserialise the plan of ``engine``.

        Args:
            library: the library that built it.
            engine: its folder and record.
            machine: names the GPU and its driver, for the file of kernels that are compiled at work.

        Raises:
            EngineError: the file is not what was built, or the library refuses it.
            DeviceError: it does not fit into the GPU's memory.
        """
        engine.check()
        self._library = library
        self._errors: list[str] = []
        self._runtime = library.trt.Runtime(make_logger(library.trt, self._errors))
        path = engine.path / engine.record.plan
        plan = path.read_bytes()
        with SETUP:
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise self._refusal(path)
            if engine.key.stripped:
                self._refit(engine)
            self._cache = library.runtime_cache(self._engine, engine.path / f"runtime-{machine}.cache")

    def _refusal(self, path: Path) -> EngineError | DeviceError:
        """Why the library does not take the plan at ``path``."""
        why = reason(self._errors)
        if ran_out_of_memory(why):
            return DeviceError(
                f"{path} does not fit into the GPU's memory ({why}); free some, or use fewer graphs or buckets.",
                code="out_of_memory",
            )
        return EngineError(f"{self._library} refuses {path} ({why}); build it again with 'fgclip-rt build'.")

    def _refit(self, engine: Engine) -> None:
        """Give the plan the weights of the bundle that its folder lies in."""
        trt, logger = self._library.trt, self._runtime.logger
        refitter = trt.Refitter(self._engine, logger)
        (graph,) = (name for name in engine.key.files if name.endswith(".onnx"))
        parser = trt.OnnxParserRefitter(refitter, logger)
        found = parser.refit_from_bytes((engine.path / REFIT).read_bytes(), str(engine.path.parents[1] / graph))
        if not (found and refitter.refit_cuda_engine()):
            # The parser keeps its reasons to itself.
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)] + self._errors
            raise EngineError(
                f"{self._library} cannot give {engine.path.name} its weights ({reason(errors)}); build it again "
                "without --strip-weights."
            )

    @property
    def captures_graphs(self) -> bool:
        return self._library.captures_graphs

    def execution(self, shapes: Mapping[str, Shape], stream: Any) -> Execution:
        free = {name: shape for name, shape in shapes.items() if -1 in tuple(self._engine.get_tensor_shape(name))}
        # The reason is to be this call's, and the library may have told another plan's list since.
        self._errors.clear()
        make_logger(self._library.trt, self._errors)
        context = self._library.create_context(self._engine, self._cache)
        if self._cache is not None:
            # A process that is killed saves nothing at its end; so each context saves what came before it.
            self._cache.save()
        if context is None:
            raise DeviceError(
                f"{self._library} could not set up an engine ({reason(self._errors)}); free memory of the GPU, or use "
                "fewer graphs or buckets."
            )
        profile = next((each for each in range(self._engine.num_optimization_profiles) if self._takes(each, free)), 0)
        # A new context has the first.
        if profile and not context.set_optimization_profile_async(profile, int(stream)):
            raise EngineError(f"the engine has no profile {profile} ({reason(self._errors)}); build it again.")
        return _TensorRtExecution(context, free, self._errors)

    def _takes(self, profile: int, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes lie within one of the engine's profiles."""
        ranges = ((shape, self._engine.get_tensor_profile_shape(name, profile)) for name, shape in shapes.items())
        return all(
            least <= size <= most
            for shape, (smallest, _, largest) in ranges
            for size, least, most in zip(shape, smallest, largest, strict=True)
        )


class _TensorRtExecution:
    def __init__(self, context: Any, shapes: Mapping[str, Shape], errors: Sequence[str]) -> None:
        """Set the shapes that the engine leaves free; ``errors`` are those of the library, as they come."""
        self._context = context
        self._errors = errors
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(
                    f"the engine takes no {name} of {list(shape)} ({reason(errors)}); build one with 'fgclip-rt build'."
                )
        self._memory = int(context.update_device_memory_size_for_shapes())

    @property
    def memory(self) -> int:
        return self._memory

    def output_shape(self, name: str) -> Shape:
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, addresses: Mapping[str, int], memory: int, size: int) -> None:
        self._context.set_device_memory(memory, size)
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise DeviceError(
                    f"the engine refuses its memory for {name} ({reason(self._errors)}); build it again with "
                    "'fgclip-rt build'."
                )

    def enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(int(stream)):
            raise DeviceError(
                f"the engine could not be run ({reason(self._errors)}); check the GPU with nvidia-smi, and load the "
                "model again."
            )
