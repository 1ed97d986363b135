"""Writing a model repository."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from fgclip_rt.backends.external_data import locations
from fgclip_rt.bundle import MANIFEST, Bundle
from fgclip_rt.engine_files import RECORD, Engine
from fgclip_rt.errors import ArgumentError
from fgclip_rt.outputs import check_space, folder_written_whole, output_exists

from .advice import usual_batch
from .configs import front_config, graph_config
from .graph_models import GraphModel, graph_models, warm_up
from .pbtxt import render
from .plans import find_plans, largest_batch, profiles
from .readme import readme
from .settings import BUNDLE, MODEL, Repository

CONFIG = "config.pbtxt"

#: Name of a graph in the folder of a version: of a file in this folder, which has the weights beside it.
ONNX = "model.onnx"

#: Name of a plan, and beside it the record of its build, which Triton does not read.
PLAN = "model.plan"

_FRONT = '''\
"""The model that is asked. It needs fgclip-rt in the Python of the server."""

from fgclip_rt.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(bundle: Bundle, output: Path, settings: Repository, *, overwrite: bool = False) -> None:
    """Write a model repository, whole or not at all. It holds copies of all that it needs of the bundle.

    Args:
        bundle: the opened bundle.
        output: the repository's folder.
        settings: its settings.
        overwrite: replace what stands there.

    Raises:
        OutputError: the folder exists, or cannot be written.
        ArgumentError: a setting is out of range, or the bundle has no such precision, or no graphs of boxes.
        EngineError: the bundle lacks an engine that the mode ``tensorrt`` needs.
    """
    settings.check()
    precision = settings.precision or bundle.manifest.precisions[0]
    bundle.check_precision(precision)
    if settings.regions and "region" not in bundle.manifest.graphs:
        raise ArgumentError(
            f"{bundle.manifest.model.name} has no features of regions; leave --regions out.", code="graph_missing"
        )
    if output.exists() and not overwrite:
        raise output_exists(output)
    models = [] if settings.mode == "in-process" else _graph_models(bundle, settings)
    plans = find_plans(bundle, precision, models) if settings.mode == "tensorrt" else {}
    models = [_within(model, plans, bundle) for model in models]
    check_space(output, _needed(bundle, precision, models, plans))
    with folder_written_whole(output, tuple) as folder:
        for model in models:
            _write_graph(bundle, folder, model, precision, settings, plans.get(model.name))
        version = folder / MODEL / "1"
        version.mkdir(parents=True)
        config = front_config(bundle, precision, models, settings)
        (folder / MODEL / CONFIG).write_text(render(config), encoding="utf-8")
        (version / "model.py").write_text(_FRONT, encoding="utf-8")
        if models:
            (version / BUNDLE).mkdir()
            for name in (MANIFEST, bundle.manifest.text.tokenizer):
                shutil.copyfile(bundle.file(name), version / BUNDLE / name)
        else:
            shutil.copytree(bundle.path, version / BUNDLE)
        libraries = sorted({str(engine.key.library) for engine in plans.values()})
        (folder / "README.md").write_text(readme(bundle.manifest, models, settings, libraries), encoding="utf-8")


def _graph_models(bundle: Bundle, settings: Repository) -> list[GraphModel]:
    usual = usual_batch(gpu=settings.on_gpu, most=settings.max_batch_size)

    def batch_size(graph: str, length: int) -> int:
        advised = settings.advice.of(length) if settings.advice is not None and graph != "text" else None
        return usual(graph, length) if advised is None else min(advised, settings.max_batch_size)

    return graph_models(bundle.manifest, MODEL, settings.mode, batch_size, regions=settings.regions)


def _within(model: GraphModel, plans: Mapping[str, Engine], bundle: Bundle) -> GraphModel:
    """The model with batches that its plan takes."""
    if model.name not in plans:
        return model
    most = min(model.max_batch_size, largest_batch(plans[model.name], bundle))
    return msgspec.structs.replace(model, max_batch_size=most)


def _needed(bundle: Bundle, precision: str, models: Sequence[GraphModel], plans: Mapping[str, Engine]) -> int:
    """Bytes that the repository takes where hard links are possible."""
    if not models:
        return bundle.size
    names = {bundle.manifest.graphs[model.graph][precision].file for model in models if model.name not in plans}
    weights = {weight for name in names for weight in locations(bundle.file(name).read_bytes())}
    files = sum(bundle.file(name).stat().st_size for name in names | weights)
    return files + sum(engine.size for engine in plans.values())


def _write_graph(
    bundle: Bundle, folder: Path, model: GraphModel, precision: str, settings: Repository, engine: Engine | None
) -> None:
    file = bundle.manifest.graphs[model.graph][precision]
    version = folder / model.name / "1"
    version.mkdir(parents=True)
    numbers: Sequence[str] = ()
    if engine is not None:
        numbers = profiles(engine, bundle)
        shutil.copyfile(engine.path / engine.record.plan, version / PLAN)
        shutil.copyfile(engine.path / RECORD, version / RECORD)
    else:
        (version / ONNX).mkdir()
        shutil.copyfile(bundle.file(file.file), version / ONNX / ONNX)
        for name in locations(bundle.file(file.file).read_bytes()):
            _link_or_copy(bundle.file(name), version / ONNX / name, folder)
    requests, arrays = warm_up(model, file)
    if arrays:
        (folder / model.name / "warmup").mkdir()
    for name, array in arrays.items():
        (folder / model.name / "warmup" / name).write_bytes(array.tobytes())
    advised = settings.advice is not None and model.graph != "text" and model.length is not None
    preferred = model.max_batch_size if advised else None
    config = graph_config(model, file, settings, warm_up=requests, preferred=preferred, profiles=numbers)
    (folder / model.name / CONFIG).write_text(render(config), encoding="utf-8")


def _link_or_copy(source: Path, target: Path, folder: Path) -> None:
    """Put a file of weights where a graph looks for it. On one disk all models share one copy of it.

    Graphs find weights in their own folder only, and onnxruntime refuses links that lead out of it, but not hard ones.
    """
    first = next(folder.glob(f"*/1/{ONNX}/{target.name}"), None)
    if first is not None:
        try:
            target.hardlink_to(first)
        except OSError:  # a disk without hard links
            first = None
    if first is None:
        shutil.copyfile(source, target)
