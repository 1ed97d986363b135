"""Input of the engines' parser: the same computation, in a form that TensorRT makes fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto

from builder_log import BuilderLog, builder_log
from fgclip_rt import parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.engines.network import parser_input, weight_files
from fgclip_rt.engines.profiles import Shapes, plan
from fgclip_rt.errors import EngineError
from fgclip_rt.export import PRECISIONS
from fgclip_rt.manifest import KeyBias
from helpers import SQUARE_NAMES, assert_one_sentence, graph_inputs

Array = np.ndarray[Any, Any]


def session(model: Path | bytes, folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if isinstance(model, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def metadata(holder: ModelProto | NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in holder.metadata_props}


def attentions(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "MultiHeadAttention"]


def reads(model: ModelProto, names: Sequence[str]) -> int:
    """Number of nodes that cast one of these values to the type of an attention with a mask."""
    return sum(node.op_type == "CastLike" and node.input[0] in names for node in model.graph.node)


@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_attention_with_a_mask_gives_the_same_numbers(masked_bundle_path: Path, graph: str) -> None:
    """The inputs are two images, one with patches past its grid, or two texts, one with hidden tokens."""
    path = masked_bundle_path / f"{graph}.onnx"
    inputs = graph_inputs(graph)
    fixed = {"patches": 12, "tokens": 64}
    changed = session(parser_input(path, fixed), path.parent).run(None, inputs)
    for actual, expected in zip(changed, session(path, path.parent).run(None, inputs), strict=True):
        # Features of patches past a grid are not specified.
        rows = np.s_[:, :10] if expected.ndim == 3 else np.s_[:]
        assert parity.compare(actual[rows], expected[rows], PRECISIONS["fp32"].limits, graph, "").passed


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.9999), ("int8", 0.99)])
def test_lower_precisions_do_too(pocket_path: Path, precision: str, least: float) -> None:
    """Another rounding may take a value to INT8's next step, and values computed from it too.

    Of noise it changes single patches to cosines of 0.93, with as without the channels, so the mean tells.
    """
    path = pocket_path / f"dense.{precision}.onnx"
    changed = session(parser_input(path, {"patches": 12}), path.parent)
    unchanged = session(path, path.parent)
    for seed in range(5):
        inputs = graph_inputs("dense", seed)
        for actual, expected in zip(changed.run(None, inputs), unchanged.run(None, inputs), strict=True):
            cosines = (actual * expected).sum(-1) / np.linalg.norm(actual, axis=-1) / np.linalg.norm(expected, axis=-1)
            assert (cosines[:, :10] if expected.ndim == 3 else cosines).mean() > least


def check_key_biases(path: Path, hiding: Sequence[str]) -> None:
    """Checks that every graph of a bundle names the attentions that hide keys, and that parsers get a mask."""
    bundle = Bundle.open(path, check_hashes=False)
    for graph, files in bundle.manifest.graphs.items():
        for file in {entry.file for entry in files.values()}:
            model = onnx.load(path / file, load_external_data=False)
            named = [names for node in attentions(model) if (names := metadata(node))]
            assert len(named) == (len(attentions(model)) if graph in hiding else 0)
            assert (len(named) > 0) == (graph in hiding)
            assert metadata(model)[KeyBias.COUNT] == str(len(named))
            queries, keys = ([names[key] for names in named] for key in (KeyBias.QUERIES, KeyBias.KEYS))
            assert len({*queries, *keys}) == 2 * len(named)
            parsed = onnx.load_model_from_string(parser_input(path / file, {}))
            for values in (queries, keys):
                assert (reads(model, values), reads(parsed, values)) == (0, len(named))


def test_every_graph_names_what_hides_its_keys(pocket_path: Path) -> None:
    check_key_biases(pocket_path, ["vision", "dense"])


def test_so_do_texts_with_a_mask(masked_bundle_path: Path) -> None:
    check_key_biases(masked_bundle_path, ["vision", "dense", "text"])


@pytest.mark.parametrize("name", SQUARE_NAMES)
def test_attention_that_hides_nothing_stays(name: str, square_path: Callable[[str], Path]) -> None:
    check_key_biases(square_path(name), [])


def without_a_name(model: ModelProto) -> None:
    entries = attentions(model)[-1].metadata_props
    del entries[[entry.key for entry in entries].index(KeyBias.KEYS)]


def with_another_name(model: ModelProto) -> None:
    """Leaves a graph as a tool does that renames values."""
    for entry in attentions(model)[0].metadata_props:
        if entry.key == KeyBias.QUERIES:
            entry.value = "other"


def without_metadata(model: ModelProto) -> None:
    """Leaves a graph as an earlier exporter wrote it."""
    del model.metadata_props[:]
    for node in attentions(model):
        del node.metadata_props[:]


def without_the_count(model: ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize("change", [without_a_name, with_another_name, without_metadata, without_the_count])
def test_a_graph_that_does_not_name_its_keys_is_refused(
    masked_bundle_path: Path, tmp_path: Path, change: Callable[[ModelProto], None]
) -> None:
    """Its engine would write all attention scores to memory, without a warning."""
    path = tmp_path / "vision.onnx"
    model = onnx.load(masked_bundle_path / path.name, load_external_data=False)
    change(model)
    onnx.save(model, path)
    for read in (lambda: parser_input(path, {}), lambda: weight_files(path)):
        with pytest.raises(EngineError) as info:
            read()
        assert_one_sentence(info.value, str(path), "was exported by an earlier fgclip-rt; export the bundle again.")


def built(bundle: Path, graph: str, precision: str) -> BuilderLog:
    """The builder's account of an engine; of images that may have any shape, for 256 patches."""
    manifest = Bundle.open(bundle, check_hashes=False).manifest
    buckets = [256] if 256 in manifest.image.buckets else None
    (spec,) = plan(manifest, [precision], [graph], Shapes(buckets=buckets))
    return builder_log(bundle / spec.file, dict(spec.fixed), dict(spec.profiles))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_attention_becomes_one_kernel(pocket_path: Path, precision: str) -> None:
    assert built(pocket_path, "vision", precision).attentions == 6


def test_a_narrow_stream_is_added_by_the_kernel_of_the_product_before_it(pocket_path: Path) -> None:
    """In float32 the next norm's kernel reads and writes it, at twice the memory; so does the last norm's here."""
    assert built(pocket_path, "vision", "fp16").kernels("FcAddAdd") == 2 * 6 - 1


def test_8_bit_products_write_16_bits_and_are_scaled_by_the_next_kernel(pocket_path: Path) -> None:
    """A scale that is applied to the product in float16 would follow an overflow."""
    log = built(pocket_path, "vision", "int8")
    quantised = [written for read, written in log.products if read == "Int8"]
    assert len(quantised) == 1 + 4 * 6
    assert set(quantised) == {"Half"}
    assert log.kernels("CastMulAdd\\w*") >= 3 * 6
    assert log.kernels("Mul\\w*") == 0


@pytest.mark.parametrize("name", SQUARE_NAMES)
def test_so_do_those_of_towers_with_a_class_token(name: str, square_path: Callable[[str], Path]) -> None:
    """One of them is the last, in which the class token alone attends. Heads of texts are too small for a kernel."""
    log = built(square_path(name), "dense", "fp16")
    assert (log.attentions, log.allocations) == (3, 0)
