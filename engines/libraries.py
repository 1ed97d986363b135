"""TensorRT, TensorRT-RTX and onnxruntime behind one face. Their differences are written here.

TensorRT tunes a plan on the GPU that is there. TensorRT-RTX compiles ahead of time for GPUs that it knows by name, on
machines that have none, and finishes the work when the plan is loaded.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import onnxruntime as ort

from fgclip_rt import engine_files
from fgclip_rt.engine_files import AMPERE_PLUS, Gpu
from fgclip_rt.errors import ArgumentError, EngineError, MissingDependencyError
from fgclip_rt.packages import CUDA_REMEDY

#: The target that stands for the GPU of this machine.
CURRENT = "current"


class EngineLibrary(ABC):
    """A library that builds engines.

    Attributes:
        name: the name that users call it by.
        version: of the library.
        plan_name: name of the file of an engine.
    """

    name: ClassVar[str]
    plan_name: ClassVar[str]
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def identity(self) -> engine_files.Library:
        """Name and version as they stand in an engine's key."""
        return engine_files.Library(self.name, self.version)  # type: ignore[arg-type]

    @property
    @abstractmethod
    def targets(self) -> tuple[str, ...]:
        """The targets of plans, besides :data:`CURRENT`."""

    @property
    @abstractmethod
    def default_targets(self) -> tuple[str, ...]:
        """The targets of plans if none is asked for."""

    @property
    def timing_cache(self) -> str | None:
        """Name of the file that keeps timings of kernels between builds; None if the library has no use for it."""
        return None

    def check_targets(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The targets to build for, in the order of :attr:`targets`.

        Raises:
            ArgumentError: a target is unknown, or does not go with the others.
        """
        choices = (*self.targets, CURRENT)
        for target in asked:
            if target not in choices:
                raise ArgumentError(f"target {target!r} is none that {self} builds for; choose {_either(choices)}.")
        if CURRENT in asked and len(set(asked)) > 1:
            raise ArgumentError(f"target {CURRENT!r} stands alone; leave out the others, or name them all.")
        return tuple(target for target in choices if target in asked) or self.default_targets

    def check_strippable(self, targets: Sequence[str]) -> None:  # noqa: ARG002 (for those that can)
        """Make sure that engines for these targets can do without their weights.

        Raises:
            ArgumentError: they cannot.
        """
        raise ArgumentError(f"{self.name} has no engines without weights; leave out --strip-weights.")


class TensorRtLibrary(EngineLibrary):
    """TensorRT or TensorRT-RTX, imported.

    Attributes:
        trt: its module.
        captures_graphs: whether the library captures CUDA graphs itself, so that the caller must not.
    """

    package: ClassVar[str]
    captures_graphs: ClassVar[bool]
    plan_name = "engine.plan"

    def __init__(self) -> None:
        """Import the library.

        Raises:
            MissingDependencyError: it is not installed.
            EngineError: it is, and cannot be loaded.
        """
        remedy = f"pip install 'fgclip-rt[{self.name}]'"
        try:
            self.trt: Any = importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            if error.name != self.package:
                raise EngineError(f"{self.name} cannot be loaded ({error}); run {remedy} again.") from None
            raise MissingDependencyError(f"{self.name} is not installed; run {remedy}.") from None
        except (ImportError, OSError) as error:
            raise EngineError(f"{self.name} cannot be loaded ({error}); run {remedy} again.") from None
        self.version = str(self.trt.__version__)

    def check_strippable(self, targets: Sequence[str]) -> None:
        # Compiled ahead of time, TensorRT-RTX looks for a GPU at the very end of such a build.
        if not {CURRENT, AMPERE_PLUS} & set(targets):
            raise ArgumentError(
                f"{self} leaves weights out only of engines for the GPU that is there; use --target {CURRENT}, or "
                "leave out --strip-weights."
            )

    @abstractmethod
    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        """Set the targets in a builder's configuration."""

    @abstractmethod
    def create_context(self, engine: Any) -> Any:
        """An execution context whose activations lie in memory that the caller gives it."""


class TensorRt(TensorRtLibrary):
    """TensorRT, 10 and later."""

    name = "tensorrt"
    package = "tensorrt"
    captures_graphs = False

    @property
    def targets(self) -> tuple[str, ...]:
        return (AMPERE_PLUS,)

    @property
    def default_targets(self) -> tuple[str, ...]:
        return (CURRENT,)

    @property
    def timing_cache(self) -> str | None:
        return f"timing-{self.version}.cache"

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        if targets == [AMPERE_PLUS]:
            config.hardware_compatibility_level = self.trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def create_context(self, engine: Any) -> Any:
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)


class TensorRtRtx(TensorRtLibrary):
    """TensorRT-RTX. It has no use for a timing cache, which would make it look for a GPU and change nothing."""

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"
    captures_graphs = True

    @property
    def targets(self) -> tuple[str, ...]:
        names = [name for name in self.trt.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(name.lower() for name in sorted(names, key=lambda name: int(name.removeprefix("SM"))))

    @property
    def default_targets(self) -> tuple[str, ...]:
        # Turing has no float32 products here, and every graph has some.
        return tuple(target for target in self.targets if target != "sm75")

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        # Memory that the library takes while it runs cannot be captured, and a graph of it silently comes to nothing.
        config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, target.upper()), index)

    def create_context(self, engine: Any) -> Any:
        runtime = engine.create_runtime_config()
        runtime.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # It compiles kernels for the shapes that it meets, in the background, and captures again when they are ready.
        runtime.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(runtime)


class OnnxRuntimeTensorRt(EngineLibrary):
    """onnxruntime with its TensorRT provider: an ONNX file with one node, the engine, for services in any language."""

    name = "onnxruntime-tensorrt"
    plan_name = "model.onnx"
    provider: ClassVar[str] = "TensorrtExecutionProvider"

    def __init__(self) -> None:
        """Look for the provider.

        Raises:
            MissingDependencyError: this onnxruntime has none.
        """
        if self.provider not in ort.get_available_providers():
            raise MissingDependencyError(
                f"this onnxruntime has no TensorRT provider; run '{CUDA_REMEDY}', on a machine with an NVIDIA GPU."
            )
        self.version = ort.__version__

    @property
    def targets(self) -> tuple[str, ...]:
        return ()

    @property
    def default_targets(self) -> tuple[str, ...]:
        return (CURRENT,)


LIBRARIES: dict[str, type[EngineLibrary]] = {
    library.name: library for library in (TensorRt, TensorRtRtx, OnnxRuntimeTensorRt)
}


def resolve(targets: Sequence[str], find_gpu: Callable[[], Gpu | None]) -> tuple[tuple[str, ...], str | None]:
    """Targets as they stand in an engine's key, and the name of the GPU that it is tuned on, if it is on one.

    Args:
        targets: as they were asked for.
        find_gpu: gives the GPU of this machine; it is not called if the targets need none.

    Raises:
        EngineError: the target is this machine's GPU and there is none.
    """
    if CURRENT not in targets and AMPERE_PLUS not in targets:
        return tuple(targets), None
    gpu = find_gpu()
    if gpu is None:
        raise EngineError(
            f"target {targets[0]!r} needs an NVIDIA GPU and its driver, and this machine has none; build where the "
            "engine will run, or with tensorrt-rtx for a target by name."
        )
    return ((gpu.capability,), gpu.name) if CURRENT in targets else (tuple(targets), None)


def _either(choices: Sequence[str]) -> str:
    return " or ".join(part for part in (", ".join(choices[:-1]), choices[-1]) if part)
