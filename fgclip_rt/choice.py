"""The choice of a backend for a bundle: its engines if they fit, onnxruntime otherwise.

Functions import :mod:`fgclip_rt.engines` only when a bundle has engines, because most bundles have none.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnxruntime as ort

from .backends import Backend
from .backends.onnxruntime import CUDA_PROVIDER, OnnxRuntimeBackend
from .backends.refuse import Refuse
from .bundle import Bundle
from .devices import gpu_name, parse_device
from .engine_files import NO_GPU, Engine, EngineKey, Gpu, axes, find_engines, has_engines, misfit
from .errors import ArgumentError, DeviceError, EngineError, MissingDependencyError
from .machine import nvidia_gpus
from .manifest import Axis
from .packages import CUDA_REMEDY

#: Libraries whose engines we run.
ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")
BACKENDS = ("onnxruntime", *ENGINE_BACKENDS)


@dataclass(frozen=True)
class Fit:
    """An engine, and whether it can be run here.

    Attributes:
        engine: its folder and record.
        problem: why it cannot, as part of a sentence; None if it can.
    """

    engine: Engine
    problem: str | None


def choose_backend(
    bundle: Bundle, precision: str, device: str = "auto", threads: int | None = None, backend: str | None = None
) -> Backend:
    """The backend that runs ``bundle``.

    Args:
        bundle: an opened bundle.
        precision: one of the manifest's.
        device: ``auto``, ``cpu``, ``cuda``, or ``cuda:1`` and so on for other GPUs than the first.
        threads: number of threads of one operator on the CPU; None takes one for each core that we may use.
        backend: one of :data:`BACKENDS`; None takes engines if they fit, and says which and why.

    Raises:
        ArgumentError: an argument is unknown, or arguments do not go together.
        DeviceError: the device or backend that was asked for is missing.
        EngineError: engines were asked for and none fits, or one is damaged.
    """
    kind, index = parse_device(device)
    if backend not in (None, *BACKENDS):
        raise ArgumentError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}.")
    if device == "cpu" and backend in ENGINE_BACKENDS:
        raise ArgumentError(f"{backend} runs on NVIDIA GPUs only; use device 'cuda', or another backend.")
    # Without a GPU, do not mention engines unless the caller asked for them.
    unasked = kind == "auto" and backend is None
    if kind == "cpu" or backend == "onnxruntime" or (unasked and not (has_engines(bundle) and _has_gpu(index))):
        return OnnxRuntimeBackend(bundle, precision, device, threads)

    libraries = ENGINE_BACKENDS if backend is None else (backend,)
    fits = [fit for fit in fit_engines(bundle, precision, index) if fit.engine.key.library.name in libraries]
    fitting = _of_one_library([fit.engine for fit in fits if fit.problem is None])
    if backend is not None and not fitting:
        raise _none_fits(bundle, precision, backend, fits)
    if not fitting:
        why = _why_not(bundle, fits)
        try:
            return OnnxRuntimeBackend(bundle, precision, device, threads, why)
        except DeviceError as error:
            if why is None:
                raise
            raise DeviceError(f"{str(error).rstrip('.')} ({why}).", code=error.code) from None
    from fgclip_rt.engines.runner import EngineBackend

    fallback = _behind_engines(bundle, precision, fitting[0], threads, backend, index)
    return EngineBackend(bundle, precision, fitting, fallback, index=index)


def _behind_engines(
    bundle: Bundle, precision: str, engine: Engine, threads: int | None, backend: str | None, index: int
) -> Backend:
    """The backend for inputs that no engine takes, when the engines are of the library of ``engine``."""
    if backend is not None:
        reason = f"backend {backend!r} was asked for alone"
    elif CUDA_PROVIDER not in ort.get_available_providers():
        reason = f"this onnxruntime has no CUDA provider ('{CUDA_REMEDY}')"
    else:
        return OnnxRuntimeBackend(bundle, precision, gpu_name(index), threads)
    return Refuse(bundle.path, precision, engine.key.library.name, reason)


def fit_engines(bundle: Bundle, precision: str | None = None, index: int = 0) -> list[Fit]:
    """The engines of a bundle, and whether we can run them here.

    Args:
        bundle: an opened bundle.
        precision: takes the engines of one precision; None takes all.
        index: of the GPU, as CUDA counts them.

    Raises:
        EngineError: an engine is damaged.
    """
    engines = [engine for engine in find_engines(bundle) if precision is None or _serves(bundle, engine.key, precision)]
    if not engines:
        return []
    gpu, unknown = _gpu(index)
    installed = _installed({engine.key.library.name for engine in engines})
    return [Fit(engine, _problem(engine.key, bundle, installed, gpu, unknown)) for engine in engines]


def _problem(
    key: EngineKey, bundle: Bundle, installed: Mapping[str, str], gpu: Gpu | None, unknown: str | None
) -> str | None:
    if key.library.name not in ENGINE_BACKENDS:
        return "it is for services that use onnxruntime themselves"
    problem = misfit(key, bundle, installed, gpu)
    return unknown if unknown is not None and problem == NO_GPU else problem


def rebuild_command(bundle: Bundle, key: EngineKey, gpu: Gpu | None) -> str:
    """The command that builds an engine like that of ``key``, for ``gpu`` if there is one."""
    graph = bundle.manifest.graphs.get(key.graph, {}).get(key.precision)
    options = ["--backend", key.library.name, "--graph", key.graph, "--precision", key.precision]
    if key.stripped:
        options += ["--strip-weights"]
    if gpu is not None:
        options += ["--target", "current"]
    if graph is not None and set(key.profiles) == {spec.name for spec in graph.inputs}:
        for axis, (smallest, usual, largest) in axes(key.profiles, graph.inputs).items():
            option, value = {
                Axis.PATCHES: ("--buckets", str(largest)),
                Axis.TOKENS: ("--text-lengths", str(largest)),
            }.get(axis, (f"--{axis}", f"{smallest},{usual},{largest}"))
            options += [option, value]
    return shlex.join(["fgclip-rt", "build", str(bundle.path), *options])


def _serves(bundle: Bundle, key: EngineKey, precision: str) -> bool:
    """Whether an engine's graph is, in ``precision``, the file that it was built from."""
    graph = bundle.manifest.graphs.get(key.graph, {}).get(precision)
    return key.precision == precision or (graph is not None and graph.file in key.files)


def _installed(libraries: Iterable[str]) -> dict[str, str]:
    """Version of each of ``libraries`` that is installed, by its name."""
    from fgclip_rt.engines.libraries import LIBRARIES

    versions = {}
    for name in set(libraries) & set(ENGINE_BACKENDS):
        # A library that is left out here becomes the reason why its engines do not fit.
        with contextlib.suppress(MissingDependencyError, EngineError):
            versions[name] = LIBRARIES[name]().version
    return versions


def _gpu(index: int = 0) -> tuple[Gpu | None, str | None]:
    """The GPU, and the reason why it is unknown whether there is one; both None if there is none."""
    from fgclip_rt.engines.cuda import find_gpu

    try:
        return find_gpu(index), None
    except (MissingDependencyError, DeviceError) as error:
        return None, str(error).rstrip(".")


def _has_gpu(index: int) -> bool:
    gpu, unknown = _gpu(index)
    return gpu is not None or (unknown is not None and bool(nvidia_gpus()))


def _of_one_library(engines: Sequence[Engine]) -> list[Engine]:
    """The engines of the library that has most; two libraries would each hold the weights."""
    names: list[str] = [engine.key.library.name for engine in engines]
    if not names:
        return []
    most = max(ENGINE_BACKENDS, key=names.count)
    return [engine for engine in engines if engine.key.library.name == most]


def _why_not(bundle: Bundle, fits: Sequence[Fit]) -> str | None:
    """The reason why no engine fits, as part of a sentence; None if the bundle has none."""
    return f"{_problems(fits)}; see 'fgclip-rt doctor {bundle.path}'" if fits else None


def _none_fits(bundle: Bundle, precision: str, backend: str, fits: Sequence[Fit]) -> EngineError | DeviceError:
    if not fits:
        command = ["fgclip-rt", "build", str(bundle.path), "--backend", backend, "--precision", precision]
        return EngineError(
            f"{bundle.path} has no {backend} engine in {precision}; run '{shlex.join(command)}'.", code="engine_missing"
        )
    if _lacks_gpu(fits):
        return DeviceError(
            f"backend {backend!r} runs on NVIDIA GPUs, and {NO_GPU} here; use device 'cpu', or check the driver with "
            "nvidia-smi.",
            code="device_missing",
        )
    rebuild = rebuild_command(bundle, fits[0].engine.key, _gpu()[0])
    return EngineError(f"{_problems(fits)}; build again with '{rebuild}'.", code="engine_stale")


def _lacks_gpu(fits: Sequence[Fit]) -> bool:
    """Whether the machine is at fault, and not the engines."""
    return NO_GPU in {fit.problem for fit in fits}


def _problems(fits: Sequence[Fit]) -> str:
    """The reason why none of the engines fits, as part of a sentence."""
    reasons = list(dict.fromkeys(fit.problem for fit in fits))
    if len(fits) == 1:
        return f"engine {fits[0].engine.path.name} does not fit, because {reasons[0]}"
    if len(reasons) == 1:
        return f"none of {len(fits)} engines fits, because {reasons[0]}"
    return (
        f"none of {len(fits)} engines fits, {fits[0].engine.path.name} because {reasons[0]}, others for other reasons"
    )
