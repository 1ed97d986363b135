"""Configurations of a repository's models: the one that is asked, and those that run a graph each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fgclip_rt.bundle import Bundle
from fgclip_rt.manifest import GraphFile, Manifest
from fgclip_rt.space import fingerprint

from .graph_models import GraphModel, tensors
from .pbtxt import Name, mapping
from .settings import BOXES, IMAGE, MODEL, TEXT, VECTOR, VECTORS, Repository

#: Instances of a TensorRT model on each GPU: one copies while the other computes.
_TENSORRT_INSTANCES = 2


def front_config(bundle: Bundle, precision: str, models: Sequence[GraphModel], settings: Repository) -> dict[str, Any]:
    """The model that is asked.

    Args:
        bundle: the whole bundle.
        precision: the precision that runs.
        models: those that it calls; none if it runs the graphs itself.
        settings: the repository's.
    """
    most = settings.max_batch_size
    if settings.advice is not None and not models:
        most = min(most, settings.advice.batch_size)
    gpu = settings.on_gpu and not models
    parameters = {
        "mode": settings.mode,
        "precision": precision,
        "manifest_sha256": bundle.manifest_sha256,
        "space_sha256": fingerprint(bundle, precision),
        "threads": str(settings.threads or ""),
        "device": "cuda" if settings.on_gpu else "cpu",
        "models": msgspec.json.encode(list(models)).decode(),
    }
    return {
        "name": MODEL,
        "backend": "python",
        "max_batch_size": most,
        "input": front_inputs(regions=settings.regions),
        "output": front_outputs(bundle.manifest, regions=settings.regions),
        "instance_group": [{"kind": Name("KIND_GPU" if gpu else "KIND_CPU"), "count": settings.fronts}],
        "dynamic_batching": {"max_queue_delay_microseconds": round(settings.delay * 1e6), **_queue(settings)},
        "parameters": mapping({key: {"string_value": value} for key, value in parameters.items()}),
    }


def front_inputs(*, regions: bool) -> list[dict[str, Any]]:
    """Inputs of the model that is asked."""
    files = [{"name": name, "data_type": Name("TYPE_STRING"), "dims": [1], "optional": True} for name in (IMAGE, TEXT)]
    boxes = {"name": BOXES, "data_type": Name("TYPE_FP32"), "dims": [-1, 4], "optional": True}
    return [*files, boxes] if regions else files


def front_outputs(manifest: Manifest, *, regions: bool) -> list[dict[str, Any]]:
    """Outputs of the model that is asked."""
    width = manifest.embedding_size
    vector = {"name": VECTOR, "data_type": Name("TYPE_FP32"), "dims": [width]}
    vectors = {"name": VECTORS, "data_type": Name("TYPE_FP32"), "dims": [-1, width]}
    return [vector, vectors] if regions else [vector]


def graph_config(
    model: GraphModel,
    file: GraphFile,
    settings: Repository,
    *,
    warm_up: Sequence[dict[str, Any]],
    preferred: int | None = None,
    profiles: Sequence[str] = (),
) -> dict[str, Any]:
    """A model that runs a graph.

    Args:
        model: the model.
        file: the graph.
        settings: the repository's.
        warm_up: requests that are run before it is ready.
        preferred: size of a batch that is run at once.
        profiles: numbers of a TensorRT plan's profiles.
    """
    group: dict[str, Any] = {"kind": Name("KIND_GPU" if settings.on_gpu else "KIND_CPU"), "count": 1}
    if model.backend == "tensorrt":
        group |= {"count": _TENSORRT_INSTANCES, "profile": list(profiles)}
    config = {
        "name": model.name,
        "backend": model.backend,
        "max_batch_size": model.max_batch_size,
        "input": tensors(model, file.inputs),
        "output": tensors(model, file.outputs),
        "instance_group": [group],
    }
    if model.max_batch_size:
        sizes = {} if preferred is None else {"preferred_batch_size": [preferred]}
        # Requests come in batches already; those of other instances may join if they are there.
        config["dynamic_batching"] = {**sizes, "max_queue_delay_microseconds": 0, **_queue(settings)}
    if warm_up:
        config["model_warmup"] = list(warm_up)
    if settings.threads is not None and model.backend == "onnxruntime":
        threads = {"intra_op_thread_count": {"string_value": str(settings.threads)}}
        config["parameters"] = mapping(threads)
    return config


def _queue(settings: Repository) -> dict[str, Any]:
    return {"default_queue_policy": {"max_queue_size": settings.max_queue, "timeout_action": Name("REJECT")}}
