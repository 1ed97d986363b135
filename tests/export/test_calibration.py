"""Calibration: its inputs, the ranges observed on them, and the cost of each layer by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from PIL import Image

from exporting import constant, float_value, hand_made
from fgclip_rt import parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, ImageError
from fgclip_rt.export import PRECISIONS
from fgclip_rt.export.precision.calibration import CalibrationData, CalibrationInputs, read
from fgclip_rt.export.precision.emulation import emulate
from fgclip_rt.export.precision.graph_backend import GraphBackend
from fgclip_rt.export.precision.layers import array, find_layers
from fgclip_rt.export.precision.lower import QUANTISED, lower
from fgclip_rt.export.precision.observation import Observations, ObservingBackend
from fgclip_rt.export.precision.sensitivity import Loss, Sensitivity
from fgclip_rt.export.precision.smoothing import find_sites, smooth
from fgclip_rt.graphs import Graphs
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe
from helpers import WALK_TYPES, Progress, assert_one_sentence, assert_parity, picture

FloatArray = NDArray[np.float32]

FLOAT, FLOAT16, INT8 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8


def images(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (3, 2), (index % 256, index // 256, 7)) for index in range(count)]


def texts(count: int, of: str = "text") -> list[str]:
    return [f"{of} {index}" for index in range(count)]


def read_all(inputs: CalibrationInputs) -> CalibrationData:
    return read(inputs, WALK_TYPES)


# Inputs


@pytest.mark.parametrize(
    ("few_images", "few_texts", "named"),
    [
        (15, 16, "15 different images"),
        (0, 16, "0 different images"),
        (16, 15, "15 different texts"),
        (16, {"short": texts(16), "long": texts(3)}, "3 different texts"),
        (16, {"short": []}, "0 different texts"),
    ],
)
def test_too_few_inputs_are_refused(few_images: int, few_texts: Any, named: str) -> None:
    given_texts = texts(few_texts) if isinstance(few_texts, int) else few_texts
    with pytest.raises(ArgumentError) as info:
        CalibrationInputs(images(few_images), given_texts)
    assert_one_sentence(info.value, named, "16", "give more")


def test_the_same_again_is_no_other_input(tmp_path: Path) -> None:
    (picture,) = images(1)
    for same in ([picture] * 20, [tmp_path / "a.png"] * 10 + [str(tmp_path / "a.png")] * 10):
        with pytest.raises(ArgumentError) as info:
            CalibrationInputs(same, texts(16))
        assert_one_sentence(info.value, "1 different images")
    with pytest.raises(ArgumentError) as info:
        CalibrationInputs(images(16), [""] * 30)
    assert_one_sentence(info.value, "1 different texts")


def test_inputs_with_no_texts_at_all_are_refused() -> None:
    with pytest.raises(ArgumentError) as info:
        CalibrationInputs(images(16), {})
    assert_one_sentence(info.value, "texts")


def test_a_fourth_is_held_out_and_everything_keeps_its_order() -> None:
    pictures, words = images(18), texts(17)
    data = read_all(CalibrationInputs(pictures, words))
    assert len(data.held_out_images) == 4
    assert list(data.texts) == list(data.held_out_texts) == list(WALK_TYPES)
    parts = [(pictures, data.images, data.held_out_images)]
    parts += [(words, data.texts[walk_type], data.held_out_texts[walk_type]) for walk_type in WALK_TYPES]
    for given, used, held_out in parts:
        assert held_out == [item for item in given if item in held_out]
        assert used == [item for item in given if item not in held_out]
        assert len(held_out) == 4
    recorded = data.record()
    assert (recorded.method, recorded.sha256) == ("percentile", data.sha256)
    assert (recorded.images, recorded.held_out_images) == (14, 4)
    assert (recorded.texts, recorded.held_out_texts) == (13, 4)
    assert read_all(CalibrationInputs(pictures, words)) == data


@pytest.mark.parametrize("period", [2, 3, 4])
def test_what_takes_turns_is_held_out_of_every_kind(period: int) -> None:
    held_out = read_all(CalibrationInputs(images(60), texts(60))).held_out_texts["box"]
    assert {int(text.split()[1]) % period for text in held_out} == set(range(period))


def test_texts_may_be_given_by_walk_type() -> None:
    given_texts = {"short": texts(16), "box": texts(16, "name"), "long": texts(20, "story")}
    data = read_all(CalibrationInputs(images(16), given_texts))
    assert {name: len(values) for name, values in data.texts.items()} == {"short": 12, "box": 12, "long": 15}
    assert all(text.startswith("story") for text in (*data.texts["long"], *data.held_out_texts["long"]))
    assert data.record().texts == 12 + 12 + 15
    everything = dict.fromkeys(WALK_TYPES, texts(16))
    by_type, for_all = (CalibrationInputs(images(16), words) for words in (everything, texts(16)))
    assert read_all(by_type) == dataclasses.replace(read_all(for_all), images=read_all(by_type).images)


@pytest.mark.parametrize("kinds", [("short", "box"), ("short", "box", "long", "tall")])
def test_texts_by_other_walk_types_than_the_models_are_refused(kinds: Sequence[str]) -> None:
    with pytest.raises(ArgumentError) as info:
        read_all(CalibrationInputs(images(16), dict.fromkeys(kinds, texts(16))))
    assert_one_sentence(info.value, ", ".join(kinds), ", ".join(WALK_TYPES))


@pytest.mark.parametrize("count", [512, 513, 700, 1024, 1500])
def test_of_more_than_512_inputs_that_many_are_taken_at_even_distances(count: int) -> None:
    words = texts(count)
    inputs = CalibrationInputs(images(count), words)
    progress = Progress()
    data = read(inputs, ["short"], progress)
    assert progress.finished() == {"read calibration": 512}
    assert (len(data.images), len(data.held_out_images)) == (480, 32)
    numbers = sorted(int(text.split()[1]) for text in (*data.texts["short"], *data.held_out_texts["short"]))
    assert len(numbers) == 512
    assert numbers[0] == 0
    assert numbers[-1] >= count - np.ceil(count / 512)
    assert set(np.diff(numbers)) <= {count // 512, count // 512 + 1}


def test_the_digest_is_of_what_the_images_and_texts_hold(tmp_path: Path) -> None:
    def digest(pictures: Sequence[Path | Image.Image], words: Sequence[str] | Mapping[str, Sequence[str]]) -> str:
        return read_all(CalibrationInputs(pictures, words)).sha256

    pictures, words = images(17), texts(17)
    plain = digest(pictures, words)
    assert len(bytes.fromhex(plain)) == 32
    assert digest([picture.copy() for picture in pictures], tuple(words)) == plain
    assert digest(pictures, dict.fromkeys(WALK_TYPES, words)) == plain

    others = []
    for index in (0, 3, 16):
        changed = [picture.copy() for picture in pictures]
        changed[index].putpixel((2, 1), (index, 0, 8))
        others.append(digest(changed, words))
        others.append(digest(pictures, [*words[:index], words[index] + "!", *words[index + 1 :]]))
    # Other inputs can have the same bytes in another shape, or the same characters divided otherwise.
    turned = Image.frombytes("RGB", pictures[0].size[::-1], pictures[0].tobytes())
    others.append(digest([turned, *pictures[1:]], words))
    others.append(digest(pictures, [words[0][:-1], words[0][-1:] + words[1], *words[2:]]))
    others.append(digest(pictures[::-1], words))
    others.append(digest(pictures, words[::-1]))
    others.append(digest(pictures[:16], words))
    others.append(digest(pictures, words[:16]))
    others.append(digest(pictures, {"short": words, "box": words[::-1], "long": words}))
    assert len({plain, *others}) == 1 + len(others)

    files = []
    for index, image in enumerate(pictures):
        files.append(tmp_path / f"{index}.png")
        image.save(files[-1])
    (tmp_path / "elsewhere").mkdir()
    moved = [file.rename(tmp_path / "elsewhere" / f"x{file.name}") for file in files]
    of_files = digest(moved, words)
    moved_back = [file.rename(tmp_path / file.name) for file in moved]
    assert digest(moved_back, words) == of_files
    moved_back[5].write_bytes(moved_back[5].read_bytes() + b"\0")
    assert digest(moved_back, words) != of_files


@pytest.mark.parametrize("broken", [b"no image", b"", None])
def test_an_image_that_cannot_be_read_is_named_before_anything_runs(tmp_path: Path, broken: bytes | None) -> None:
    bad = tmp_path / "bad.png"
    if broken is not None:
        bad.write_bytes(broken)
    # Image 16 is the last, and 15 stands before it.
    for index in (15, 16):
        mixed: list[Path | Image.Image] = [*images(17)]
        mixed[index] = bad
        with pytest.raises(ImageError) as info:
            read_all(CalibrationInputs(mixed, texts(16)))
        assert_one_sentence(info.value, str(bad))


def test_only_what_is_not_held_out_runs_and_each_image_by_itself() -> None:
    seen: list[Any] = []
    recorder = SimpleNamespace(
        graphs=SimpleNamespace(has={"dense"}.__contains__),
        dense_features=seen.append,
        embed_texts=lambda values, walk_type: seen.append((walk_type, list(values))),
    )
    data = read_all(CalibrationInputs(images(16), texts(16)))
    progress = Progress()
    data.run(cast(Model, recorder), progress, "calibrate")
    assert seen == [*data.images, *data.texts.items()]
    assert progress.finished() == {"calibrate": 12 + 3}


def test_held_out_inputs_become_a_probe_of_what_the_model_makes_of_them(masked_model: Model) -> None:
    pictures = [Image.fromarray(picture(20 + index, 50, seed=index)) for index in range(16)]
    data = read_all(CalibrationInputs(pictures, {"short": texts(16), "box": texts(20), "long": texts(16)}))
    progress = Progress()
    probe = data.held_out(masked_model, progress)
    assert progress.finished() == {"run held-out inputs": 4 + 3}
    assert [image.rgb.tolist() for image in probe.images] == [
        np.asarray(image).tolist() for image in data.held_out_images
    ]
    for image in probe.images:
        assert_parity(image.features, masked_model.embed_images(image.rgb, normalize=False)[0])
        assert_parity(image.regions, masked_model.embed_regions(image.rgb, image.boxes, normalize=False))
        assert image.dense.shape == (np.prod(image.grid), masked_model.dim)
        assert not np.allclose(np.linalg.norm(image.dense, axis=1), 1)
    assert {name: list(part.texts) for name, part in probe.walk_types.items()} == dict(data.held_out_texts)
    rows = parity.check_held_out(masked_model, probe, PRECISIONS["fp32"].limits)
    assert {row.graph for row in rows} == {"vision", "dense", "region", "text"}
    assert all(row.passed for row in rows)


def test_a_photo_is_held_out_as_large_as_the_model_sees_it(masked_model: Model) -> None:
    photos = [Image.fromarray(picture(900, 700, seed=index)) for index in range(16)]
    images = read_all(CalibrationInputs(photos, texts(16))).held_out(masked_model).images
    assert len(images) == 4
    for image in images:
        rows, columns = image.grid.tolist()
        assert image.rgb.shape == (16 * rows, 16 * columns, 3)


# Observation


def two_layers() -> ir.Model:
    """Two layers that read x, one that reads 2x, and an attention, which is no linear layer."""
    x, y = float_value("x", "n", 8), float_value("y", "n", 8)
    one, two = (constant(name, np.array(value, np.float32)) for name, value in (("one", 1), ("two", 2)))
    same, twice = ir.node("Mul", [x, one]), ir.node("Mul", [x, two])
    reads = [("q", same), ("k", same), ("v", twice)]
    products = [
        ir.node("MatMul", [maker.outputs[0], constant(f"{name}.weight", np.eye(8, dtype=np.float32))])
        for name, maker in reads
    ]
    sums = ir.node("Sum", [node.outputs[0] for node in products], outputs=[y])
    return hand_made([x], [y], [same, twice, *products, sums])


def observed(bundle: Bundle, *runs: FloatArray, rescaled: Sequence[str] = ()) -> Observations:
    model = two_layers()
    backend = ObservingBackend(bundle, {"vision": model}, {"vision": find_layers(model)}, rescaled)
    for values in runs:
        (actual,) = backend.submit("vision", {"x": values}, ["y"]).result()
        np.testing.assert_allclose(actual, 4 * values, rtol=1e-6)
    return backend.observations


@pytest.fixture(scope="module")
def bundle(masked_bundle_path: Path) -> Bundle:
    return Bundle.open(masked_bundle_path, check_hashes=False)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_range_reaches_the_largest_magnitude_of_even_values(bundle: Bundle, sign: int) -> None:
    random = np.random.default_rng(0)
    runs = [sign * random.uniform(-0.1, 3, (5000, 8)).astype(np.float32) for _ in range(4)]
    # The last run is ten times larger, so the range must grow.
    runs.append(sign * random.uniform(0, 30, (5000, 8)).astype(np.float32))
    ranges = observed(bundle, *runs).ranges()
    largest = max(float(np.abs(values).max()) for values in runs)
    assert set(ranges) == {"q", "k", "v"}
    assert ranges["q"] == ranges["k"] == pytest.approx(largest, rel=1e-3)
    assert ranges["v"] == 2 * ranges["q"]


def test_a_range_leaves_out_a_few_outliers_in_a_million(bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    values = random.uniform(-3, 3, (125_000, 8)).astype(np.float32)
    values[np.arange(5), 3] = 40
    assert observed(bundle, values).ranges()["q"] == pytest.approx(3, abs=1e-4)
    values[np.arange(50), 3] = 40
    assert observed(bundle, values).ranges()["q"] == 40


def test_a_range_is_that_of_all_runs_together(bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    # More values than are kept, in runs of different sizes.
    runs = [
        random.normal(scale=scale, size=(rows, 8)).astype(np.float32)
        for scale, rows in ((1, 9000), (3, 50), (2, 20_000))
    ]
    sizes = np.sort(np.abs(np.concatenate(runs)).ravel())
    assert observed(bundle, *runs).ranges()["q"] == sizes[len(sizes) - 1 - int(len(sizes) * 1e-5)]


@pytest.mark.parametrize("in_one_run", [True, False])
def test_a_range_of_rescaled_channels_is_that_of_the_values_divided_by_the_factors(
    bundle: Bundle, in_one_run: bool
) -> None:
    random = np.random.default_rng(0)
    # One magnitude in 100,000 lies beyond a range, which is less than what is kept of a channel.
    values = random.normal(scale=[1, 2, 3, 100, 5, 6, 7, 8], size=(40_000, 8)).astype(np.float32)
    runs = [values] if in_one_run else np.array_split(values, 23)
    factors = np.array([1, 0.5, 1, 90, 2, 1, 4, 0.1], np.float32)
    observations = observed(bundle, *runs, rescaled=["q", "k"])

    def expected(by: FloatArray | int) -> np.float32:
        sizes = np.sort(np.abs(values / by).ravel())
        return sizes[len(sizes) - 1 - int(len(sizes) * 1e-5)]

    ranges = observations.ranges({"q": factors})
    assert ranges["q"] == expected(factors) != expected(1)
    assert ranges["k"] == expected(1)
    assert ranges == observations.ranges() | {"q": ranges["q"]}


def test_a_range_reaches_further_if_more_of_a_channel_lie_beyond_it_than_are_kept() -> None:
    layers = find_layers(two_layers())
    observations = Observations({"vision": layers}, ["q", "k"])
    values = np.zeros((850_000, 8), np.float32)
    for start in (1000, 1600, 0, 0, 0, 0, 0, 0):
        values[:600, 3] = np.arange(start, start + 600)
        observations.add("vision", dict.fromkeys(observations.values("vision"), values))
    # Of 54,400,000 values, 544 lie beyond the range exactly, all of them in channel 3; 512 of these are known.
    assert observations.ranges() == {"q": 2200 - 512, "k": 2200 - 512, "v": 2200 - 545}
    half = np.array([1, 1, 1, 2, 1, 1, 1, 1], np.float32)
    assert observations.ranges({"k": half})["k"] == (2200 - 512) / 2


def test_ranges_of_a_smoothed_graph_are_known_without_a_run(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model]
) -> None:
    text, random = masked_graphs["text"], np.random.default_rng(0)
    factors, by_layer = {}, {}
    for site in find_sites(text, ()):
        (width,) = {len(array(reader.weight)) for reader in site.readers}
        factors[site.name] = random.uniform(0.2, 5, width).astype(np.float32)
        by_layer |= dict.fromkeys((reader.name for reader in site.readers), factors[site.name])
    assert len(by_layer) > len(factors) > 2

    def observe(graph: ir.Model) -> Observations:
        backend = ObservingBackend(bundle, {"text": graph}, {"text": find_layers(graph)}, list(by_layer))
        Model(bundle, backend).embed_texts(["a cat", "two dogs on a sofa", ""], "long")
        return backend.observations

    before = observe(text)
    after = observe(smooth(text, (), factors)).ranges()
    assert before.ranges(by_layer) == pytest.approx(after, rel=1e-5)
    changed = [name for name, value in before.ranges().items() if value != pytest.approx(after[name], rel=0.01)]
    assert set(changed) == set(by_layer)


def test_inputs_of_zeros_have_a_range_of_zero(bundle: Bundle) -> None:
    zeros = np.zeros((5, 8), np.float32)
    assert observed(bundle, zeros).ranges() == {"q": 0, "k": 0, "v": 0}


def test_rows_hold_the_one_with_the_largest_magnitude_of_each_run(bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    runs = [random.normal(size=(n, 8)).astype(np.float32) for n in (300, 2, 1)]
    runs[0][211, 5], runs[1][1, 2] = -50, 20
    rows = observed(bundle, *runs).rows()
    assert set(rows) == {"q", "k", "v"}
    np.testing.assert_array_equal(rows["q"], rows["k"])
    assert rows["q"].shape == (9 + 3 + 2, 8)
    seen = {row.tobytes() for values in runs for row in values}
    assert {row.tobytes() for row in rows["q"]} <= seen
    assert {runs[0][211].tobytes(), runs[1][1].tobytes(), runs[2][0].tobytes()} <= {row.tobytes() for row in rows["q"]}


def test_layers_that_were_not_run_have_neither_rows_nor_ranges(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model]
) -> None:
    graphs = {name: masked_graphs[name] for name in ("vision", "text")}
    layers = {name: find_layers(graph) for name, graph in graphs.items()}
    backend = ObservingBackend(bundle, graphs, layers)
    model = Model(bundle, backend)
    vectors = model.embed_texts(["a cat"], "box", normalize=False)
    linear = {layer.name for layer in layers["text"] if layer.kind == "linear"}
    ranges, rows_of = backend.observations.ranges(), backend.observations.rows()
    assert set(rows_of) == set(ranges) == linear
    assert all(value > 0 for value in ranges.values())
    for name, rows in rows_of.items():
        (layer,) = (layer for layer in layers["text"] if layer.name == name)
        assert rows.shape[1] == np.shape(layer.weight.const_value)[0]
        assert np.abs(rows).max() == pytest.approx(ranges[name], rel=1e-3)
    assert vectors.shape == (1, model.dim)


# Sensitivity


@pytest.fixture(scope="module")
def probe(masked_bundle_path: Path) -> Probe:
    """Two small images, one that is too large to be run, and a few texts."""
    whole = Probe.load(masked_bundle_path / "probe.safetensors")
    sizes = [len(image.patches) for image in whole.images]
    small, large = np.argsort(sizes)[:2], int(np.argmax(sizes))
    return Probe((*(whole.images[index] for index in small), whole.images[large]), whole.walk_types, whole.logits)


def cost_of(sensitivity: Sensitivity, graph: str, layer: str, dtype: ir.DataType) -> float:
    (cost,) = sensitivity.costs([Loss(graph, layer, dtype)])
    return cost


@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_a_layer_costs_nothing_in_its_own_type_little_in_fp16_and_more_in_coarse_steps(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model], probe: Probe, graph: str
) -> None:
    layer = {"vision": "vision.blocks.0.mlp.fc1", "dense": "dense.mlp.fc1", "text": "text.blocks.1.mlp.fc1"}[graph]
    good, saturated, crude = (
        cost_of(Sensitivity(bundle, masked_graphs, probe, {layer: value}), graph, layer, INT8)
        for value in (5.0, 0.5, 200.0)
    )
    sensitivity = Sensitivity(bundle, masked_graphs, probe, {})
    same = cost_of(sensitivity, graph, layer, FLOAT)
    half = cost_of(sensitivity, graph, layer, FLOAT16)
    assert same == pytest.approx(0, abs=1e-6)
    assert half < 1e-5
    assert half < good < 1e-2
    assert good < saturated
    assert good < crude


@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_losses_that_are_measured_together_are_those_of_graphs_lowered_one_by_one(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model], probe: Probe, graph: str
) -> None:
    layers, types = find_layers(masked_graphs[graph]), (FLOAT16, ir.DataType.BFLOAT16, *QUANTISED)
    ranges = {layer.name: 3.0 for layer in layers}
    losses = [
        Loss(graph, layer.name, dtype)
        for layer in layers
        for dtype in types
        if layer.kind == "linear" or dtype not in QUANTISED
    ]
    assert {layer.kind for layer in layers} >= {"linear", "attention"}
    model = masked_graphs[graph]
    few = {
        name: dataclasses.replace(
            texts, texts=texts.texts[:2], input_ids=texts.input_ids[:2], attention_mask=texts.attention_mask[:2]
        )
        for name, texts in probe.walk_types.items()
    }
    small = Probe(probe.images[:2], few, probe.logits)

    def vectors(lowered: ir.Model) -> NDArray[np.float64]:
        run = Model(bundle, GraphBackend(bundle, "fp32", {graph: lowered}))
        if graph == "text":
            walk_types = small.walk_types.items()
            rows = [run.embed_texts(texts.texts, name, normalize=False) for name, texts in walk_types]
        elif graph == "vision":
            rows = [run.embed_images(image.rgb, normalize=False) for image in small.images]
        else:
            rows = [run.dense_features(image.rgb, normalize=False)[0].reshape(-1, run.dim) for image in small.images]
        return np.concatenate(rows).astype(np.float64)

    exact = vectors(model)
    expected = []
    for loss in losses:
        actual = vectors(emulate(lower(model, {loss.layer: loss.dtype}, ranges)))
        expected.append(
            1 - np.mean((actual * exact).sum(-1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(exact, axis=1))
        )
    measured = Sensitivity(bundle, masked_graphs, small, ranges).costs(losses)
    # A sum in another order takes a number across a border of rounding now and then.
    assert np.isclose(measured, expected, rtol=0.02, atol=1e-10).mean() > 0.9
    np.testing.assert_allclose(measured, expected, rtol=0.5, atol=1e-10)
    assert len({f"{cost:.4g}" for cost in measured}) > len(measured) / 2


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("beyond", ["weight", "product"])
def test_a_layer_that_overflows_costs_infinitely_much(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model], probe: Probe, beyond: str
) -> None:
    layer, graph = "vision.blocks.1.mlp.fc1", masked_graphs["vision"].clone()
    weight = graph.graph.initializers[f"{layer}.weight"]
    assert weight.const_value is not None
    numbers = weight.const_value.numpy().copy()
    numbers[:, 0] = 70_000 if beyond == "weight" else 60_000
    weight.const_value = ir.Tensor(numbers, name=weight.name)
    sensitivity = Sensitivity(bundle, {"vision": graph}, probe, {layer: 5.0})
    assert cost_of(sensitivity, "vision", layer, FLOAT16) == np.inf
    assert cost_of(sensitivity, "vision", layer, FLOAT) == pytest.approx(0, abs=1e-6)
    assert cost_of(sensitivity, "vision", "vision.blocks.0.mlp.fc1", FLOAT16) < 1e-3
    assert np.isfinite(cost_of(sensitivity, "vision", layer, INT8))


def test_vectors_of_an_overflow_are_not_finite(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model], probe: Probe
) -> None:
    def lowered(largest: float) -> GraphBackend:
        model = masked_graphs["vision"].clone()
        weight = model.graph.initializers["vision.blocks.1.mlp.fc1.weight"]
        assert weight.const_value is not None
        weight.const_value = ir.Tensor(np.full_like(weight.const_value.numpy(), largest), name=weight.name)
        half = lower(model, {"vision.blocks.1.mlp.fc1": FLOAT16}, {})
        return GraphBackend(bundle, "fp32", {"vision": half}, as_on_a_gpu=True)

    sensitivity = Sensitivity(bundle, masked_graphs, probe, {})
    assert sensitivity.is_finite(lowered(1), {"vision"})
    assert not sensitivity.is_finite(lowered(70_000), {"vision"})
    assert sensitivity.is_finite(lowered(70_000), {"text", "region"})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The inputs of each run, as they are made."""
    seen: list[Any] = []
    run = Graphs.run

    def counted(self: Graphs, graph: str, inputs: Any, **options: Any) -> Any:
        seen.append(inputs)
        return run(self, graph, inputs, **options)

    monkeypatch.setattr(Graphs, "run", counted)
    return seen


def test_images_of_many_patches_are_not_run(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model], probe: Probe, runs: Sequence[Any]
) -> None:
    cost_of(Sensitivity(bundle, masked_graphs, probe, {}), "vision", "vision.patch_embedding", FLOAT16)
    assert len(probe.images) == 3
    assert len(runs) == 2 * 2
    assert max(inputs.patches.shape[1] for inputs in runs) <= 128 < max(len(image.patches) for image in probe.images)


def test_texts_from_the_shortest_to_the_longest_are_run(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model], probe: Probe, runs: Sequence[Any]
) -> None:
    cost_of(Sensitivity(bundle, masked_graphs, probe, {}), "text", "text.blocks.0.mlp.fc1", FLOAT16)
    seen = [inputs.attention_mask.sum(axis=1).tolist() for inputs in runs]
    assert len(seen) == 2 * len(probe.walk_types)
    for lengths, texts in zip(seen, probe.walk_types.values(), strict=False):
        real = texts.attention_mask.sum(axis=1)
        assert lengths == sorted(lengths)
        assert (lengths[0], lengths[-1]) == (real.min(), real.max())
        assert len(lengths) == min(len(real), max(2, 320 // texts.input_ids.shape[1])) < len(real)


def test_a_loss_is_measured_once(
    bundle: Bundle, masked_graphs: Mapping[str, ir.Model], probe: Probe, runs: Sequence[Any]
) -> None:
    sensitivity = Sensitivity(bundle, masked_graphs, probe, {})
    losses = [Loss("vision", f"vision.blocks.{block}.mlp.fc1", FLOAT16) for block in (1, 0)]
    first, second = sensitivity.costs(losses)
    assert first != second
    before = len(runs)
    assert sensitivity.costs(losses[::-1]) == [second, first]
    assert len(runs) == before == 3 * 2
