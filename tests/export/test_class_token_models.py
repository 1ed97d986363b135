"""FG-CLIP and FineCLIP: bundles reproduce the released implementations, and do all that FG-CLIP 2's bundles do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import LIBRARY, FakeCuda, FakePlan, make_engine
from PIL import Image

import fgclip_rt
from exporting import SQUARE_CHECKPOINTS
from fgclip_rt import parity
from fgclip_rt.backends.refuse import Refuse
from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import Engine
from fgclip_rt.engines.profiles import Shapes, plan
from fgclip_rt.engines.runner import EngineBackend
from fgclip_rt.errors import ArgumentError, FgclipError
from fgclip_rt.evaluation.measures import MEASURES
from fgclip_rt.evaluation.scenes import lacking
from fgclip_rt.export import PRECISIONS
from fgclip_rt.export.checkpoints.locate import locate
from fgclip_rt.export.families import table as families
from fgclip_rt.graphs import ImageInputs
from fgclip_rt.images import load_image
from fgclip_rt.model import Model
from fgclip_rt.preparation import Patches
from fgclip_rt.probe import Probe
from fgclip_rt.scores import l2_normalize
from helpers import GOLDENS, SQUARE_NAMES, assert_one_sentence, assert_parity, picture, run_command
from slow_resize import resize, resize_horizontally, resize_vertically

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
FIRST = [0, 1, 2]
#: The image was recorded with Pillow 13, which resizes it vertically first; the processors begin horizontally.
TALL = 2


class Golden:
    """Results of the released implementation on one checkpoint."""

    def __init__(self, name: str) -> None:
        self.name = name
        index = json.loads((GOLDENS / name / "index.json").read_text(encoding="utf-8"))
        self.images = [GOLDENS / "fgclip1" / "images" / image for image in index["images"]]
        self.texts: list[str] = index["texts"]
        self.expected: dict[str, np.ndarray[Any, Any]] = dict(np.load(GOLDENS / name / "expected.npz"))

    def seen(self, index: int) -> Path | Image.Image:
        """The file, or the square that the reference made of it, if the reference resized it in another way."""
        if index != TALL:
            return self.images[index]
        values = self.expected[f"image{index}.pixel_values"].transpose(1, 2, 0)
        return Image.fromarray(np.rint(255 * (values * STD + MEAN)).astype(np.uint8))

    def boxes(self, index: int) -> np.ndarray[Any, Any]:
        """Boxes in pixels of the image that :meth:`seen` gives."""
        size = np.array(load_image(self.seen(index)).size * 2)
        if f"image{index}.normed_boxes" in self.expected:
            return self.expected[f"image{index}.normed_boxes"] * size
        return self.expected[f"image{index}.boxes"] * (size / (load_image(self.images[index]).size * 2))


@pytest.fixture(scope="module", params=SQUARE_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module")
def bundle(golden: Golden, square_path: Callable[[str], Path]) -> Path:
    """The checkpoint, exported in three precisions. Engines are built in a copy."""
    return square_path(golden.name)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return fgclip_rt.load(bundle, device="cpu")


@pytest.mark.parametrize("index", FIRST)
def test_preparation_gives_the_processors_pixels(golden: Golden, model: Model, index: int) -> None:
    image = load_image(golden.images[index])
    patches = model.preparation(image)
    assert patches.grid == (4, 4)
    square = patches.pixels.reshape(4, 4, 16, 16, 3).swapaxes(1, 2).reshape(64, 64, 3)
    if index == TALL:
        pixels, resample = np.asarray(image), model.manifest.image.resample
        np.testing.assert_array_equal(square, resize(pixels, 64, 64, resample))
        square = resize_horizontally(resize_vertically(pixels, 64, resample), 64, resample)
    values = (square / 255 - MEAN) / STD
    expected = golden.expected[f"image{index}.pixel_values"].transpose(1, 2, 0)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", FIRST)
def test_features_of_images(golden: Golden, model: Model, index: int) -> None:
    image, expected = golden.seen(index), golden.expected
    assert_parity(model.embed_images(image, normalize=False)[0], expected[f"image{index}.image_features"])
    [dense] = model.dense_features(image, normalize=False)
    assert_parity(dense.reshape(16, -1), expected[f"image{index}.dense_features"])
    regions = model.embed_regions(image, golden.boxes(index), normalize=False)
    assert_parity(regions, expected[f"image{index}.region_features"])


@pytest.mark.parametrize("index", FIRST)
def test_features_of_normalized_boxes(golden: Golden, model: Model, index: int) -> None:
    image = golden.seen(index)
    shares = golden.boxes(index) / np.array(load_image(image).size * 2)
    regions = model.embed_regions(image, shares, normalize=False, box_format="normalized")
    assert_parity(regions, golden.expected[f"image{index}.region_features"])


def test_only_fineclip_takes_shares_of_an_image_in_float32(golden: Golden, model: Model) -> None:
    assert model.manifest.box_shares == {"fgclip1": "float64", "fineclip": "float32"}[golden.name]


def test_features_of_masks(golden: Golden, model: Model) -> None:
    if not model.graphs.has("mask"):
        with pytest.raises(ArgumentError) as error:
            model.embed_masks(golden.images[0], np.ones((1, 4, 4)))
        assert_one_sentence(error.value, "checkpoint has no features of masks")
        return
    for index in FIRST:
        masks, expected = (golden.expected[f"image{index}.{name}"] for name in ("masks", "mask_features"))
        assert_parity(model.embed_masks(golden.seen(index), masks, normalize=False), expected)
        # The same masks over the pixels of the image, whose size is no multiple of the grid's.
        width, height = load_image(golden.images[index]).size
        of_pixels = np.stack([np.kron(mask, np.ones((height, width))) for mask in masks]) > 0
        large = Image.fromarray(picture(4 * height, 4 * width))
        grid = model.embed_masks(large, masks)
        np.testing.assert_allclose(model.embed_masks(large, of_pixels), grid, rtol=0, atol=1e-5)
    assert model.embed_masks(golden.images[0], []).shape == (0, model.dim)


def test_texts(golden: Golden, model: Model) -> None:
    for name, expected in golden.expected.items():
        if name.startswith("text."):
            _, walk_type, kind = name.split(".")
            if kind == "input_ids":
                np.testing.assert_array_equal(model.tokenizer(golden.texts, walk_type).input_ids, expected)
            else:
                assert_parity(model.embed_texts(golden.texts, walk_type, normalize=False), expected)
    np.testing.assert_array_equal(model.embed_texts(golden.texts, "box"), model.embed_texts(golden.texts, "short"))


def test_probabilities_are_a_softmax_over_the_texts_of_an_image(golden: Golden, model: Model) -> None:
    images, texts = golden.expected["image0.image_features"][None], golden.expected["text.short.text_features"]
    logits = np.exp(model.logit_scale) * l2_normalize(images) @ l2_normalize(texts).T
    expected = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    assert model.logit_bias == 0
    np.testing.assert_allclose(model.probabilities(images, texts), expected, rtol=0, atol=1e-6)


def test_a_vector_does_not_depend_on_the_batch(golden: Golden, model: Model) -> None:
    images = [*golden.images, picture(1, 300), picture(500, 2), picture(64, 64)]
    together = model.embed_images(images, batch_size=4)
    np.testing.assert_allclose(
        together, np.concatenate([model.embed_images(image) for image in images]), rtol=0, atol=2e-6
    )


def test_any_texts_give_the_references_features(golden: Golden, model: Model) -> None:
    checkpoint, files = SQUARE_CHECKPOINTS[golden.name]
    reference = families.load(locate(checkpoint, files=files))[1]
    texts = ["", "a", "x " * 400, "word " * 75, "word " * 76, "一只黑猫 🦊", "A B. c, d! it's", "<|endoftext|> after"]
    for walk_type in model.manifest.text.walk_types:
        expected = reference.text(model.tokenizer(texts, walk_type), walk_type)
        assert_parity(model.embed_texts(texts, walk_type, normalize=False), expected)
    patches = Patches(picture(1, 16 * 256, seed=1).reshape(16, 768), (4, 4), (64, 64), 16)
    expected_image = reference.image(patches, np.array([[0, 0, 9, 9]], np.float32), np.ones((1, 4, 4), np.float32))
    for row in model.graphs.vision(ImageInputs.of([patches] * 3), normalize=False).result():
        assert_parity(row, expected_image.features)


def test_every_precision_is_in_the_table(model: Model) -> None:
    graphs = {"vision", "dense", "region", "text", "logits", "preparation", "tokens"}
    graphs |= {"mask"} if model.graphs.has("mask") else set()
    for precision in ("fp32", "fp16", "int8"):
        rows = model.manifest.parity.measured[precision]
        assert {row.graph for row in rows} == graphs
        assert all(row.passed for row in rows)
    assert model.manifest.lowering["int8"].smoothed > 0
    # A graph without weights is one file in all precisions.
    for graph in {"region", "mask"} & graphs:
        assert {entry.file for entry in model.manifest.graphs[graph].values()} == {f"{graph}.onnx"}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_run(golden: Golden, bundle: Path, model: Model, precision: str) -> None:
    lower = fgclip_rt.load(bundle, device="cpu", precision=precision)
    cosines = (lower.embed_images(golden.images) * model.embed_images(golden.images)).sum(axis=1)
    assert cosines.min() > {"fp16": 0.9995, "int8": 0.98}[precision]
    assert np.abs(1 - cosines).max() > 1e-8, "it must not be float32 again"


def test_another_number_of_patches_is_refused(golden: Golden, model: Model) -> None:
    assert_parity(model.embed_images(golden.images[0], max_num_patches=16), model.embed_images(golden.images[0]))
    for call in (model.embed_images, model.dense_features):
        with pytest.raises(ArgumentError) as error:
            call(golden.images[0], max_num_patches=256)
        assert_one_sentence(error.value, "max_num_patches is 256", "64×64 pixels", "leave it out")


def test_long_texts(golden: Golden, model: Model) -> None:
    if golden.name == "fgclip1":
        assert model.tokenizer.walk_type("long").length == 248
        assert model.truncated(["word " * 100], "long") == []
    else:
        with pytest.raises(ArgumentError) as error:
            model.embed_texts("a cat", "long")
        assert_one_sentence(error.value, "no walk type 'long'", "short, box")


def test_commands(golden: Golden, bundle: Path, tmp_path: Path) -> None:
    image = golden.images[1]
    scored = json.loads(run_command("score", bundle, image, "--text", "a cat", "--text", "a dog", "--json").stdout)
    assert sum(scored["probabilities"][0]) == pytest.approx(1)
    regions = run_command("regions", bundle, image, "--box", "0,0,64,64", "--text", "a cat", "--json").stdout
    assert len(json.loads(regions)["cosines"][0]) == 1
    mapped = run_command("heatmap", bundle, image, "--text", "a cat", "--output", tmp_path / "map.png", "--json")
    assert json.loads(mapped.stdout)["grid"] == [4, 4]
    assert Image.open(tmp_path / "map.png").width > 400
    inspected = run_command("inspect", bundle).stdout
    assert "square, 64×64 px" in inspected
    truncated = run_command("score", bundle, image, "--text", "word " * 90).stderr
    assert ("use --walk-type long" if golden.name == "fgclip1" else "shorten them") in truncated
    run_command("doctor", bundle)


def test_evaluation_leaves_out_what_a_model_lacks(golden: Golden, bundle: Path, model: Model) -> None:
    left_out = {measure for measures in lacking(model).values() for measure in measures}
    assert left_out == (set() if golden.name == "fgclip1" else {"long text to image", "image to long text"})
    if not left_out:
        return
    result = run_command("evaluate", bundle, "--scenes", "100", "--json")
    assert {figure["measure"] for figure in json.loads(result.stdout)["figures"]} == set(MEASURES) - left_out
    assert "checkpoint has no long texts, so long text to image and image to long text cannot be measured." in (
        result.stderr
    )


def test_verification_against_the_checkpoint(golden: Golden, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgclip_rt.export.bundle.probe.IMAGE_SIZES", ((60, 80),))
    checkpoint, files = SQUARE_CHECKPOINTS[golden.name]
    options = [part for name, value in vars(files).items() if value is not None for part in (f"--{name}", value)]
    result = run_command("verify", bundle, "--checkpoint", checkpoint, *options, "--json")
    assert json.loads(result.stdout)["passed"]
    if options:
        alone = run_command("verify", bundle, *options, status=1)
        assert_one_sentence(alone.stderr.strip(), "--checkpoint")


def test_engines_keep_parity(bundle: Path) -> None:
    """Engines run on a simulated GPU."""
    opened, cuda = Bundle.open(bundle), FakeCuda()
    shapes = Shapes(batch=(1, 2, 3), boxes=(1, 2, 3), masks=(1, 2, 2))
    engines = [make_engine(opened, spec) for spec in plan(opened.manifest, ["fp32"], None, shapes)]

    def load(engine: Engine) -> FakePlan:
        return FakePlan(opened, engine, cuda, captures_graphs=True)

    refuse = Refuse(bundle, "fp32", LIBRARY.name, "nothing else runs here")
    backend = EngineBackend(opened, "fp32", engines, refuse, load, cuda)  # type: ignore[arg-type]
    probe = Probe.of(opened)
    rows = parity.check(Model(opened, backend), probe, PRECISIONS["fp32"].limits)
    assert [row for row in rows if not row.passed] == []


def test_engines_are_built(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link)
    options = ("--backend", "tensorrt-rtx", "--precision", "fp16", "--target", "sm89", "--json")
    built = json.loads(run_command("build", folder, *options).stdout)
    graphs = {engine["key"]["graph"] for engine in built["engines"]}
    assert graphs == set(Bundle.open(bundle).manifest.graphs)


def test_other_buckets_cannot_be_built(bundle: Path) -> None:
    with pytest.raises(FgclipError) as error:
        plan(Bundle.open(bundle).manifest, ["fp32"], None, Shapes(buckets=[256]))
    assert_one_sentence(error.value, "bucket 256 is none of this model's (16); choose from them.")
