"""Models that run one graph each by a backend of Triton's own, for images or texts of one length.

Triton joins only requests of equal shapes. So each bucket of images is a model of its own, and so is each length of
texts; whoever calls one pads to its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from fgclip_rt.arrays import Array
from fgclip_rt.interface import ATTENTION_MASK, FROM_DENSE, SPATIAL_SHAPES
from fgclip_rt.manifest import Axis, GraphFile, Manifest, TensorSpec

from .pbtxt import Name, mapping

#: Triton's names of the types that :class:`TensorSpec` names.
TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}


class GraphModel(msgspec.Struct, frozen=True):
    """A model that runs a graph.

    Attributes:
        name: of the model.
        graph: of the graph.
        backend: runs it, ``onnxruntime`` or ``tensorrt``.
        length: patches or tokens of each image or text; None for boxes, which come with images of any length.
        max_batch_size: most images or texts of a batch; 0 if Triton may not join requests.
    """

    name: str
    graph: str
    backend: str
    length: int | None
    max_batch_size: int


def graph_models(
    manifest: Manifest,
    prefix: str,
    backend: str,
    batch_size: Callable[[str, int], int],
    *,
    regions: bool = False,
) -> list[GraphModel]:
    """The models of a bundle: one for each bucket, and one for each length of texts.

    Args:
        manifest: the bundle's.
        prefix: begins their names.
        backend: runs the graphs that have weights.
        batch_size: most images or texts of a batch of this graph and this length.
        regions: add those of boxes.
    """
    lengths = {
        "vision": manifest.image.buckets,
        "text": sorted({walk_type.length for walk_type in manifest.text.walk_types.values()}),
    }
    if regions:
        lengths["dense"] = manifest.image.buckets
    models = [
        GraphModel(f"{prefix}_{graph}_{length}", graph, backend, length, batch_size(graph, length))
        for graph, known in lengths.items()
        for length in known
    ]
    # Its rows are boxes, and its images are fewer. It has no weights, and ONNX Runtime takes images of any length.
    return [*models, GraphModel(f"{prefix}_region", "region", "onnxruntime", None, 0)] if regions else models


def tensors(model: GraphModel, specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Inputs or outputs of a graph as a configuration has them, whose shapes lack the axis of the batch."""
    return [_tensor(model, spec) for spec in specs]


def _tensor(model: GraphModel, spec: TensorSpec) -> dict[str, Any]:
    described = {"name": spec.name, "data_type": Name(TYPES[spec.dtype])}
    shape = spec.shape[1:] if model.max_batch_size else spec.shape
    dims = [_size(model, axis) for axis in shape]
    # A shape may not be empty. The reshape takes away the axis that is added for that.
    return {**described, "dims": dims} if dims else {**described, "dims": [1], "reshape": {"shape": []}}


def _size(model: GraphModel, axis: int | str) -> int:
    if isinstance(axis, int):
        return axis
    return model.length if model.length is not None and axis in (Axis.PATCHES, Axis.TOKENS) else -1


def warm_up(model: GraphModel, file: GraphFile) -> tuple[list[dict[str, Any]], Mapping[str, Array]]:
    """Requests of one item and of a full batch, and the files of their inputs that may not be zeros.

    Both are empty for a graph whose requests are not joined: it has no weights and is ready at once.
    """
    if model.graph in FROM_DENSE or model.length is None:
        return [], {}
    rows = math.isqrt(model.length)
    known = {
        SPATIAL_SHAPES: np.array([rows, model.length // rows], np.int32),
        ATTENTION_MASK: np.ones(model.length, np.int32),
    }
    files = {spec.name: known[spec.name] for spec in file.inputs if spec.name in known}
    inputs = [
        {
            "data_type": tensor["data_type"],
            "dims": tensor["dims"],
            **({"input_data_file": tensor["name"]} if tensor["name"] in files else {"zero_data": True}),
        }
        for tensor in tensors(model, file.inputs)
    ]
    entries = mapping(dict(zip((spec.name for spec in file.inputs), inputs, strict=True)))
    sizes = sorted({1, model.max_batch_size})
    return [{"name": f"{size} at once", "batch_size": size, "inputs": entries} for size in sizes], files
