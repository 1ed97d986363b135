"""The typed calls of graphs: their names are those that bundles have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import fields

from fgclip_rt import graphs
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError
from fgclip_rt.graphs import ImageInputs, MaskInputs, RegionInputs, TextInputs, feed
from fgclip_rt.model import Model
from helpers import SQUARE_NAMES, assert_one_sentence

KINDS = {
    "vision": ImageInputs,
    "dense": ImageInputs,
    "text": TextInputs,
    "region": RegionInputs,
    "mask": MaskInputs,
}


@pytest.fixture(params=["fgclip2", "fgclip2-masked", *SQUARE_NAMES])
def opened(
    request: pytest.FixtureRequest, bundle_path: Path, masked_bundle_path: Path, square_path: Callable[[str], Path]
) -> Bundle:
    """A bundle of each family."""
    own = {"fgclip2": bundle_path, "fgclip2-masked": masked_bundle_path}
    return Bundle.open(own.get(request.param) or square_path(request.param))


def test_graphs_take_and_give_tensors_of_the_names_that_are_written_here(opened: Bundle) -> None:
    for graph, files in opened.manifest.graphs.items():
        names = {field.name for field in fields(KINDS[graph])}
        for entry in files.values():
            assert {spec.name for spec in entry.inputs} <= names
            assert set(graphs._OUTPUTS[graph]) <= {spec.name for spec in entry.outputs}  # type: ignore[index]


def test_every_input_has_a_row_for_each_image_text_box_or_mask(opened: Bundle) -> None:
    """Servers that join requests concatenate inputs along their first axis; a scalar would fit one request only."""
    for files in opened.manifest.graphs.values():
        for entry in files.values():
            assert all(isinstance(spec.shape[0], str) for spec in (*entry.inputs, *entry.outputs))


def test_texts_of_all_kinds_may_run_together(model: Model) -> None:
    texts = ["a cat", "一只黑猫", "a cat"]
    kinds = [model.tokenizer.walk_type(name) for name in ("short", "box", "short")]
    tokens = model.tokenizer(texts, "short")
    mixed = TextInputs(tokens.input_ids, np.array([kind.index for kind in kinds], np.int32), tokens.attention_mask)
    together = model.graphs.text(mixed).result()
    for row, text, name in zip(together, texts, ("short", "box", "short"), strict=True):
        np.testing.assert_allclose(row, model.embed_texts([text], name)[0], rtol=0, atol=2e-6)
    assert not np.allclose(together[0], model.embed_texts(["a cat"], "box")[0], atol=1e-3)


def test_a_graph_that_the_model_lacks_is_refused_by_what_it_is_for(model: Model) -> None:
    assert not model.graphs.has("mask")
    with pytest.raises(ArgumentError) as info:
        model.graphs.mask(MaskInputs.of(np.zeros((1, 4, 96), np.float32), np.ones((1, 4), np.float32)))
    assert_one_sentence(info.value, "no features of masks")


def test_a_graph_is_fed_what_its_manifest_lists(model: Model, masked_model: Model) -> None:
    inputs = TextInputs.of(model.tokenizer(["a"]), 0)
    assert "attention_mask" not in feed(inputs, model.manifest.graphs["text"]["fp32"])
    assert "attention_mask" in feed(inputs, masked_model.manifest.graphs["text"]["fp32"])
