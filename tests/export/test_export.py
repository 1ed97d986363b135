"""Exports write whole bundles, prove their parity first, and leave nothing behind when they fail."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

import fgclip_rt
from exporting import Trace, small_random, tamper, unused_source
from fgclip_rt import export, parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, OutputError, ParityError
from fgclip_rt.export import PRECISIONS
from fgclip_rt.export.bundle.output import new_folder
from fgclip_rt.export.checkpoints.locate import locate
from fgclip_rt.export.families import table as families
from fgclip_rt.export.families.base import ReferenceModel
from fgclip_rt.graphs import ImageInputs
from fgclip_rt.model import Model
from fgclip_rt.preparation import Patches, side_by_side
from fgclip_rt.probe import Probe
from fgclip_rt.text import Tokenizer
from helpers import (
    GOLDENS,
    Golden,
    Progress,
    assert_one_sentence,
    assert_parity,
    contents,
    edit_manifest,
    picture,
    raise_at,
)

GRAPHS = ("vision", "dense", "text", "region")
MASKED = str(GOLDENS / "fgclip2-masked" / "checkpoint")
ATTENTION = ("com.microsoft", "MultiHeadAttention")
STAGES = ("load weights", "trace graphs", "run reference", "write weights", "check fp32 parity")


@pytest.mark.usefixtures("quick")
def test_an_export_is_a_whole_bundle_that_gives_the_goldens(tmp_path: Path) -> None:
    progress = Progress()
    golden = Golden("fgclip2-masked")
    bundle = export.export(export.checkpoint_source(MASKED), tmp_path / "new" / "bundle", begin=progress)
    assert list(progress.finished()) == list(STAGES)
    assert sorted(path.name for path in bundle.path.parent.iterdir()) == ["bundle"]
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    features = fgclip_rt.load(bundle.path, device="cpu").embed_texts(golden.texts, "box", normalize=False)
    assert_parity(features, golden.expected["text.box.text_features"])


def test_the_manifest_says_what_was_exported(masked_bundle_path: Path) -> None:
    manifest = Bundle.open(masked_bundle_path).manifest
    weights = Path(MASKED, "model.safetensors").read_bytes()
    assert manifest.model.name == manifest.model.source == "checkpoint"
    assert (manifest.model.family, manifest.model.weights, manifest.model.revision) == ("fgclip2", "local", None)
    assert manifest.model.checkpoint_sha256 == hashlib.sha256(weights).hexdigest()
    assert manifest.producer["fgclip_rt"] == fgclip_rt.__version__
    assert manifest.producer["torch"] == version("torch")
    assert manifest.precisions == ("fp32",)
    assert manifest.text.attention_mask
    rows = manifest.parity.measured["fp32"]
    assert {row.graph for row in rows} == {*GRAPHS, "preparation", "tokens", "logits"}
    assert all(row.passed for row in rows)
    assert manifest.parity.limits == {"fp32": PRECISIONS["fp32"].limits}
    assert max(row.max_error for row in rows) <= 2e-5
    assert manifest.lowering == {}
    assert str(GOLDENS) not in (masked_bundle_path / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("weight", "by", "failing"),
    [
        ("vision.positions", 1.0, {"vision", "dense", "region", "logits"}),
        ("pooling.keys", 1.0, {"vision", "logits"}),
        ("pooling.out.bias", 1e-2, {"vision", "logits"}),
        ("dense.attention.out.bias", 1e-2, {"dense", "region"}),
        ("text.blocks.1.mlp.fc2.bias", 1e-2, {"text", "logits"}),
        ("text_heads.bias", np.nan, {"text", "logits"}),
    ],
)
def test_a_graph_with_another_weight_than_the_reference_is_not_written(
    quick: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str, by: float, failing: set[str]
) -> None:
    tamper(monkeypatch, quick, weight, by)
    with pytest.raises(ParityError, match="parity failed in") as info:
        export.export(export.checkpoint_source(MASKED), tmp_path / "bundle")
    assert_one_sentence(info.value, "no bundle was written", code="parity_failed")
    assert info.value.kept == ()
    assert {row.graph for row in info.value.rows if not row.passed} == failing
    assert {row.graph for row in info.value.rows} == {*GRAPHS, "preparation", "tokens", "logits"}
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_export_leaves_everything_as_it_was(
    masked_bundle_path: Path, tmp_path: Path, stage: str, error: type[BaseException], overwrite: bool
) -> None:
    if overwrite:
        shutil.copytree(masked_bundle_path, tmp_path / "bundle")
    before = contents(tmp_path)
    with pytest.raises(error):
        export.export(
            export.checkpoint_source(MASKED), tmp_path / "bundle", overwrite=overwrite, begin=raise_at(stage, error)
        )
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "empty folder", "other folder", "another manifest", "dangling link"])
def test_an_output_that_is_no_bundle_is_never_replaced(tmp_path: Path, kind: str, overwrite: bool) -> None:
    output = tmp_path / "output"
    if kind == "file":
        output.write_text("mine")
    elif kind == "dangling link":
        output.symlink_to(tmp_path / "nowhere")
    else:
        output.mkdir()
        if kind == "other folder":
            (output / "notes.txt").write_text("mine")
        if kind == "another manifest":
            (output / "manifest.json").write_text('{"name": "my web app"}')
    before = contents(tmp_path)
    with pytest.raises(OutputError) as info:
        export.export(unused_source(), output, overwrite=overwrite)
    assert_one_sentence(
        info.value, str(output), "--output", code="output_unwritable" if kind == "dangling link" else "output_exists"
    )
    assert contents(tmp_path) == before


def test_a_link_to_a_bundle_stays_a_link(masked_bundle_path: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(masked_bundle_path, tmp_path / "target"))
    link = tmp_path / "link"
    link.symlink_to(target)
    with new_folder(link, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert sorted(tmp_path.iterdir()) == [link, target]
    assert link.readlink() == target
    assert (target / "manifest.json").read_text() == "new"


def test_an_existing_bundle_is_replaced_only_when_asked(masked_bundle_path: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(masked_bundle_path, tmp_path / "bundle"))
    with pytest.raises(OutputError) as info:
        export.export(unused_source(), output)
    assert_one_sentence(info.value, str(output), "--overwrite", code="output_exists")
    assert Bundle.open(output)

    with new_folder(output, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
        assert Bundle.open(output), "the old bundle must stay whole until the new one is"
    assert list(tmp_path.rglob("*")) == [output, output / "manifest.json"]
    assert (output / "manifest.json").read_text() == "new"


def test_a_replaced_bundle_leaves_the_files_that_were_not_its_own(masked_bundle_path: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(masked_bundle_path, tmp_path / "bundle"))
    (output / ".git").mkdir()
    for name in ("README.md", ".git/HEAD"):
        (output / name).write_text("mine")
    with new_folder(output, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert contents(output) == {
        output / "manifest.json": b"new",
        output / "README.md": b"mine",
        output / ".git": None,
        output / ".git/HEAD": b"mine",
    }


def test_a_bundle_of_an_earlier_format_may_be_replaced(masked_bundle_path: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(masked_bundle_path, tmp_path / "bundle"))
    edit_manifest(output, lambda document: document.pop("text"))
    with new_folder(output, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert [path.name for path in output.iterdir()] == ["manifest.json"]


def test_an_output_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "bundle", tmp_path / "file" / "deeper" / "bundle"):
        with pytest.raises(OutputError) as info:
            export.export(unused_source(), output)
        assert_one_sentence(info.value, str(output), "cannot be written", code="output_unwritable")


def test_files_of_a_bundle_have_the_mode_of_new_files(masked_bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in masked_bundle_path.iterdir()} == {expected}


@pytest.mark.parametrize("precision", ["fp64", "int4", ""])
def test_an_unknown_precision_is_refused(tmp_path: Path, precision: str) -> None:
    with pytest.raises(ArgumentError) as info:
        export.export(unused_source(), tmp_path / "bundle", ["fp32", precision])
    assert_one_sentence(info.value, repr(precision), "fp32")


@pytest.fixture(params=["plain", "masked"])
def any_bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue("bundle_path" if request.param == "plain" else "masked_bundle_path")
    return path


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_use_plain_operators_and_attention_only(any_bundle: Path, graph: str) -> None:
    path = any_bundle / f"{graph}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 20
    special = {(node.domain, node.op_type) for node in model.graph.node if node.domain}
    assert special == (set() if graph == "region" else {ATTENTION})
    assert {(function.domain, function.name) for function in model.functions} == special
    assert all(opset.domain == "" for function in model.functions for opset in function.opset_import)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    forbidden = {"Resize", "RoiAlign", "MaxRoiAlign", "Loop", "Scan", "If", "NonMaxSuppression", "GridSample", "Einsum"}
    assert not forbidden & {node.op_type for node in nodes}
    outputs = [output for node in model.graph.node for output in node.output]
    assert len(outputs) == len(set(outputs))


@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_attention_is_what_its_definition_says(masked_model: Model, tmp_path: Path, graph: str) -> None:
    folder = masked_model.bundle.path
    inlined = onnx.inliner.inline_local_functions(onnx.load(folder / f"{graph}.onnx", load_external_data=False))
    assert {node.domain for node in inlined.graph.node} == {""}
    onnx.save(inlined, tmp_path / "inlined.onnx")
    shutil.copy(folder / "weights.safetensors", tmp_path)
    session = ort.InferenceSession(str(tmp_path / "inlined.onnx"), providers=["CPUExecutionProvider"])
    if graph == "text":
        tokens = masked_model.tokenizer(Golden("fgclip2-masked").texts, "box")
        inputs = {
            "input_ids": tokens.input_ids,
            "walk_type": np.arange(len(tokens.input_ids), dtype=np.int32) % 2,
            "attention_mask": tokens.attention_mask,
        }
    else:
        images = [patches(9, 12), patches(3, 5)]
        pixels = np.full((2, 120, 768), 7, np.uint8)
        for row, image in zip(pixels, images, strict=True):
            row[: len(image.pixels)] = image.pixels
        inputs = {"patches": pixels, "spatial_shapes": np.array([image.grid for image in images], np.int32)}
    names = [output.name for output in session.get_outputs()]
    for actual, expected in zip(
        masked_model.backend.submit(graph, inputs, names).result(), session.run(names, inputs), strict=True
    ):
        assert_parity(actual, expected)


@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_onnxruntime_runs_attention_as_one_node(any_bundle: Path, tmp_path: Path, graph: str) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(any_bundle / f"{graph}.onnx"), options, providers=["CPUExecutionProvider"])
    counts = [
        sum((node.domain, node.op_type) == ATTENTION for node in onnx.load(path, load_external_data=False).graph.node)
        for path in (any_bundle / f"{graph}.onnx", tmp_path / "optimized.onnx")
    ]
    assert counts[0] == counts[1] > 0


def test_graphs_hold_nothing_of_the_machine_that_made_them(any_bundle: Path) -> None:
    for graph in GRAPHS:
        data = (any_bundle / f"{graph}.onnx").read_bytes()
        for trace in (b".py", b"/tmp", b"site-packages", str(Path.home()).encode() + b"/"):
            assert trace not in data


def external(path: Path) -> dict[str, tuple[str, int, int]]:
    """Location, offset and length of a graph's external weights, by name."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.external_data:
            entry = {item.key: item.value for item in tensor.external_data}
            found[tensor.name] = (entry["location"], int(entry["offset"]), int(entry["length"]))
    return found


def test_each_weight_is_stored_once(any_bundle: Path) -> None:
    by_graph = {graph: external(any_bundle / f"{graph}.onnx") for graph in GRAPHS}
    assert not by_graph["region"]
    assert by_graph["vision"].items() <= by_graph["dense"].items()
    everything: dict[str, tuple[str, int, int]] = {}
    for entries in by_graph.values():
        everything |= entries
    assert {location for location, _, _ in everything.values()} == {"weights.safetensors"}
    places = sorted((offset, length) for _, offset, length in everything.values())
    assert all(first + length <= second for (first, length), (second, _) in pairwise(places))

    data = (any_bundle / "weights.safetensors").read_bytes()
    tensors = load_file(any_bundle / "weights.safetensors")
    assert set(tensors) == set(everything)
    for name, (_, offset, length) in everything.items():
        assert data[offset : offset + length] == tensors[name].tobytes()
    assert len(data) < 1.05 * sum(length for _, length in places)


def test_weights_are_not_inside_the_graphs(any_bundle: Path) -> None:
    for graph in GRAPHS:
        assert (any_bundle / f"{graph}.onnx").stat().st_size < 50_000


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_manifest_describes_inputs_and_outputs(any_bundle: Path, graph: str) -> None:
    entry = Bundle.open(any_bundle, check_hashes=False).manifest.graphs[graph]["fp32"]
    session = ort.InferenceSession(str(any_bundle / entry.file), providers=["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(float)": "float32"}
    for specs, actual in ((entry.inputs, session.get_inputs()), (entry.outputs, session.get_outputs())):
        described = [(spec.name, spec.dtype, list(spec.shape)) for spec in specs]
        assert described == [(value.name, kinds[value.type], value.shape) for value in actual]


def patches(rows: int, columns: int, seed: int = 0) -> Patches:
    pixels = picture(16 * rows, 16 * columns, seed).reshape(rows, 16, columns, 16, 3).swapaxes(1, 2)
    return Patches(pixels.reshape(rows * columns, 768), (rows, columns), (16 * rows, 16 * columns), rows * columns)


def run(model: Model, graph: str, pixels: np.ndarray[Any, Any], grids: list[tuple[int, int]]) -> Any:
    inputs = ImageInputs(pixels, np.array(grids, np.int32))
    call = {"vision": partial(model.graphs.vision, normalize=False), "dense": model.graphs.dense}[graph]
    return call(inputs).result()


def run_all(model: Model, graph: str, images: list[Patches]) -> Any:
    return run(model, graph, side_by_side(images), [image.grid for image in images])


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return families.load(locate(MASKED))[1]


@pytest.mark.parametrize(
    "grid", [(1, 1), (1, 2), (2, 1), (1, 40), (33, 1), (7, 3), (16, 16), (31, 33), (1, 2000), (2500, 1), (50, 60)]
)
def test_any_grid_gives_the_references_features(
    masked_model: Model, reference: ReferenceModel, grid: tuple[int, int]
) -> None:
    image = patches(*grid)
    expected = reference.image(image, np.zeros((1, 4), np.float32), np.zeros((0, *grid), np.float32))
    assert expected.dense is not None
    assert_parity(run_all(masked_model, "vision", [image])[0], expected.features)
    assert_parity(run_all(masked_model, "dense", [image])[0], expected.dense)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_mixed_grids_in_one_run_equal_single_runs(masked_model: Model, batch: int) -> None:
    images = [patches(*grid, seed) for seed, grid in enumerate([(9, 12), (1, 1), (1, 75), (20, 13), (30, 1)])][:batch]
    together = run_all(masked_model, "vision", images)
    dense = run_all(masked_model, "dense", images)
    for image, features, maps in zip(images, together, dense, strict=True):
        assert_parity(features, run_all(masked_model, "vision", [image])[0])
        expected = run_all(masked_model, "dense", [image])[0]
        assert_parity(maps[: len(expected)], expected)


@pytest.mark.parametrize("graph", ["vision", "dense"])
@pytest.mark.parametrize("extra", [1, 7, 300])
def test_neither_content_nor_amount_of_padding_matters(masked_model: Model, graph: str, extra: int) -> None:
    images = [patches(5, 7, seed=1), patches(1, 3, seed=2)]
    grids = [image.grid for image in images]
    for image in images:
        count = len(image.pixels)
        expected = run(masked_model, graph, image.pixels[None], [image.grid])
        garbage = np.random.default_rng(extra).integers(0, 256, (1, count + extra, 768), dtype=np.uint8)
        garbage[0, :count] = image.pixels
        actual = run(masked_model, graph, garbage, [image.grid])
        assert_parity(actual[:, :count] if graph == "dense" else actual, expected)
    batch = np.full((2, 35 + extra, 768), 255, np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[: len(image.pixels)] = image.pixels
    together = run(masked_model, graph, batch, grids)
    for row, image in zip(together, images, strict=True):
        alone = run(masked_model, graph, image.pixels[None], [image.grid])[0]
        assert_parity(row[: len(image.pixels)] if graph == "dense" else row, alone)


@pytest.mark.parametrize("walk_type", ["short", "box", "long"])
def test_texts_in_one_run_equal_single_runs(masked_model: Model, reference: ReferenceModel, walk_type: str) -> None:
    texts = Golden("fgclip2-masked").texts[:5]
    expected = reference.text(masked_model.tokenizer(texts, walk_type), walk_type)
    for batch in range(1, 6):
        assert_parity(masked_model.embed_texts(texts[:batch], walk_type, normalize=False), expected[:batch])


def test_16384_patches_embed(masked_model: Model) -> None:
    image = picture(1500, 1500)
    assert np.linalg.norm(masked_model.embed_images(image, max_num_patches=16_384)) == pytest.approx(1, abs=1e-5)
    [dense] = masked_model.dense_features(image, max_num_patches=16_384)
    assert dense.shape == (128, 128, masked_model.dim)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=-1), 1, atol=1e-5)


def test_the_probe_can_be_computed_anew_from_the_checkpoint(
    masked_bundle_path: Path, masked_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgclip_rt.export.bundle.probe.IMAGE_SIZES", ((150, 200), (240, 256)))
    probe = export.verify_against(Bundle.open(masked_bundle_path, check_hashes=False), MASKED)
    recorded = Probe.load(masked_bundle_path / "probe.safetensors")
    for walk_type, texts in recorded.walk_types.items():
        assert probe.walk_types[walk_type].texts == texts.texts
    for new, old in zip(probe.images, recorded.images[:2], strict=True):
        np.testing.assert_array_equal(new.rgb, old.rgb)
        np.testing.assert_array_equal(new.patches, old.patches)
        np.testing.assert_allclose(new.features, old.features, rtol=0, atol=1e-4)
    rows = parity.check(masked_model, probe, PRECISIONS["fp32"].limits)
    assert {row.graph for row in rows} == {*GRAPHS, "preparation", "tokens", "logits"}
    assert all(row.passed for row in rows)


def test_random_weights_follow_their_seed() -> None:
    models = [small_random(seed) for seed in (0, 0, 1)]
    boxes, masks = np.array([[2, 2, 40, 40]], np.float32), np.zeros((0, 4, 5), np.float32)
    images = [model.image(patches(4, 5), boxes, masks) for model in models]
    first, repeated, other = (np.concatenate([image.features[None], image.dense, image.regions]) for image in images)
    np.testing.assert_allclose(first, repeated, rtol=0, atol=1e-5)
    assert np.abs(first - other).max() > 0.1
    tokens = Tokenizer(models[0].tokenizer_json, models[0].text_spec)(["Cat 猫"], "box")
    spelt = [4 + byte for byte in "cat▁猫".encode()]
    assert tokens.input_ids[0, : len(spelt) + 2].tolist() == [*spelt, 1, 0]


def test_random_sources_are_the_registered_models() -> None:
    for name, spec in export.MODELS.items():
        assert export.random_source(name).name == name
        if spec.hub_id is not None:
            assert export.random_source(spec.hub_id).name == name


def test_the_weights_of_random_models_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_random(3)
    monkeypatch.setattr("fgclip_rt.export.families.fgclip2.model.random", lambda *_: model)
    loaded, info = export.random_source("fg-clip2-base", seed=3).load()
    assert loaded is model
    assert (info.name, info.weights, info.source, info.checkpoint_sha256) == ("fg-clip2-base", "random", None, None)
