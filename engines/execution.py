"""A plan on the GPU: deserialised once, with an execution for every shape that it meets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fgclip_rt.engine_files import REFIT, Engine
from fgclip_rt.errors import DeviceError, EngineError

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
        """Say where inputs and outputs lie, and the ``size`` bytes for activations."""

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

    def execution(self, shapes: Mapping[str, Shape]) -> Execution:
        """An execution for inputs of these shapes."""


class TensorRtPlan:
    """A plan in TensorRT or TensorRT-RTX."""

    def __init__(self, library: TensorRtLibrary, engine: Engine) -> None:
        """Deserialise the plan of ``engine``.

        Raises:
            EngineError: the file is not what was built, or the library refuses it.
            DeviceError: it does not fit into the GPU's memory.
        """
        engine.check()
        self._library = library
        self._errors: list[str] = []
        self._runtime = library.trt.Runtime(make_logger(library.trt, self._errors))
        path = engine.path / engine.record.plan
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            why = reason(self._errors)
            if ran_out_of_memory(why):
                raise DeviceError(
                    f"{path} does not fit into the GPU's memory ({why}); free some, or use fewer graphs or buckets."
                )
            raise EngineError(f"{library} refuses {path} ({why}); build it again with 'fgclip-rt build'.")
        if engine.key.stripped:
            self._refit(engine)

    def _refit(self, engine: Engine) -> None:
        """Give the plan the weights of the bundle that its folder lies in."""
        trt, logger = self._library.trt, self._runtime.logger
        refitter = trt.Refitter(self._engine, logger)
        (graph,) = (name for name in engine.key.files if name.endswith(".onnx"))
        parser = trt.OnnxParserRefitter(refitter, logger)
        found = parser.refit_from_bytes((engine.path / REFIT).read_bytes(), str(engine.path.parents[1] / graph))
        if not (found and refitter.refit_cuda_engine()):
            raise EngineError(
                f"{self._library} cannot give {engine.path.name} its weights ({reason(self._errors)}); build it again "
                "without --strip-weights."
            )

    @property
    def captures_graphs(self) -> bool:
        return self._library.captures_graphs

    def execution(self, shapes: Mapping[str, Shape]) -> Execution:
        free = {name: shape for name, shape in shapes.items() if -1 in tuple(self._engine.get_tensor_shape(name))}
        # The reason is to be this call's, and the library may have told another plan's list since.
        self._errors.clear()
        make_logger(self._library.trt, self._errors)
        context = self._library.create_context(self._engine)
        if context is None:
            raise DeviceError(
                f"{self._library} could not set up an engine ({reason(self._errors)}); free memory of the GPU, or use "
                "fewer graphs or buckets."
            )
        return _TensorRtExecution(context, free)


class _TensorRtExecution:
    def __init__(self, context: Any, shapes: Mapping[str, Shape]) -> None:
        """Set the shapes that the engine leaves free."""
        self._context = context
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"the engine takes no {name} of {list(shape)}; build one with 'fgclip-rt build'.")
        self._memory = int(context.update_device_memory_size_for_shapes())

    @property
    def memory(self) -> int:
        return self._memory

    def output_shape(self, name: str) -> Shape:
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, addresses: Mapping[str, int], memory: int, size: int) -> None:
        self._context.set_device_memory(memory, size)
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)

    def enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(int(stream)):
            raise DeviceError("the engine could not be run; check the GPU with nvidia-smi, and load the model again.")
