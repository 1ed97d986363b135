"""Lower precisions of a bundle: their files, their parity, layers that move back, and refusals."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

import fgclip_rt
from exporting import hasten, unused_source
from fgclip_rt import export, parity
from fgclip_rt.arrays import Array
from fgclip_rt.backends import Result
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, ImageError, ParityError
from fgclip_rt.export import PRECISIONS, CalibrationInputs
from fgclip_rt.export.bundle.probe import TEXTS, draw_image
from fgclip_rt.export.bundle.weights import external_tensors
from fgclip_rt.export.precision import planner
from fgclip_rt.export.precision.emulation import emulate
from fgclip_rt.export.precision.graph_backend import GraphBackend
from fgclip_rt.export.precision.layers import find_layers
from fgclip_rt.manifest import ParityRow
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe
from helpers import FP32_LIMITS, GOLDENS, WALK_TYPES, Golden, assert_one_sentence, contents, graph_inputs, raise_at

MASKED = str(GOLDENS / "fgclip2-masked" / "checkpoint")
GRAPHS = ("vision", "dense", "text", "region")
ALL = ("fp32", "fp16", "int8")
#: Stages of an export in all precisions with calibration inputs.
STAGES = (
    "load weights",
    "read calibration",
    "trace graphs",
    "run reference",
    "write weights",
    "check fp32 parity",
    "run held-out inputs",
    "calibrate",
    "convert to fp16",
    "check fp16 parity",
    "check fp16 held out",
    "convert to int8",
    "check int8 parity",
    "check int8 on the CPU",
    "check int8 held out",
)
#: The largest number of float16.
LARGEST = 65_504

Tensors = dict[str, NDArray[np.float32]]


def calibration_inputs() -> CalibrationInputs:
    """Small pictures with structure, which reach three buckets, and texts."""
    images = [Image.fromarray(draw_image(60 + 10 * i, 150 + 10 * i, seed=100 + i)) for i in range(20)]
    return CalibrationInputs(images, [f"{TEXTS[i % len(TEXTS)][:40]} {i}" for i in range(20)])


@dataclass
class Exported:
    """A bundle and its export's progress: stages with their planned steps, and the steps that were done."""

    bundle: Bundle
    stages: list[tuple[str, int]]
    done: Counter[str]


def export_golden(name: str, output: Path, precisions: Sequence[str], **options: Any) -> Exported:
    stages: list[tuple[str, int]] = []
    done: Counter[str] = Counter()

    def begin(stage: str, count: int) -> Callable[[], None]:
        stages.append((stage, count))
        return lambda: done.update([stage])

    source = export.checkpoint_source(str(GOLDENS / name / "checkpoint"))
    options = {"inputs": calibration_inputs(), "begin": begin} | options
    return Exported(export.export(source, output, precisions, **options), stages, done)


def export_masked(output: Path, precisions: Sequence[str], **options: Any) -> Bundle:
    return export_golden("fgclip2-masked", output, precisions, **options).bundle


def in_all_precisions(name: str, bundle: Path, output: Path) -> Exported:
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch, bundle)
        return export_golden(name, output, ["int8", "fp16", "fp32"])


@pytest.fixture(scope="module")
def plain(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return in_all_precisions("fgclip2", bundle_path, tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture(scope="module")
def masked(masked_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return in_all_precisions("fgclip2-masked", masked_bundle_path, tmp_path_factory.mktemp("masked") / "bundle")


@pytest.fixture(scope="module", params=["plain", "masked"])
def complete(request: pytest.FixtureRequest) -> Bundle:
    """Each golden checkpoint in turn, exported in all precisions."""
    exported: Exported = request.getfixturevalue(request.param)
    return exported.bundle


def test_precisions_come_in_their_own_order_and_share_what_has_no_layers(complete: Bundle) -> None:
    manifest = Bundle.open(complete.path).manifest
    assert manifest == complete.manifest
    assert manifest.precisions == ALL
    for name in GRAPHS:
        files = {precision: entry.file for precision, entry in manifest.graphs[name].items()}
        suffixes = ("", "", "") if name == "region" else ("", ".fp16", ".int8")
        assert files == {precision: f"{name}{suffix}.onnx" for precision, suffix in zip(ALL, suffixes, strict=True)}
        assert len({(entry.inputs, entry.outputs) for entry in manifest.graphs[name].values()}) == 1
    assert list(manifest.lowering) == ["fp16", "int8"]
    assert {path.name for path in complete.path.glob("weights*")} == {
        "weights.safetensors",
        "weights.fp16.safetensors",
        "weights.int8.safetensors",
    }
    assert list(manifest.parity.limits) == list(manifest.parity.measured) == list(ALL)


def test_both_goldens_keep_every_floor(complete: Bundle) -> None:
    measured = complete.manifest.parity.measured
    probe = [(row.graph, row.case) for row in measured["fp32"]]
    for precision in ("fp16", "int8"):
        rows = measured[precision]
        assert complete.manifest.parity.limits[precision] == PRECISIONS[precision].limits
        assert all(row.passed for row in rows)
        assert [(row.graph, row.case) for row in rows[: len(probe)]] == probe
        held_out = rows[len(probe) :]
        assert {row.graph for row in held_out} == {"vision", "dense", "region", "text"}
        assert all(row.case.startswith("held out, ") for row in held_out)
        assert sum(row.count for row in held_out if row.graph == "vision") == 5
        assert [row.count for row in held_out if row.graph == "text"] == [5] * len(WALK_TYPES)
        for graph in ("vision", "region", "text"):
            smallest = min(row.min_cosine for row in rows if row.graph == graph)
            assert PRECISIONS[precision].limits.min_cosine <= smallest < 1


def test_the_manifest_says_how_each_precision_was_made(complete: Bundle) -> None:
    fp16, int8 = (complete.manifest.lowering[precision] for precision in ("fp16", "int8"))
    assert (fp16.linear, fp16.other, fp16.smoothed, fp16.calibration) == ("float16", "float16", 0, None)
    vision, text = fp16.residual
    assert (vision.first, text.first) == ("vision.blocks.0", "text.blocks.0")
    for span, graph in ((vision, "vision"), (text, "text")):
        model = ir.load(complete.path / f"{graph}.onnx")
        names = {layer.name for layer in find_layers(model) if layer.kind == "attention"} - {"dense.attention"}
        assert span.last == f"{graph}.blocks.{len(names) - 1}"
    assert int8.residual == fp16.residual
    assert (int8.linear, int8.other) == ("int8", "float16")
    assert int8.smoothed > 0
    assert int8.calibration is not None
    assert (int8.calibration.method, int8.calibration.images, int8.calibration.texts) == ("percentile", 15, 15)
    assert (int8.calibration.held_out_images, int8.calibration.held_out_texts) == (5, 5)
    assert fp16.moved == int8.moved == {}


def test_no_weight_is_stored_twice(complete: Bundle) -> None:
    stored = {path.name: load_file(path) for path in complete.path.glob("weights*")}
    for first, second in combinations(stored.values(), 2):
        assert not first.keys() & second.keys()
    used = {
        (str(tensor.location), str(tensor.name))
        for path in complete.path.glob("*.onnx")
        for tensor in external_tensors(ir.load(path))
    }
    assert used == {(file, name) for file, tensors in stored.items() for name in tensors}
    sizes = [(complete.path / f"weights{kind}.safetensors").stat().st_size for kind in ("", ".fp16", ".int8")]
    assert sizes == sorted(sizes, reverse=True)


def test_int8_reads_the_token_table_of_fp16(complete: Bundle) -> None:
    model = ir.load(complete.path / "text.int8.onnx")
    (table,) = (layer for layer in find_layers(model) if layer.kind == "table")
    tensor = table.weight.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert (str(tensor.location), tensor.dtype) == ("weights.fp16.safetensors", ir.DataType.FLOAT16)


def test_graphs_are_valid_in_every_precision(complete: Bundle) -> None:
    paths = list(complete.path.glob("*.onnx"))
    assert len(paths) > 8
    for path in paths:
        onnx.checker.check_model(str(path), full_check=True)


def test_an_input_has_one_step_and_a_weight_one_for_each_channel(complete: Bundle) -> None:
    for graph in ("vision", "dense", "text"):
        model = ir.load(complete.path / f"{graph}.int8.onnx")
        shapes = {
            name: tuple(value.const_value.shape.numpy())
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        for node in model.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                source, step, origin = (str(value.name) for value in node.inputs if value is not None)
                expected = shapes[source][1:] if source in shapes else ()
                assert shapes[step] == shapes[origin] == expected, step


def test_load_picks_a_precision_and_takes_the_first_by_itself(complete: Bundle) -> None:
    golden = Golden("fgclip2")
    models = {precision: fgclip_rt.load(complete.path, device="cpu", precision=precision) for precision in ALL}
    assert [model.precision for model in models.values()] == list(ALL)
    assert fgclip_rt.load(complete.path).precision == "fp32"
    vectors = {
        precision: np.concatenate([model.embed_images(golden.images[:2]), model.embed_texts(golden.texts)])
        for precision, model in models.items()
    }
    for precision in ("fp16", "int8"):
        assert (vectors[precision] * vectors["fp32"]).sum(axis=1).min() > PRECISIONS[precision].limits.min_cosine
        assert np.abs(vectors[precision] - vectors["fp32"]).max() > 1e-5


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_by_itself_gives_the_same_numbers_and_holds_nothing_else(
    masked: Exported, tmp_path: Path, precision: str
) -> None:
    alone = export_masked(tmp_path / "bundle", [precision])
    manifest = Bundle.open(alone.path).manifest
    assert manifest.precisions == (fgclip_rt.load(alone.path).precision,) == (precision,)
    assert manifest.files.keys() == {
        *(f"{name}.{precision}.onnx" for name in GRAPHS if name != "region"),
        "probe.safetensors",
        "region.onnx",
        "tokenizer.json",
        f"weights.{precision}.safetensors",
    }
    weights = [tensor for path in alone.path.glob("*.onnx") for tensor in external_tensors(ir.load(path))]
    assert load_file(alone.path / f"weights.{precision}.safetensors").keys() == {tensor.name for tensor in weights}
    beside = masked.bundle.manifest
    assert manifest.lowering == {precision: beside.lowering[precision]}
    assert manifest.parity.measured == {precision: beside.parity.measured[precision]}
    texts = Golden("fgclip2-masked").texts
    vectors = [
        fgclip_rt.load(path, device="cpu", precision=precision).embed_texts(texts)
        for path in (alone.path, masked.bundle.path)
    ]
    np.testing.assert_array_equal(*vectors)


@pytest.mark.usefixtures("quick")
def test_without_calibration_inputs_a_precision_is_measured_on_the_probe(tmp_path: Path) -> None:
    measured = export_masked(tmp_path / "bundle", ["fp32", "fp16"], inputs=None).manifest.parity.measured
    assert [(row.graph, row.case) for row in measured["fp16"]] == [(row.graph, row.case) for row in measured["fp32"]]


def test_an_export_says_how_far_each_precision_is(masked: Exported) -> None:
    assert [name for name, _ in masked.stages] == list(STAGES)
    assert dict(masked.done) == dict(masked.stages)


@pytest.mark.usefixtures("quick")
def test_a_layer_goes_back_if_int8_falls_below_on_the_cpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[OnnxRuntimeBackend] = []

    class Other(OnnxRuntimeBackend):
        """The first two read texts from their end: without the second, the residual stream alone would go back."""

        def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
            if self not in made:
                made.append(self)
            if graph == "text" and self in made[:2]:
                inputs = {**inputs, "input_ids": np.ascontiguousarray(inputs["input_ids"][:, ::-1])}
            return super().submit(graph, inputs, outputs)

    monkeypatch.setattr(planner, "OnnxRuntimeBackend", Other)
    moved = export_masked(tmp_path / "bundle", ["fp32", "int8"]).manifest.lowering["int8"].moved
    assert len(made) == 3
    assert [name.partition(".")[0] for name in moved] == ["text"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("stage", "error", "overwrite"),
    [
        *((stage, KeyboardInterrupt, False) for stage in STAGES),
        ("find int8's losses", KeyboardInterrupt, True),
        ("find int8's losses", RuntimeError, False),
    ],
)
def test_an_interrupted_export_leaves_everything_as_it_was(
    masked_bundle_path: Path, tmp_path: Path, stage: str, error: type[BaseException], overwrite: bool
) -> None:
    if overwrite:
        shutil.copytree(masked_bundle_path, tmp_path / "bundle")
    before = contents(tmp_path)
    # int8 misses this floor unless layers move back.
    floor = 0.9995 if stage == "find int8's losses" else None
    with pytest.raises(error):
        export_masked(tmp_path / "bundle", ALL, floor=floor, overwrite=overwrite, begin=raise_at(stage, error))
    assert contents(tmp_path) == before


def changed_checkpoint(folder: Path, change: Callable[[Tensors], None]) -> export.Source:
    """The masked golden checkpoint with other weights."""
    shutil.copytree(MASKED, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return export.checkpoint_source(str(folder))


def largest_input(bundle: Bundle, graph: str, operator: str) -> float:
    """The largest magnitude that any ``operator`` of a float32 graph reads."""
    model = ir.load(bundle.path / f"{graph}.onnx")
    values = dict.fromkeys(node.inputs[0] for node in model.graph if node.op_type == operator)
    watched = [value for value in values if value is not None and value.producer() is not None]
    for value in watched:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)
    backend = GraphBackend(bundle, "fp32", {graph: model})
    found = backend.submit(graph, graph_inputs(graph), [str(value.name) for value in watched]).result()
    return max(float(np.abs(array).max()) for array in found)


def overflow_the_residual(tensors: Tensors) -> None:
    """Make one channel, which nothing else uses, 100,000 from one block's MLP to the next block's MLP."""
    rows = ("patch_embedding.weight", "patch_embedding.bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias")
    tables = ("token_embedding.weight", "position_embedding.weight", "embedding_ori.weight", "embedding_res.weight")
    for name, values in tensors.items():
        if name.endswith((*rows, "mlp.fc2.weight", "mlp.fc2.bias")):
            values[0] = 0
        elif name.endswith(tables):
            values[:, 0] = 0
    for tower in ("vision_model", "text_model"):
        for block, bias in ((0, 100_000), (1, -100_000)):
            tensors[f"{tower}.encoder.layers.{block}.mlp.fc2.bias"][0] = bias


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_residual_stream_past_the_end_of_float16_is_no_harm(tmp_path: Path, precision: str) -> None:
    source = changed_checkpoint(tmp_path / "checkpoint", overflow_the_residual)
    bundle = export.export(source, tmp_path / "bundle", ["fp32", precision], inputs=calibration_inputs())
    for graph in ("vision", "dense", "text"):
        assert largest_input(bundle, graph, "LayerNormalization") > LARGEST
    assert bundle.manifest.lowering[precision].moved == {}
    # Both blocks of either tower read or write it.
    assert bundle.manifest.lowering[precision].residual == ()
    rows = bundle.manifest.parity.measured[precision]
    assert all(row.passed for row in rows)
    if precision == "fp16":
        assert min(row.min_cosine for row in rows if row.graph in ("vision", "text")) >= 0.9995
    golden = Golden("fgclip2-masked")
    exact, lower = (fgclip_rt.load(bundle.path, device="cpu", precision=name) for name in ("fp32", precision))
    for vectors, expected in (
        (lower.embed_images(golden.images), exact.embed_images(golden.images)),
        (lower.embed_texts(golden.texts), exact.embed_texts(golden.texts)),
    ):
        assert np.isfinite(vectors).all()
        assert (vectors * expected).sum(axis=1).min() >= PRECISIONS[precision].limits.min_cosine


@pytest.mark.usefixtures("quick")
def test_parity_decides_on_a_narrow_stream_before_layers_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here no peak keeps a stream in float32, and the one that overflows goes back with no layer."""
    monkeypatch.setattr("fgclip_rt.export.precision.residual.LARGEST", float("inf"))
    source = changed_checkpoint(tmp_path / "checkpoint", overflow_the_residual)
    bundle = export.export(source, tmp_path / "bundle", ["fp32", "fp16"])
    assert bundle.manifest.lowering["fp16"].residual == ()
    assert bundle.manifest.lowering["fp16"].moved == {}
    assert all(row.passed for row in bundle.manifest.parity.measured["fp16"])


def raise_the_stream_of_images(tensors: Tensors) -> None:
    """Make one channel of images 20,000, which float16 holds; texts keep their stream."""
    for name, values in tensors.items():
        if not name.startswith("vision_model"):
            continue
        rows = ("patch_embedding.weight", "patch_embedding.bias", "out_proj.weight", "out_proj.bias")
        if name.endswith((*rows, "mlp.fc2.weight", "mlp.fc2.bias")):
            values[0] = 0
        elif name.endswith("position_embedding.weight"):
            values[:, 0] = 0
    for block, bias in ((0, 20_000), (1, -20_000)):
        tensors[f"vision_model.encoder.layers.{block}.mlp.fc2.bias"][0] = bias


@pytest.mark.usefixtures("quick")
def test_a_stream_near_the_end_of_float16_stays_in_float32_in_its_tower_alone(tmp_path: Path) -> None:
    source = changed_checkpoint(tmp_path / "checkpoint", raise_the_stream_of_images)
    bundle = export.export(source, tmp_path / "bundle", ["fp32", "fp16"])
    assert 16_000 < largest_input(bundle, "vision", "LayerNormalization") < LARGEST
    (span,) = bundle.manifest.lowering["fp16"].residual
    assert (span.first, span.last) == ("text.blocks.0", "text.blocks.1")


def overflow_a_layer(tensors: Tensors) -> None:
    """Make one hidden channel of an MLP 131,072 after the GELU; the second layer takes it out again."""
    mlp = "vision_model.encoder.layers.0.mlp"
    tensors[f"{mlp}.fc1.weight"][0] = 0
    tensors[f"{mlp}.fc1.bias"][0] = 2.0**17
    tensors[f"{mlp}.fc2.weight"][:, 0] = 2.0**-17
    tensors[f"{mlp}.fc2.bias"] -= 1


@pytest.mark.usefixtures("quick")
def test_exactly_the_layer_whose_input_float16_cannot_hold_moves_to_float32(tmp_path: Path) -> None:
    source = changed_checkpoint(tmp_path / "checkpoint", overflow_a_layer)
    bundle = export.export(source, tmp_path / "bundle", ["fp32", "fp16"])
    assert largest_input(bundle, "vision", "MatMul") > LARGEST
    assert all(row.passed for row in bundle.manifest.parity.measured["fp16"])
    assert bundle.manifest.lowering["fp16"].moved == {"vision.blocks.0.mlp.fc2": "float32"}


@pytest.mark.usefixtures("quick")
def test_a_layer_that_neither_int8_nor_float16_suits_ends_in_float32(tmp_path: Path) -> None:
    source = changed_checkpoint(tmp_path / "checkpoint", overflow_a_layer)
    bundle = export.export(source, tmp_path / "bundle", ["fp32", "int8"], inputs=calibration_inputs())
    assert all(row.passed for row in bundle.manifest.parity.measured["int8"])
    assert bundle.manifest.lowering["int8"].moved["vision.blocks.0.mlp.fc2"] == "float32"


def overflow_a_layer_of_texts(tensors: Tensors) -> None:
    """As :func:`overflow_a_layer`, in the text tower."""
    mlp = "text_model.encoder.layers.0.mlp"
    tensors[f"{mlp}.fc1.weight"][0] = 0
    tensors[f"{mlp}.fc1.bias"][0] = 2.0**17
    tensors[f"{mlp}.fc2.weight"][:, 0] = 2.0**-17
    tensors[f"{mlp}.fc2.bias"] -= 1


@pytest.mark.usefixtures("quick")
def test_a_trial_runs_only_the_tower_that_failed_and_the_kept_graphs_are_measured_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[set[str], set[str]]] = []
    passes = parity.passes

    def noted(steps: Sequence[parity.Step], graphs: Collection[str], first: Collection[str]) -> bool:
        ran: set[str] = set()

        def note(step: parity.Step) -> Sequence[ParityRow]:
            ran.update(step.graphs)
            return step.rows()

        watched = [parity.Step(step.graphs, step.case, partial(note, step)) for step in steps]
        judged.append((set(graphs), ran))
        return passes(watched, graphs, first)

    monkeypatch.setattr(parity, "passes", noted)
    source = changed_checkpoint(tmp_path / "checkpoint", overflow_a_layer_of_texts)
    bundle = export.export(source, tmp_path / "bundle", ["fp32", "fp16"])
    assert bundle.manifest.lowering["fp16"].moved == {"text.blocks.0.mlp.fc2": "float32"}
    # Once with the residual stream in float32, and once with the layer.
    assert judged == [({"text"}, {"text"})] * 2
    assert not [path.name for path in bundle.path.iterdir() if "trial" in path.name]
    files = {graph: entries["fp16"].file for graph, entries in bundle.manifest.graphs.items()}
    emulated = {graph: emulate(ir.load(bundle.file(file))) for graph, file in files.items()}
    model = Model(bundle, GraphBackend(bundle, "fp16", emulated))
    rows = parity.check(model, Probe.of(bundle), PRECISIONS["fp16"].limits)
    assert bundle.manifest.parity.measured["fp16"] == rows


@pytest.mark.usefixtures("quick")
def test_a_precision_below_its_floor_is_left_out_and_the_others_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with pytest.raises(ParityError) as info:
        export_masked(output, ["fp32", "int8"], floor=0.9999999)
    ((precision, rows),) = info.value.measured.items()
    assert precision == "int8"
    failed = [row for row in rows if not row.passed]
    worst = min(failed, key=lambda row: row.min_cosine)
    assert_one_sentence(
        info.value,
        f"int8 was refused: {len(failed)} of {len(rows)} comparisons fall below its floor of 0.9999999",
        f"the worst ({worst.graph}, {worst.case}) with a cosine of {worst.min_cosine:.7f}",
        f"{output} holds fp32 only",
    )
    assert info.value.kept == ("fp32",)
    bundle = Bundle.open(output)
    assert bundle.manifest.precisions == ("fp32",)
    assert bundle.manifest.lowering == {}
    assert list(bundle.manifest.parity.limits) == list(bundle.manifest.parity.measured) == ["fp32"]
    assert not [path.name for path in output.iterdir() if "int8" in path.name]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert len(fgclip_rt.load(output).embed_texts("a cat")) == 1


@pytest.fixture
def nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A precision that falls below its floor is refused at once."""
    monkeypatch.setattr("fgclip_rt.export.precision.planner.Planner._move_back", lambda *_: False)


@pytest.mark.usefixtures("quick", "nothing_moves")
def test_a_refused_precision_changes_nothing_of_those_that_are_kept(masked: Exported, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with pytest.raises(ParityError) as info:
        export_masked(output, ALL, floor=0.9995)
    assert_one_sentence(info.value, "int8 was refused", "its floor of 0.9995", f"{output} holds fp32 and fp16 only")
    assert info.value.kept == ("fp32", "fp16")
    assert info.value.measured.keys() == {"int8"}
    kept, whole = Bundle.open(output).manifest, masked.bundle.manifest
    assert kept.precisions == ("fp32", "fp16")
    assert kept.files.items() <= whole.files.items()
    assert not [name for name in kept.files if "int8" in name]
    assert kept.lowering == {"fp16": whole.lowering["fp16"]}
    assert kept.parity.measured == {name: whole.parity.measured[name] for name in ("fp32", "fp16")}


@pytest.mark.usefixtures("quick", "nothing_moves")
def test_a_later_precision_keeps_what_it_would_have_shared_with_a_refused_one(
    masked: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = PRECISIONS["fp32"].limits
    monkeypatch.setitem(PRECISIONS, "fp16", dataclasses.replace(PRECISIONS["fp16"], limits=limits))
    with pytest.raises(ParityError) as info:
        export_masked(tmp_path / "bundle", ALL)
    assert_one_sentence(info.value, "fp16 was refused", "bundle holds fp32 and int8 only")
    kept, whole = Bundle.open(tmp_path / "bundle").manifest, masked.bundle.manifest
    assert kept.precisions == ("fp32", "int8")
    assert not [name for name in kept.files if "fp16" in name]
    assert kept.lowering == {"int8": whole.lowering["int8"]}
    assert kept.parity.measured == {name: whole.parity.measured[name] for name in ("fp32", "int8")}
    vectors = fgclip_rt.load(tmp_path / "bundle", device="cpu", precision="int8").embed_texts(TEXTS)
    expected = fgclip_rt.load(masked.bundle.path, device="cpu", precision="int8").embed_texts(TEXTS)
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.usefixtures("quick", "nothing_moves")
@pytest.mark.parametrize("overwrite", [False, True])
def test_where_all_that_was_asked_for_is_refused_no_bundle_is_written(
    masked_bundle_path: Path, tmp_path: Path, overwrite: bool
) -> None:
    output = tmp_path / "bundle"
    if overwrite:
        shutil.copytree(masked_bundle_path, output)
    before = contents(tmp_path)
    with pytest.raises(ParityError) as info:
        export_masked(output, ["int8", "fp16"], floor=0.9999999, overwrite=overwrite)
    assert_one_sentence(info.value, "fp16 was refused", "int8 was refused", "no bundle was written")
    assert info.value.kept == ()
    assert info.value.measured.keys() == {"fp16", "int8"}
    assert not any(all(row.passed for row in rows) for rows in info.value.measured.values())
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_a_floor_only_raises_those_that_are_below_it(masked: Exported, tmp_path: Path) -> None:
    plain, raised = masked.bundle.manifest, export_masked(tmp_path / "bundle", ALL, floor=0.993).manifest
    assert [raised.parity.limits[name] for name in ("fp32", "fp16")] == [
        PRECISIONS["fp32"].limits,
        PRECISIONS["fp16"].limits,
    ]
    assert raised.parity.limits["int8"] == msgspec.structs.replace(PRECISIONS["int8"].limits, min_cosine=0.993)
    # int8 keeps the higher floor without moving more layers back.
    assert raised.lowering == plain.lowering


@pytest.mark.parametrize("floor", [0, 1, -0.5, 1.5, float("nan")])
def test_a_floor_lies_between_0_and_1(tmp_path: Path, floor: float) -> None:
    with pytest.raises(ArgumentError) as info:
        export.export(unused_source(), tmp_path / "bundle", ["fp16"], floor=floor)
    assert_one_sentence(info.value, f"the floor is {floor}", "between 0 and 1")
    assert not list(tmp_path.iterdir())


def test_int8_without_calibration_inputs_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as info:
        export.export(unused_source(), tmp_path / "bundle", ["fp32", "int8"])
    assert_one_sentence(info.value, "int8", "--calibration", "--calibration-texts")
    assert not list(tmp_path.iterdir())


def test_only_the_shipped_checkpoint_brings_its_own_calibration_inputs() -> None:
    assert export.random_source("fg-clip2-pocket").calibration is None
    assert export.checkpoint_source(MASKED).calibration is None
    own = export.checkpoint_source("fg-clip2-pocket").calibration
    assert own is not None
    images, texts_by_type = own()
    assert len(images) == 192
    assert {walk_type: len(texts) for walk_type, texts in texts_by_type.items()} == dict.fromkeys(WALK_TYPES, 192)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["absent", "damaged"])
def test_a_calibration_image_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    images = [tmp_path / f"{index}.png" for index in range(16)]
    for index, path in enumerate(images):
        Image.fromarray(draw_image(30, 40, index)).save(path)
    images[7].unlink()
    if kind == "damaged":
        images[7].write_bytes(images[8].read_bytes()[:200])
    inputs = CalibrationInputs(images, [str(index) for index in range(16)])
    with pytest.raises(ImageError) as info:
        export.export(export.checkpoint_source(MASKED), tmp_path / "bundle", ["int8"], inputs=inputs)
    assert_one_sentence(info.value, str(images[7]))
    assert not (tmp_path / "bundle").exists()


def test_the_tests_without_torch_hold_fp32_to_the_limits_of_the_export() -> None:
    assert PRECISIONS["fp32"].limits == FP32_LIMITS
