"""Memory that engines need at work, as their builder states it: every graph in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from builder_log import builder_log
from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import Profile
from fgclip_rt.engines.profiles import Shapes, plan
from fgclip_rt.export import PRECISIONS, find_model
from fgclip_rt.export.bundle.weights import WeightFiles
from fgclip_rt.export.families.fgclip2 import model as fgclip2
from fgclip_rt.export.graphs.trace import GraphSource, trace
from fgclip_rt.export.precision.layers import find_layers
from fgclip_rt.export.precision.lower import lower

#: Largest batch of the engines here, and of those that ``build`` makes by default.
BATCH = 32

#: Bytes that an engine takes however small its tensors are.
LIBRARY = 16 << 20


@pytest.fixture(scope="module")
def sources() -> dict[str, GraphSource]:
    """The graphs of the pocket model with random weights."""
    spec = find_model("fg-clip2-pocket")
    assert spec is not None
    return dict(fgclip2.random(spec.config, 0).graphs())


@pytest.fixture(scope="module")
def float32(sources: dict[str, GraphSource]) -> Callable[[str], ir.Model]:
    """Gives a graph in float32, traced once."""
    traced: dict[str, ir.Model] = {}

    def graph(name: str) -> ir.Model:
        if name not in traced:
            traced[name] = trace(sources[name])
        return traced[name]

    return graph


def least_tensor(width: int, length: int) -> int:
    """Bytes of a float32 tensor [B, N, D]."""
    return 4 * BATCH * length * width


def scores(heads: int, length: int) -> int:
    """Bytes of float32 scores [B, heads, N, N], which are held where no kernel fuses an attention."""
    return 4 * BATCH * heads * length**2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("graph", "length", "width", "heads"), [("vision", 256, 160, 5), ("dense", 1024, 160, 5), ("text", 196, 128, 4)]
)
def test_activations_grow_with_the_length_and_not_with_its_square(
    sources: dict[str, GraphSource],
    float32: Callable[[str], ir.Model],
    tmp_path: Path,
    precision: str,
    graph: str,
    length: int,
    width: int,
    heads: int,
) -> None:
    """A pooling head written the other way took 16 times this at 256 patches, and at 1,024 memory of its own."""
    kind = PRECISIONS[precision]
    layers = find_layers(float32(graph), sources[graph].sensitive)
    ranges = {layer.name: 8.0 for layer in layers}
    lowered = lower(float32(graph), {layer.name: kind.type_of(layer) for layer in layers}, ranges)
    WeightFiles(tmp_path).write({"graph.onnx": lowered}, "weights.safetensors")
    axis = "tokens" if graph == "text" else "patches"
    log = builder_log(tmp_path / "graph.onnx", {axis: length}, profiles(sources[graph], length))
    assert log.allocations == 0
    assert log.activations < 16 * least_tensor(width, length) + (
        3 * scores(heads, length) if kind.name == "fp32" else 0
    )


def profiles(source: GraphSource, length: int) -> dict[str, Profile]:
    """Batches of 1 to :data:`BATCH`, for inputs whose first axis is the batch and whose second may be the length."""

    def shape(name: str, batch: int) -> tuple[int, ...]:
        rest = source.inputs[name].shape[1:]
        dynamic = source.dynamic.get(name, {})
        return (batch, *(length if index in dynamic else int(size) for index, size in enumerate(rest, 1)))

    return {name: Profile(shape(name, 1), shape(name, 8), shape(name, BATCH)) for name in source.inputs}


def test_regions_and_masks_take_no_memory_of_their_own(pocket_path: Path, square_path: Callable[[str], Path]) -> None:
    """They have no weights, so one graph serves all precisions."""
    for path, graph, width, length in ((pocket_path, "region", 160, 1024), (square_path("fineclip"), "mask", 64, 16)):
        bundle = Bundle.open(path, check_hashes=False)
        buckets = [length] if graph == "region" else None
        (spec,) = plan(bundle.manifest, ["fp16"], [graph], Shapes(buckets=buckets))
        log = builder_log(path / spec.file, dict(spec.fixed), dict(spec.profiles))
        assert log.allocations == 0
        assert log.activations < 16 * least_tensor(width, length) + LIBRARY


def test_queries_without_a_bias_are_not_copied(pocket_path: Path) -> None:
    """An attention reads the product of its projections in place; a bias of the queries costs three copies."""
    graph = Bundle.open(pocket_path).manifest.graphs["vision"]["fp16"].file
    model = ir.load(pocket_path / graph)
    blocks = sum(node.op_type == "MultiHeadAttention" for node in model.graph)
    biased = sum(str(name).endswith("attention.q.bias.fp16") for name in model.graph.initializers)
    assert 0 < biased < blocks // 2
    profiles = {
        "patches": Profile((1, 256, 768), (8, 256, 768), (BATCH, 256, 768)),
        "spatial_shapes": Profile((1, 2), (8, 2), (BATCH, 2)),
    }
    log = builder_log(pocket_path / graph, {"patches": 256}, profiles)
    assert log.attentions == blocks
    assert log.copies == 3 * biased
