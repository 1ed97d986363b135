"""Trials: any of some layers in higher types, against graphs that are lowered for each choice."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fgclip_rt.arrays import FloatArray
from fgclip_rt.bundle import Bundle
from fgclip_rt.export import PRECISIONS
from fgclip_rt.export.bundle.assembly import Assembly
from fgclip_rt.export.bundle.probe import draw_image
from fgclip_rt.export.precision.graph_backend import GraphBackend
from fgclip_rt.export.precision.layers import find_layers, find_residuals
from fgclip_rt.export.precision.lower import lower
from fgclip_rt.export.precision.trials import Trials
from fgclip_rt.model import Model

TOWERS = {"vision": ("vision", "dense", "region"), "text": ("text",)}


@pytest.fixture
def assembly(masked_bundle_path: Path, tmp_path: Path) -> Assembly:
    """A copy of the masked bundle, to which scratch files can be added."""
    folder = tmp_path / "bundle"
    shutil.copytree(masked_bundle_path, folder)
    return Assembly(folder, Bundle.open(folder, check_hashes=False).manifest)


def vectors(model: Model, tower: str) -> FloatArray:
    """Vectors of everything that a tower makes of a few inputs."""
    if tower == "text":
        return np.concatenate([model.embed_texts(["a red cube", "一只猫"], name) for name in ("short", "box")])
    image = model.dense(draw_image(60, 90, seed=3))
    parts = (image.features().reshape(-1, model.dim), image.regions([[4, 4, 50, 40]]))
    return np.concatenate([model.embed_images(draw_image(60, 90, seed=3)), *parts])


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", ["int8", "fp8", "fp16", "bf16"])
def test_every_choice_computes_what_graphs_that_are_lowered_for_it_do(
    assembly: Assembly, masked_graphs: Mapping[str, ir.Model], name: str, tower: str
) -> None:
    precision = PRECISIONS[name]
    graphs = {graph: masked_graphs[graph] for graph in TOWERS[tower]}
    layers = {layer.name: layer for graph in graphs.values() for layer in find_layers(graph)}
    types = {layer.name: precision.type_of(layer) for layer in layers.values()}
    sums = [residual.name for graph in graphs.values() for residual in find_residuals(graph)]
    types |= dict.fromkeys(sums, precision.residual)
    ranges = dict.fromkeys(layers, 4.0)
    attention = next(layer.name for layer in layers.values() if layer.kind == "attention")
    some = sorted({*list(layers)[1::4], attention})
    higher = {layer: precision.next_above(types[layer]) for layer in some}

    trials = Trials(assembly, graphs, types, higher, ranges)
    results = []
    for chosen in (some[:1], [], some, some[1:]):
        expected_types = {**types, **{layer: higher[layer] for layer in chosen}}
        lowered = {graph: lower(model, expected_types, ranges) for graph, model in graphs.items()}
        bundle = assembly.write_manifest()
        expected = vectors(Model(bundle, GraphBackend(bundle, "fp32", lowered, as_on_a_gpu=True)), tower)
        actual = vectors(trials.model(chosen), tower)
        # A sum in another order takes a number across a border of rounding now and then.
        np.testing.assert_allclose(actual, expected, atol=2e-3)
        assert np.isclose(actual, expected, atol=1e-5).mean() > 0.5
        results.append(actual)
    differences = [np.abs(one - other).max() for i, one in enumerate(results) for other in results[:i]]
    assert min(differences) > 1e-5
