"""The C library against the Python runtime, on bundles of every family and precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fgclip_rt
from fgclip_rt.boxes import BoxFormat
from fgclip_rt.graphs import ImageInputs, TextInputs
from fgclip_rt.model import Model
from fgclip_rt.native.library import Library, NativeModel, rgb_image
from helpers import picture

#: Every bundle, with each of its precisions. The shipped one is the pocket model in fp16.
CASES = [
    ("shipped", "fp16"),
    *(("pocket", precision) for precision in ("fp32", "int8")),
    *((name, precision) for name in ("fgclip1", "fineclip") for precision in ("fp32", "fp16", "int8")),
    ("fgclip2", "fp32"),
    ("fgclip2-masked", "fp32"),
]

#: Images of several buckets and grids, so that batches are cut and padded.
SIZES = [(40, 90), (300, 200), (61, 61), (16, 16), (500, 31), (90, 40), (200, 300), (1, 1), (333, 777), (61, 61)]

TEXTS = [
    "a cat",
    "TWO Dogs, naïve café",
    "一只黑猫",
    "🦊 \u200b zero width",
    "a cat",
    "",
    " a   cat ",
    "word " * 300,
    "a\0b",
]

Pair = tuple[Model, NativeModel]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(request: Any, library: Library, bundle_of: Callable[[str], Path]) -> Iterator[Pair]:
    """The same bundle in both languages, with as many threads."""
    name, precision = request.param
    model = fgclip_rt.load(bundle_of(name), device="cpu", precision=precision, threads=2)
    native = library.open(bundle_of(name), precision=precision, threads=2)
    yield model, native
    native.close()


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [picture(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def walk_types(model: Model) -> list[str]:
    return list(model.manifest.text.walk_types)


def test_patches_are_equal(pair: Pair, images: list[np.ndarray]) -> None:
    model, native = pair
    for pixels in images:
        expected = model.preparation(model.load_image(pixels))
        patches, grid = native.prepare(rgb_image(pixels))
        assert (grid.rows, grid.columns) == expected.grid
        assert grid.bucket == expected.bucket
        np.testing.assert_array_equal(patches, expected.pixels)


def test_tokens_are_equal(pair: Pair) -> None:
    model, native = pair
    for walk_type in walk_types(model):
        expected = model.tokenizer(TEXTS, walk_type)
        ids, mask, truncated = native.tokenize(TEXTS, walk_type)
        np.testing.assert_array_equal(ids, expected.input_ids)
        np.testing.assert_array_equal(mask, expected.attention_mask)
        np.testing.assert_array_equal(truncated, expected.truncated)


@pytest.mark.parametrize("features", [0, 1])
def test_vectors_of_images_are_equal(pair: Pair, images: list[np.ndarray], features: int) -> None:
    model, native = pair
    expected = model.embed_images(images, normalize=not features)
    np.testing.assert_array_equal(native.embed_images(images, features=features), expected)
    expected = model.embed_images(images, batch_size=3, normalize=not features)
    np.testing.assert_array_equal(native.embed_images(images, features=features, batch_size=3), expected)


@pytest.mark.parametrize("features", [0, 1])
def test_vectors_of_texts_are_equal(pair: Pair, features: int) -> None:
    model, native = pair
    for walk_type in walk_types(model):
        expected = model.embed_texts(TEXTS, walk_type, normalize=not features)
        np.testing.assert_array_equal(native.embed_texts(TEXTS, walk_type, features), expected)


def test_vectors_of_prepared_inputs_are_equal(pair: Pair, images: list[np.ndarray]) -> None:
    model, native = pair
    prepared = [model.preparation(model.load_image(pixels)) for pixels in images]
    expected = model.graphs.vision(ImageInputs.of(prepared)).result()
    patches = np.concatenate([one.pixels.reshape(-1) for one in prepared])
    np.testing.assert_array_equal(native.embed_patches(patches, [one.grid for one in prepared]), expected)
    for walk_type in walk_types(model):
        tokens = model.tokenizer(TEXTS, walk_type)
        index = model.manifest.text.walk_types[walk_type].index
        expected = model.graphs.text(TextInputs.of(tokens, index)).result()
        vectors = native.embed_tokens(tokens.input_ids, tokens.attention_mask, walk_type)
        np.testing.assert_array_equal(vectors, expected)


def test_dense_features_are_equal(pair: Pair, images: list[np.ndarray]) -> None:
    model, native = pair
    for pixels in images[:3]:
        dense = model.dense(pixels)
        np.testing.assert_array_equal(native.dense(pixels, features=1), dense.features(normalize=False))
        np.testing.assert_allclose(native.dense(pixels), dense.features(), rtol=1e-6, atol=1e-9)


def test_vectors_of_regions_are_equal(pair: Pair, images: list[np.ndarray]) -> None:
    model, native = pair
    pixels = images[1]
    height, width = pixels.shape[:2]
    formats: dict[BoxFormat, list[list[float]]] = {
        "xyxy": [[0, 0, width, height], [10.5, 20.25, 90.7, 110.1], [-30, -5, 50, 60]],
        "xywh": [[10, 20, 30.3, 40.4]],
        "normalized": [[0.1, 0.2, 0.7, 0.9], [-0.2, 0.0, 1.2, 1.0]],
    }
    features = native.dense(pixels, features=1)
    for box_format, boxes in formats.items():
        expected = model.embed_regions(pixels, boxes, box_format=box_format)
        given = np.array(boxes)
        np.testing.assert_array_equal(native.regions(pixels, given, box_format), expected)
        np.testing.assert_array_equal(native.regions(pixels, given, box_format, features), expected)
    assert native.regions(pixels, np.zeros((0, 4))).shape == (0, model.dim)


def test_vectors_of_masks_are_equal(pair: Pair, images: list[np.ndarray]) -> None:
    model, native = pair
    if not model.graphs.has("mask"):
        pytest.skip("this model has no masks")
    pixels = images[1]
    height, width = pixels.shape[:2]
    rows, columns = model.dense(pixels).grid
    draw = np.random.default_rng(1)
    given = [
        draw.random((2, height, width), np.float32),
        draw.random((2, height, width)) < 0.3,
        draw.random((3, rows, columns), np.float32),
    ]
    for masks in given:
        expected = model.embed_masks(pixels, masks)
        np.testing.assert_allclose(native.masks(pixels, masks), expected, rtol=1e-6, atol=1e-7)


def test_scores_are_near(pair: Pair, images: list[np.ndarray]) -> None:
    model, native = pair
    vectors, texts = model.embed_images(images, normalize=False), model.embed_texts(TEXTS)
    expected = model.logits(vectors, texts)
    limit = 1e-6 * float(np.abs(expected).max())
    np.testing.assert_allclose(native.scores("logits", vectors, texts), expected, rtol=1e-6, atol=limit)
    expected = model.probabilities(vectors, texts)
    np.testing.assert_allclose(native.scores("probabilities", vectors, texts), expected, rtol=1e-4, atol=1e-7)


def test_the_manifest_is_that_of_the_bundle(pair: Pair) -> None:
    model, native = pair
    assert native.json("manifest") == json.loads(model.manifest.to_json())
    info = native.json("runtime_info")
    assert info["precision"] == model.precision
    assert info["device"] == {"name": "cpu", "number": None, "why": "as asked"}


def test_separate_weights_give_the_same_vectors(
    library: Library,
    pocket_path: Path,
    images: list[np.ndarray],
) -> None:
    shared = library.open(pocket_path, threads=1)
    for options in ({"weights": 1}, {"memory": 1}, {"spinning": 1}, {"check": 1}):
        native = library.open(pocket_path, threads=1, **options)
        np.testing.assert_array_equal(native.embed_images(images), shared.embed_images(images))
        np.testing.assert_array_equal(native.dense(images[0]), shared.dense(images[0]))
        native.close()
    shared.close()
