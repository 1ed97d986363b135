"""What this machine can run, why not for the rest, and what the precisions of a bundle are worth on it."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from PIL import Image

from .errors import DeviceError
from .graphs import ImageInputs, TextInputs
from .machine import INT8_FLAGS, available_memory, cpu_flags, nvidia_gpus, usable_cores, vector_extensions
from .packages import CUDA_REMEDY, ENGINE_PACKAGES, EXPORT_PACKAGES, missing_packages

if TYPE_CHECKING:
    from .manifest import ImageSpec
    from .model import Model

#: The graphs whose time is taken: what every image and every text goes through.
TIMED_GRAPHS = ("vision", "text")

#: How often each precision is timed, unless all of them together take longer than this many seconds for each.
ROUNDS = 9
_SECONDS_PER_PRECISION = 10.0

#: From this share of the baseline's time on, a precision counts as not faster: less may be noise.
NOT_FASTER = 0.95

_UNKNOWN_CPU = "unknown: this system does not list the CPU's flags"
_MEASURE = "measure with 'fgclip-rt doctor BUNDLE'"


class Check(msgspec.Struct, frozen=True):
    """One thing that a machine may be able to do.

    Attributes:
        name: what it is.
        ok: whether it is there.
        detail: what was found, or why it is not there.
        remedy: what to do about it; empty where nothing is to be done.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


class Timing(msgspec.Struct, frozen=True):
    """How long one graph of a bundle takes in one precision on this machine.

    Attributes:
        graph: which graph.
        case: what it ran on, such as ``256 patches``; one image or one text.
        precision: the precision that ran.
        milliseconds: median time of one run; None where the precision cannot run.
        runs: how many runs the median is of.
        baseline: the precision that it is compared with: fp32, or the bundle's first that runs.
        ratio: its time as a share of the baseline's; 1 for the baseline itself.
        backend: what ran it, and why.
        problem: why it cannot run; empty where it can.
    """

    graph: str
    case: str
    precision: str
    milliseconds: float | None
    runs: int
    baseline: str
    ratio: float | None
    backend: str
    problem: str = ""


def examine() -> list[Check]:
    """Look at this machine, and change nothing."""
    flags = cpu_flags()
    return [
        Check("python", True, f"{platform.python_version()} on {platform.platform()}"),
        _cpu(flags),
        _memory(),
        _onnxruntime(),
        _fp16(flags),
        _int8(flags),
        _cuda(),
        *(_engines(library) for library in ("tensorrt", "tensorrt-rtx")),
        _export(),
        _package(
            "parquet output", "pyarrow", "embed --output out.parquet needs pyarrow", "pip install 'fgclip-rt[parquet]'"
        ),
    ]


def _cpu(flags: set[str]) -> Check:
    found = vector_extensions(flags)
    return Check("cpu", True, f"{platform.machine()}, {usable_cores()} usable cores, vector extensions: {found}")


def _fp16(flags: set[str]) -> Check:
    """Whether fp16 saves time on this CPU. It runs on all of them, so the check is never failed."""
    if not flags:
        detail, remedy = f"{_UNKNOWN_CPU}; on most, onnxruntime computes fp16 in fp32", _MEASURE
    elif "asimdhp" in flags:
        detail, remedy = "runs; with asimdhp partly in fp16, which may be faster or slower than fp32", _MEASURE
    else:
        detail = "runs; onnxruntime computes it in fp32 here, so fp16 saves disk and no time"
        remedy = "take fp16 on the CPU only to save disk"
    return Check("fp16 on the CPU", True, detail, remedy)


def _int8(flags: set[str]) -> Check:
    """Whether INT8 saves time on this CPU. It runs on all of them, so the check is never failed."""
    hardware = next((name for name in INT8_FLAGS if name in flags), None)
    if not flags:
        detail = _UNKNOWN_CPU
    elif hardware:
        detail = f"{hardware}: 8-bit products in hardware, INT8 should be clearly faster than fp32"
    elif "avx2" in flags:
        detail = "runs; AVX2 without VNNI: INT8 is somewhat faster than fp32, or not at all"
    else:
        detail = "runs; this CPU lists nothing that speeds it up: INT8 may be slower than fp32"
    return Check("INT8 on the CPU", True, detail, _MEASURE)


def _memory() -> Check:
    available = available_memory()
    if available is None:
        return Check("memory", True, "unknown on this system")
    return Check("memory", True, f"{available / 1e9:.1f} GB available")


def _onnxruntime() -> Check:
    import onnxruntime as ort

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in ort.get_available_providers())
    return Check("bundles on the CPU", True, f"onnxruntime {ort.__version__}, providers: {providers}")


def _cuda() -> Check:
    import onnxruntime as ort

    name = "bundles on an NVIDIA GPU"
    gpus = nvidia_gpus()
    if not gpus:
        return Check(name, False, "no NVIDIA driver answers on this machine", "install the driver, or use device='cpu'")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return Check(
            name,
            False,
            f"{'; '.join(gpus)}, but this onnxruntime has no CUDA provider",
            CUDA_REMEDY,
        )
    return Check(name, True, "; ".join(gpus))


def _export() -> Check:
    if missing := missing_packages(EXPORT_PACKAGES):
        return Check("export", False, f"not installed: {', '.join(missing)}", "pip install 'fgclip-rt[export]'")
    return Check("export", True, f"torch {importlib.metadata.version('torch')}")


def _engines(library: str) -> Check:
    """Whether engines of a library can be built; running them needs a GPU besides, which is another check."""
    name = f"{library} engines"
    if missing := missing_packages(ENGINE_PACKAGES[library]):
        return Check(name, False, f"not installed: {', '.join(missing)}", f"pip install 'fgclip-rt[{library}]'")
    module, *_ = ENGINE_PACKAGES[library]
    try:
        version = importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        version = "installed"  # by other means than pip
    return Check(name, True, f"{library} {version}")


def _package(name: str, package: str, reason: str, remedy: str) -> Check:
    if missing_packages([package]):
        return Check(name, False, reason, remedy)
    return Check(name, True, f"{package} {importlib.metadata.version(package)}")


def time_precisions(
    bundle: Path, device: str = "auto", threads: int | None = None, progress: Callable[[], None] = lambda: None
) -> list[Timing]:
    """Time the graphs of :data:`TIMED_GRAPHS` in every precision of a bundle, on one image and one short text.

    The precisions take turns in this process, so that what else the machine does falls on all of them alike. It is a
    quick look: other work on the machine still changes the figures. Random weights take as long as others.

    Args:
        bundle: folder made by ``fgclip-rt export``.
        device: as for :func:`fgclip_rt.load`.
        threads: as for :func:`fgclip_rt.load`.
        progress: called after each round, at most :data:`ROUNDS` times per graph.

    Returns:
        One per graph and precision, in the order of the bundle's precisions.

    Raises:
        FgclipError: as :func:`fgclip_rt.load`.
    """
    from .model import load  # it needs this module

    precisions = load(bundle, device, threads=threads).manifest.precisions
    timings: list[Timing] = []
    for graph in TIMED_GRAPHS:
        # Loaded anew, or the last graph's sessions would stay in memory; the files' digests have been compared above.
        models = (load(bundle, device, precision, threads, check_hashes=False) for precision in precisions)
        timings += _time_graph(graph, list(models), progress)
    return timings


def _time_graph(graph: str, models: list[Model], progress: Callable[[], None]) -> list[Timing]:
    """Time one graph of the same bundle in several precisions."""
    case, run = _example(graph, models[0])
    problems = {model.precision: _problem(partial(run, model)) for model in models}
    able = [model for model in models if not problems[model.precision]]
    seconds = _take_turns({model.precision: partial(run, model) for model in able}, progress)
    milliseconds = {precision: 1000 * median(values) for precision, values in seconds.items()}
    baseline = "fp32" if "fp32" in milliseconds else next(iter(milliseconds), models[0].precision)

    def timing(model: Model) -> Timing:
        time = milliseconds.get(model.precision)
        return Timing(
            graph=graph,
            case=case,
            precision=model.precision,
            milliseconds=time,
            runs=len(seconds.get(model.precision, ())),
            baseline=baseline,
            ratio=None if time is None else time / milliseconds[baseline],
            backend=str(model.backend),
            problem=problems[model.precision],
        )

    return [timing(model) for model in models]


def _problem(run: Callable[[], object]) -> str:
    """Why ``run``, which loads a graph, cannot be done on this device; empty where it can."""
    try:
        run()
    except DeviceError as error:
        return str(error)
    return ""


def _example(graph: str, model: Model) -> tuple[str, Callable[[Model], object]]:
    """What ``graph`` is timed on, in words, and a function that runs any precision of ``model`` on it."""
    if graph == "text":
        # Tokens are made anew in each run, which takes a few hundredths of a millisecond.
        return f"{model.tokenizer.walk_type('short').length} tokens", lambda model: model.graphs.text(
            TextInputs.of(model.tokenizer(["a cat"]), model.tokenizer.walk_type("short").index)
        ).result()
    bucket = _common_bucket(model.manifest.image)
    patches = model.preparation(_noise(math.isqrt(bucket) * model.manifest.image.patch_size), bucket)
    return f"{len(patches.pixels)} patches", lambda model: model.graphs.vision(ImageInputs.of([patches])).result()


def _common_bucket(spec: ImageSpec) -> int:
    return 256 if 256 in spec.buckets else spec.buckets[len(spec.buckets) // 2]


def _noise(side: int) -> Image.Image:
    """An RGB image of ``side`` × ``side`` pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def _take_turns(runs: Mapping[str, Callable[[], object]], progress: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds that each of ``runs`` takes, by its name."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start = perf_counter()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()  # brings back into the caches what the others' turns drove out, which a service would find there
            seconds[name].append(_seconds(run))
        progress()
        if perf_counter() - start >= _SECONDS_PER_PRECISION * len(runs):
            break
    return seconds


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start
