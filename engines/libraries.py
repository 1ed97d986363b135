"""TensorRT, TensorRT-RTX and onnxruntime behind one face. Their differences are written here.

TensorRT tunes a plan on the GPU that is there. TensorRT-RTX compiles ahead of time for GPUs that it knows by name, on
machines that have none, and finishes the work when the plan is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime as ort

from fgclip_rt import engine_files
from fgclip_rt.backends.onnxruntime import preload_cuda
from fgclip_rt.engine_files import AMPERE_PLUS, Gpu, Profile
from fgclip_rt.errors import ArgumentError, EngineError, MissingDependencyError
from fgclip_rt.packages import CUDA_REMEDY

from .profiles import EngineSpec
from .runtime_cache import RuntimeCache

#: The target that stands for the GPU of this machine.
CURRENT = "current"


class EngineLibrary(ABC):
    """A library that builds engines.

    Attributes:
        name: the name that users call it by.
        version: of the library.
        plan_name: name of the file of an engine.
        tunes: whether the library chooses kernels on the GPU that is there, and the engine is for that GPU.
    """

    name: ClassVar[str]
    plan_name: ClassVar[str]
    tunes: ClassVar[bool]
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

    def default_targets(self, precision: str) -> tuple[str, ...]:  # noqa: ARG002 (for those with targets by name)
        """The targets of plans in ``precision`` if none is asked for."""
        return (CURRENT,)

    def profiles(self, spec: EngineSpec) -> Sequence[Mapping[str, Profile]]:
        """The profiles of an engine, each by input."""
        return [spec.profiles]

    def timing_cache(self, gpu: Gpu | None) -> str | None:  # noqa: ARG002 (for those that time)
        """Name of the file that keeps timings of kernels on ``gpu`` between builds; None if the library keeps none."""
        return None

    def check_targets(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The targets to build for, in the order of :attr:`targets`; none if none is asked for.

        Raises:
            ArgumentError: a target is unknown, or does not go with the others.
        """
        choices = (*self.targets, CURRENT)
        for target in asked:
            if target not in choices:
                raise ArgumentError(f"target {target!r} is none that {self} builds for; choose {_either(choices)}.")
        if CURRENT in asked and len(set(asked)) > 1:
            raise ArgumentError(f"target {CURRENT!r} stands alone; leave out the others, or name them all.")
        return tuple(target for target in choices if target in asked)

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

    def runtime_cache(self, engine: Any, path: Path) -> RuntimeCache | None:  # noqa: ARG002 (for those that compile)
        """The kernels that the library compiles while ``engine`` runs; None if it compiles none."""
        return None

    @abstractmethod
    def create_context(self, engine: Any, cache: RuntimeCache | None) -> Any:
        """An execution context whose activations lie in memory that the caller gives it.

        Args:
            engine: the library's own object.
            cache: the engine's :meth:`runtime_cache`.
        """


class TensorRt(TensorRtLibrary):
    """TensorRT, 10 and later."""

    name = "tensorrt"
    package = "tensorrt"
    captures_graphs = False
    tunes = True

    @property
    def targets(self) -> tuple[str, ...]:
        return (AMPERE_PLUS,)

    def profiles(self, spec: EngineSpec) -> Sequence[Mapping[str, Profile]]:
        # Kernels are chosen once for each profile, by its usual shape. The profiles share the weights.
        return spec.parts

    def timing_cache(self, gpu: Gpu | None) -> str | None:
        return None if gpu is None else f"timing-{self.version}-{gpu.slug}.cache"

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        if targets == [AMPERE_PLUS]:
            config.hardware_compatibility_level = self.trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def create_context(self, engine: Any, cache: RuntimeCache | None) -> Any:  # noqa: ARG002 (None)
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)


#: The oldest GPUs that TensorRT-RTX has kernels for: Turing has no float32 products there, which every graph has, and
#: GPUs before Ada have no 8-bit floats.
_LEAST_FLOAT32 = 80
_LEAST_CAPABILITY = {"fp8": 89}


class TensorRtRtx(TensorRtLibrary):
    """TensorRT-RTX. It has no use for a timing cache, which would make it look for a GPU and change nothing."""

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"
    captures_graphs = True
    # It compiles kernels for the GPU and the shapes that it meets when an engine runs.
    tunes = False

    @property
    def targets(self) -> tuple[str, ...]:
        names = [name for name in self.trt.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(name.lower() for name in sorted(names, key=lambda name: int(name.removeprefix("SM"))))

    def default_targets(self, precision: str) -> tuple[str, ...]:
        least = _LEAST_CAPABILITY.get(precision, _LEAST_FLOAT32)
        return tuple(target for target in self.targets if int(target.removeprefix("sm")) >= least)

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        # Memory that the library takes while it runs cannot be captured, and a graph of it silently comes to nothing.
        config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, target.upper()), index)

    def runtime_cache(self, engine: Any, path: Path) -> RuntimeCache:
        return RuntimeCache(engine.create_runtime_config(), path)

    def create_context(self, engine: Any, cache: RuntimeCache | None) -> Any:
        runtime = engine.create_runtime_config()
        runtime.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # It compiles kernels for the shapes that it meets, in the background, and captures again when they are ready.
        runtime.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if cache is not None:
            cache.attach(runtime)
        return engine.create_execution_context(runtime)


class OnnxRuntimeTensorRt(EngineLibrary):
    """onnxruntime with its TensorRT provider: an ONNX file with one node, the engine, for services in any language."""

    name = "onnxruntime-tensorrt"
    plan_name = "model.onnx"
    tunes = True
    provider: ClassVar[str] = "TensorrtExecutionProvider"

    def __init__(self) -> None:
        """Look for the provider, and load the libraries that it needs.

        Raises:
            MissingDependencyError: this onnxruntime has no such provider, or TensorRT is missing.
        """
        if self.provider not in ort.get_available_providers():
            raise MissingDependencyError(
                f"this onnxruntime has no TensorRT provider; run '{CUDA_REMEDY}', on a machine with an NVIDIA GPU."
            )
        self.version = ort.__version__
        preload_cuda()
        _load_tensorrt_10()

    @property
    def targets(self) -> tuple[str, ...]:
        return ()


def _load_tensorrt_10() -> None:
    """Load the library that the provider is linked to; its package puts it where no loader looks.

    Raises:
        MissingDependencyError: it is not installed, in this version.
    """
    # The package loads its library; a library of the system needs no package.
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("tensorrt")
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        raise MissingDependencyError(
            f"onnxruntime {ort.__version__}'s TensorRT provider needs TensorRT 10, and libnvinfer.so.10 cannot be "
            "loaded; run pip install 'fgclip-rt[onnxruntime-tensorrt]'."
        ) from None


LIBRARIES: dict[str, type[EngineLibrary]] = {
    library.name: library for library in (TensorRt, TensorRtRtx, OnnxRuntimeTensorRt)
}


def needs_gpu(targets: Sequence[str]) -> bool:
    """Whether engines for these targets are built on the GPU that is there."""
    return CURRENT in targets or AMPERE_PLUS in targets


def this_gpu(targets: Sequence[str], find_gpu: Callable[[], Gpu | None]) -> Gpu:
    """The GPU of this machine, which ``targets`` need.

    Raises:
        EngineError: there is none.
    """
    gpu = find_gpu()
    if gpu is None:
        raise EngineError(
            f"target {targets[0]!r} needs an NVIDIA GPU and its driver, and this machine has none; build where the "
            "engine will run, or with tensorrt-rtx for a target by name."
        )
    return gpu


def _either(choices: Sequence[str]) -> str:
    return " or ".join(part for part in (", ".join(choices[:-1]), choices[-1]) if part)
