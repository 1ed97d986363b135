"""The engines of a bundle that Triton's TensorRT backend can run."""

from __future__ import annotations

from collections.abc import Sequence

from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import RECIPE, Engine, axes, find_engines
from fgclip_rt.engines.profiles import batch_parts
from fgclip_rt.errors import EngineError
from fgclip_rt.manifest import Axis

from .graph_models import GraphModel


def find_plans(bundle: Bundle, precision: str, models: Sequence[GraphModel]) -> dict[str, Engine]:
    """The engine of each model that TensorRT runs, by the model's name. All are of one version of TensorRT.

    Raises:
        EngineError: a model has no engine, or several; an engine is damaged; or they are of several versions.
    """
    usable = [engine for engine in find_engines(bundle) if _is_plan(engine, bundle)]
    found = {model.name: _only(model, usable, bundle, precision) for model in models if model.backend == "tensorrt"}
    versions = sorted({engine.key.library.version for engine in found.values()})
    if len(versions) > 1:
        raise EngineError(
            f"{bundle.path} has engines of TensorRT {' and '.join(versions)}, and a server runs one; build them again "
            "with 'fgclip-rt build --backend tensorrt'.",
            code="engine_missing",
        )
    return found


def largest_batch(engine: Engine, bundle: Bundle) -> int:
    """The most images or texts that an engine takes at once."""
    return _batches(engine, bundle)[2]


def profiles(engine: Engine, bundle: Bundle) -> list[str]:
    """Numbers of the plan's profiles, of which Triton takes the one that fits a batch best."""
    return [str(number) for number, _ in enumerate(batch_parts(_batches(engine, bundle)))]


def _batches(engine: Engine, bundle: Bundle) -> tuple[int, int, int]:
    file = bundle.manifest.graphs[engine.key.graph][engine.key.precision]
    return axes(engine.key.profiles, file.inputs)[Axis.BATCH]


def _is_plan(engine: Engine, bundle: Bundle) -> bool:
    """Whether an engine is of this bundle, of plain TensorRT, and whole: Triton has no weights for a stripped plan."""
    key, files = engine.key, bundle.manifest.files
    of_this = all(name in files and files[name].sha256 == digest for name, digest in key.files.items())
    return of_this and key.library.name == "tensorrt" and key.recipe == RECIPE and not key.stripped


def _only(model: GraphModel, engines: Sequence[Engine], bundle: Bundle, precision: str) -> Engine:
    file = bundle.manifest.graphs[model.graph][precision].file
    fitting = [
        engine
        for engine in engines
        if engine.key.graph == model.graph and file in engine.key.files and _length(engine, bundle) == model.length
    ]
    what = f"the {model.graph} graph at length {model.length}"
    if not fitting:
        raise EngineError(
            f"{bundle.path} has no TensorRT engine of {what} in {precision}; build it with 'fgclip-rt build --backend "
            "tensorrt'.",
            code="engine_missing",
        )
    if len(fitting) > 1:
        names = " and ".join(engine.path.name for engine in fitting)
        raise EngineError(
            f"{bundle.path} has several TensorRT engines of {what}, {names}; move all but one out of its engines/.",
            code="engine_missing",
        )
    return fitting[0]


def _length(engine: Engine, bundle: Bundle) -> int:
    """Patches or tokens of each image or text, which are fixed, if only by the model's images."""
    first = bundle.manifest.graphs[engine.key.graph][engine.key.precision].inputs[0]
    return engine.key.profiles[first.name].max[1]
