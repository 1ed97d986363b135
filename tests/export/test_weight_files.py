"""Files of weights that graphs share, and a bundle in the making that is written, changed and finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx_ir import tensor_adapters
from safetensors import safe_open

from exporting import SENSITIVE
from fgclip_rt import parity
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.bundle import MANIFEST, Bundle
from fgclip_rt.export.bundle.assembly import Assembly
from fgclip_rt.export.bundle.weights import WeightFiles, _same, external_tensors
from fgclip_rt.export.precision.layers import find_layers
from fgclip_rt.export.precision.lower import lower
from fgclip_rt.export.precision.precisions import PRECISIONS
from fgclip_rt.manifest import Limits, Lowering, Parity
from helpers import graph_inputs

GRAPHS = ("vision", "dense", "text", "region")
LIMITS = Limits(max_error=None, min_cosine=0.5, dense_share=1.0)
LOWERING = Lowering(linear="float16", other="float16", moved={}, residual=(), smoothed=0, calibration=None)


def model(**weights: Any) -> ir.Model:
    """A graph that holds weights and does nothing with them."""
    values = []
    for name, weight in weights.items():
        tensor = tensor_adapters.TorchTensor(weight) if isinstance(weight, torch.Tensor) else ir.Tensor(weight)
        tensor.name = name
        values.append(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor))
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20}, name="graph")
    return ir.Model(graph, ir_version=10)


def full(value: float, size: int = 100) -> NDArray[np.float32]:
    return np.full(size, value, np.float32)


def stored(path: Path) -> set[str]:
    with safe_open(path, "np") as file:
        return set(file.keys())


def locations(path: Path) -> dict[str, str]:
    """Files of a graph's weights, by name."""
    return {str(tensor.name): str(tensor.location) for tensor in external_tensors(ir.load(path))}


def values(path: Path) -> dict[str, NDArray[Any]]:
    return {
        name: np.asarray(value.const_value.numpy())
        for name, value in ir.load(path).graph.initializers.items()
        if value.const_value is not None
    }


# Files of weights


def test_a_weight_of_one_name_is_stored_once_for_all_graphs_and_files(tmp_path: Path) -> None:
    files = WeightFiles(tmp_path)
    files.write({"a.onnx": model(w=full(1)), "b.onnx": model(w=full(1), v=full(2))}, "first.safetensors")
    files.write({"c.onnx": model(v=full(2), u=full(3))}, "second.safetensors")
    assert stored(tmp_path / "first.safetensors") == {"w", "v"}
    assert stored(tmp_path / "second.safetensors") == {"u"}
    assert locations(tmp_path / "a.onnx") == {"w": "first.safetensors"}
    assert locations(tmp_path / "b.onnx") == {"w": "first.safetensors", "v": "first.safetensors"}
    assert locations(tmp_path / "c.onnx") == {"v": "first.safetensors", "u": "second.safetensors"}
    for graph, expected in (("a", {"w": 1}), ("b", {"w": 1, "v": 2}), ("c", {"v": 2, "u": 3})):
        found = values(tmp_path / f"{graph}.onnx")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], full(value), strict=True)


def test_a_file_of_weights_with_nothing_new_is_not_written(tmp_path: Path) -> None:
    files = WeightFiles(tmp_path)
    files.write({"a.onnx": model(w=full(1))}, "first.safetensors")
    files.write({"b.onnx": model(w=full(1))}, "second.safetensors")
    files.write({"c.onnx": model(few=full(1, 64))}, "third.safetensors")
    files.write({"d.onnx": model()}, "fourth.safetensors")
    written = {"a.onnx", "b.onnx", "c.onnx", "d.onnx", "first.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert not locations(tmp_path / "c.onnx")
    np.testing.assert_array_equal(values(tmp_path / "c.onnx")["few"], full(1, 64))


@pytest.mark.parametrize("other", [full(2), full(1, 101), full(1).astype(np.float16), full(1).reshape(10, 10)])
@pytest.mark.parametrize("earlier", [True, False])
def test_one_name_for_two_weights_is_refused(tmp_path: Path, other: NDArray[Any], earlier: bool) -> None:
    files = WeightFiles(tmp_path)
    graphs = {"a.onnx": model(w=full(1)), "b.onnx": model(w=other)}
    if earlier:
        files.write({"a.onnx": graphs.pop("a.onnx")}, "weights.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"b\.onnx uses the name w "):
        files.write(graphs, "more.safetensors")
    assert sorted(tmp_path.iterdir()) == before


def test_weights_of_one_name_must_be_the_same_to_the_byte() -> None:
    ones = torch.ones(100)
    assert _same(ones, torch.ones(100))
    assert not _same(ones, torch.ones(100, dtype=torch.float16))
    assert not _same(ones, ones[:50])
    square = torch.arange(100.0).reshape(10, 10)
    assert _same(square.T, square.clone().T)
    assert not _same(square, square.T)


def test_a_file_that_does_not_last_is_not_referred_to_later(tmp_path: Path) -> None:
    files = WeightFiles(tmp_path)
    files.write({"a.onnx": model(w=full(1))}, "first.safetensors")
    files.write({"b.onnx": model(w=full(1), v=full(2))}, "scratch.safetensors", lasting=False)
    assert locations(tmp_path / "b.onnx") == {"w": "first.safetensors", "v": "scratch.safetensors"}
    files.write({"c.onnx": model(w=full(1), v=full(2))}, "second.safetensors")
    files.write({"d.onnx": model(u=full(3))}, "scratch.safetensors", lasting=False)
    assert locations(tmp_path / "c.onnx") == {"w": "first.safetensors", "v": "second.safetensors"}
    np.testing.assert_array_equal(values(tmp_path / "d.onnx")["u"], full(3))


def test_what_a_removed_file_held_is_stored_anew(tmp_path: Path) -> None:
    files = WeightFiles(tmp_path)
    files.write({"a.onnx": model(w=full(1))}, "first.safetensors")
    files.write({"b.onnx": model(v=full(2))}, "second.safetensors")
    files.remove("second.safetensors")
    files.remove("never written.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "b.onnx", "first.safetensors"}
    files.write({"c.onnx": model(w=full(1), v=full(4))}, "third.safetensors")
    assert locations(tmp_path / "c.onnx") == {"w": "first.safetensors", "v": "third.safetensors"}
    np.testing.assert_array_equal(values(tmp_path / "c.onnx")["v"], full(4))


@pytest.mark.parametrize(
    "dtype",
    [
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.INT8,
        ir.DataType.INT64,
    ],
)
def test_every_type_survives_to_the_byte(tmp_path: Path, dtype: ir.DataType) -> None:
    numbers = np.random.default_rng(0).normal(0, 40, (11, 30)).astype(dtype.numpy())
    files = WeightFiles(tmp_path)
    files.write({"a.onnx": model(w=numbers, t=numbers.T), "b.onnx": model(w=numbers.copy())}, "first.safetensors")
    files.write({"c.onnx": model(w=numbers.copy())}, "second.safetensors")
    assert not (tmp_path / "second.safetensors").exists()
    for graph, name, expected in (("a", "w", numbers), ("a", "t", numbers.T), ("c", "w", numbers)):
        tensor = ir.load(tmp_path / f"{graph}.onnx").graph.initializers[name].const_value
        assert tensor is not None
        assert (tensor.dtype, list(tensor.shape)) == (dtype, list(expected.shape))
        assert tensor.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_of_torch_tensors_are_written_as_they_read(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.arange(120, dtype=dtype).reshape(12, 10)
    views = {"a.onnx": model(w=weight.T), "b.onnx": model(w=weight.T, part=weight[2:])}
    WeightFiles(tmp_path).write(views, "weights.safetensors")
    np.testing.assert_array_equal(values(tmp_path / "a.onnx")["w"].astype(np.float32), weight.T.float().numpy())
    np.testing.assert_array_equal(values(tmp_path / "b.onnx")["part"].astype(np.float32), weight[2:].float().numpy())


# A bundle in the making


@pytest.fixture
def assembly(masked_bundle_path: Path, tmp_path: Path) -> Assembly:
    """An empty bundle for the graphs of the masked checkpoint."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    old = Bundle.open(masked_bundle_path, check_hashes=False).manifest
    for file in (old.text.tokenizer, old.parity.probe):
        (folder / file).write_bytes(b"any " + file.encode())
    empty = Parity(probe=old.parity.probe, exact_probe=None, limits={}, measured={})
    return Assembly(folder, msgspec.structs.replace(old, graphs={}, lowering={}, parity=empty, files={}))


def in_precision(graphs: Mapping[str, ir.Model], precision: str) -> dict[str, ir.Model]:
    models = {}
    for name, graph in graphs.items():
        types = {layer.name: PRECISIONS[precision].type_of(layer) for layer in find_layers(graph, SENSITIVE[name])}
        models[name] = lower(graph, types, dict.fromkeys(types, 4.0) | {"vision.patch_embedding": 128.0})
    return models


def write(assembly: Assembly, graphs: Mapping[str, ir.Model], *precisions: str) -> None:
    rows = [parity.compare_exactly(np.ones((1, 1)), np.ones((1, 1)), "tokens", "short")]
    for precision in precisions:
        lowering = None if precision == "fp32" else LOWERING
        assembly.write(precision, in_precision(graphs, precision), LIMITS, lowering)
        assembly.set_measured(precision, rows)


def results(bundle: Bundle, precision: str) -> dict[str, list[NDArray[Any]]]:
    """Outputs of the graphs that have weights."""
    backend = OnnxRuntimeBackend(bundle, precision, "cpu")
    outputs = {
        name: [output.name for output in graph[precision].outputs] for name, graph in bundle.manifest.graphs.items()
    }
    with_weights = [name for name in GRAPHS if name != "region"]
    return {name: backend.submit(name, graph_inputs(name), outputs[name]).result() for name in with_weights}


def assert_whole(bundle: Path, precisions: Sequence[str]) -> None:
    """The folder holds what its manifest lists, and its weights are those that its graphs read."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    assert manifest.precisions == tuple(precisions)
    assert set(manifest.lowering) == {name for name in precisions if name != "fp32"}
    assert set(manifest.parity.limits) == set(manifest.parity.measured) == set(precisions)
    assert {path.name for path in bundle.iterdir()} == {MANIFEST, *manifest.files}
    read: dict[str, set[str]] = {}
    graphs = {entry.file for graph in manifest.graphs.values() for entry in graph.values()}
    for file in graphs:
        for name, location in locations(bundle / file).items():
            read.setdefault(location, set()).add(name)
    assert {name: stored(bundle / name) for name in read} == read
    assert set(manifest.files) == {manifest.text.tokenizer, manifest.parity.probe, *graphs, *read}


def test_every_precision_has_its_own_files_and_shares_what_is_the_same(
    assembly: Assembly, masked_graphs: Mapping[str, ir.Model]
) -> None:
    write(assembly, masked_graphs, "fp32", "fp16", "int8")
    assembly.finish(["fp32", "fp16", "int8"])
    assert_whole(assembly.folder, ["fp32", "fp16", "int8"])
    manifest = assembly.manifest
    files = {(name, precision): entry.file for name, by in manifest.graphs.items() for precision, entry in by.items()}
    for precision in ("fp32", "fp16", "int8"):
        suffix = "" if precision == "fp32" else f".{precision}"
        expected = {(name, precision): f"{name}{suffix}.onnx" for name in GRAPHS} | {
            ("region", precision): "region.onnx"
        }
        assert expected.items() <= files.items()
    assert not any(name.endswith(".bias") for name in stored(assembly.folder / "weights.fp16.safetensors"))
    assert locations(assembly.folder / "text.int8.onnx")["text.tokens.fp16"] == "weights.fp16.safetensors"
    for graph in manifest.graphs.values():
        assert graph["fp16"].inputs == graph["fp32"].inputs == graph["int8"].inputs
        assert graph["fp16"].outputs == graph["fp32"].outputs == graph["int8"].outputs


def test_nothing_refers_to_a_precision_that_was_removed(
    assembly: Assembly, masked_graphs: Mapping[str, ir.Model]
) -> None:
    write(assembly, masked_graphs, "fp32")
    before = assembly.manifest
    write(assembly, masked_graphs, "fp16")
    assert assembly.manifest.precisions == ("fp32", "fp16")
    assembly.remove("fp16")
    assert assembly.manifest == before
    assert not (assembly.folder / "weights.fp16.safetensors").exists()
    write(assembly, masked_graphs, "int8")
    assert "weights.int8.safetensors" in locations(assembly.folder / "text.int8.onnx").values()
    assembly.finish(["fp32", "int8"])
    assert_whole(assembly.folder, ["fp32", "int8"])
    assert "fp16" not in (assembly.folder / MANIFEST).read_text().replace(".fp16", "")


def test_a_precision_that_is_written_again_replaces_itself(
    assembly: Assembly, masked_graphs: Mapping[str, ir.Model]
) -> None:
    write(assembly, masked_graphs, "fp32", "int8")
    changed = in_precision(masked_graphs, "int8")
    types = {layer.name: PRECISIONS["fp16"].other for layer in find_layers(masked_graphs["text"])}
    changed["text"] = lower(masked_graphs["text"], types, {})
    assembly.write("int8", changed, LIMITS, LOWERING)
    assert assembly.manifest.parity.measured.keys() == {"fp32"}, "what was measured was the graphs before"
    assembly.set_measured("int8", [])
    assembly.finish(["fp32", "int8"])
    assert_whole(assembly.folder, ["fp32", "int8"])
    assert "text.blocks.0.mlp.fc1.weight.int8" not in stored(assembly.folder / "weights.int8.safetensors")


@pytest.mark.parametrize(
    ("kept", "weights"),
    [
        (["fp16"], {"weights.fp16.safetensors"}),
        (["int8"], {"weights.int8.safetensors"}),
        (["fp16", "int8"], {"weights.fp16.safetensors", "weights.int8.safetensors"}),
        (["fp32", "int8"], {"weights.safetensors", "weights.int8.safetensors"}),
    ],
)
def test_what_is_kept_gives_the_same_numbers_from_files_that_hold_nothing_else(
    assembly: Assembly, masked_graphs: Mapping[str, ir.Model], kept: list[str], weights: set[str]
) -> None:
    write(assembly, masked_graphs, "fp32", "fp16", "int8")
    before = {precision: results(assembly.write_manifest(), precision) for precision in kept}
    assembly.finish(kept)
    assert_whole(assembly.folder, kept)
    bundle = Bundle.open(assembly.folder)
    assert bundle.manifest == assembly.manifest
    assert {name for name in bundle.manifest.files if name.startswith("weights")} == weights
    for precision in kept:
        for name, outputs in results(bundle, precision).items():
            for actual, expected in zip(outputs, before[precision][name], strict=True):
                np.testing.assert_array_equal(actual, expected)
    if "fp32" not in kept:
        everything = set().union(*(stored(assembly.folder / name) for name in weights))
        assert not {"text.tokens", "vision.patch_embedding.weight"} & everything
        assert "pooling.out.weight" in everything


def test_scratch_files_are_gone_at_the_end(assembly: Assembly, masked_graphs: Mapping[str, ir.Model]) -> None:
    write(assembly, masked_graphs, "fp32")
    # As in smoothing, some weights of the graphs are new, and a precision is made from the graphs.
    changed = {name: ir.load(assembly.folder / f"{name}.onnx") for name in GRAPHS}
    for graph in changed.values():
        for value in list(graph.graph.initializers.values()):
            if str(value.name).endswith("mlp.fc1.weight") and value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy() * 2, name=str(value.name) + ".smoothed")
                value.name = str(value.name) + ".smoothed"
    assembly.write_scratch("smoothed", changed)
    assert "weights.smoothed.safetensors" in locations(assembly.folder / "vision.smoothed.onnx").values()
    types = {layer.name: ir.DataType.FLOAT for layer in find_layers(changed["vision"])}
    assembly.write("fp16", {name: lower(graph, types, {}) for name, graph in changed.items()}, LIMITS, LOWERING)
    assembly.set_measured("fp16", [])
    before = results(assembly.write_manifest(), "fp16")
    assembly.finish(["fp32", "fp16"])
    assert_whole(assembly.folder, ["fp32", "fp16"])
    assert not [name for name in assembly.manifest.files if "smoothed" in name]
    after = results(Bundle.open(assembly.folder), "fp16")
    np.testing.assert_array_equal(after["vision"][0], before["vision"][0])
    plain = results(Bundle.open(assembly.folder), "fp32")
    assert np.abs(after["vision"][0] - plain["vision"][0]).max() > 1e-3
