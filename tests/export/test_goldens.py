"""Bundles reproduce the results of the released implementation."""

from __future__ import annotations

import numpy as np
import pytest

from fgclip_rt.graphs import ImageInputs
from fgclip_rt.images import load_image
from fgclip_rt.model import Model
from helpers import WALK_TYPES, Golden, assert_parity

MAIN, IMAGES = Golden("fgclip2"), range(7)


@pytest.mark.parametrize("index", IMAGES)
def test_preparation_gives_the_processors_patches(model: Model, index: int) -> None:
    patches = model.preparation(load_image(MAIN.images[index]))
    count = int(MAIN.expected[f"image{index}.pixel_attention_mask"].sum())
    assert patches.bucket == MAIN.buckets[index]
    assert patches.grid == MAIN.grids[index]
    assert len(patches.pixels) == count
    np.testing.assert_array_equal(patches.pixels, MAIN.pixels[index][:count])


@pytest.mark.parametrize("index", IMAGES)
def test_buckets_are_the_processors(golden: Golden, golden_model: Model, index: int) -> None:
    assert golden_model.preparation.bucket(*load_image(golden.images[index]).size) == golden.buckets[index]


@pytest.mark.parametrize("index", IMAGES)
def test_image_features(golden: Golden, golden_model: Model, index: int) -> None:
    features = golden_model.embed_images(golden.images[index], normalize=False)
    assert_parity(features[0], golden.expected[f"image{index}.image_features"])


@pytest.mark.parametrize("index", IMAGES)
def test_dense_features(model: Model, index: int) -> None:
    [dense] = model.dense_features(MAIN.images[index], normalize=False)
    assert dense.shape[:2] == MAIN.grids[index]
    assert_parity(dense.reshape(-1, model.dim), MAIN.expected[f"image{index}.dense_features"])


@pytest.mark.parametrize("index", IMAGES)
def test_region_features(model: Model, index: int) -> None:
    regions = model.embed_regions(MAIN.images[index], MAIN.expected[f"image{index}.boxes"], normalize=False)
    assert_parity(regions, MAIN.expected[f"image{index}.region_features"])


def test_one_batch_with_256_patches(golden: Golden, golden_model: Model) -> None:
    batch = [golden.images[i] for i in (1, 4, 5)]
    prepared = [golden_model.preparation(load_image(image), 256) for image in batch]
    np.testing.assert_array_equal([p.grid for p in prepared], MAIN.expected["batch145_256.spatial_shapes"])
    expected = golden.expected["batch145_256.image_features"]
    assert_parity(golden_model.embed_images(batch, max_num_patches=256, normalize=False), expected)
    assert_parity(golden_model.graphs.vision(ImageInputs.of(prepared), normalize=False).result(), expected)


@pytest.mark.parametrize("walk_type", WALK_TYPES)
def test_tokens(golden: Golden, golden_model: Model, walk_type: str) -> None:
    tokens = golden_model.tokenizer(golden.texts, walk_type)
    np.testing.assert_array_equal(tokens.input_ids, golden.expected[f"text.{walk_type}.input_ids"])
    masked = f"text.{walk_type}.attention_mask"
    assert golden_model.manifest.text.attention_mask == (masked in golden.expected)
    if masked in golden.expected:
        np.testing.assert_array_equal(tokens.attention_mask, golden.expected[masked])


@pytest.mark.parametrize("walk_type", WALK_TYPES)
def test_text_features(golden: Golden, golden_model: Model, walk_type: str) -> None:
    features = golden_model.embed_texts(golden.texts, walk_type, normalize=False)
    assert_parity(features, golden.expected[f"text.{walk_type}.text_features"])


def test_logits(golden: Golden, golden_model: Model) -> None:
    images, texts = golden_model.embed_images(golden.images[1]), golden_model.embed_texts(golden.texts)
    assert_parity(golden_model.logits(images, texts), golden.expected["forward.image1.logits_per_image"])
