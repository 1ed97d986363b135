"""Masks become weights of patches that are neither lost nor invented, and bad ones are refused by their index."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fgclip_rt.errors import MaskError
from fgclip_rt.masks import mask_weights
from helpers import assert_one_sentence

Size = tuple[int, int]
FloatArray = NDArray[np.float32]

SIZE, GRID = (12, 20), (3, 4)

seeds = st.integers(0, 2**32 - 1)


def sizes(most: int) -> st.SearchStrategy[Size]:
    return st.tuples(st.integers(1, most), st.integers(1, most))


def soft(count: int, size: Size, seed: int) -> FloatArray:
    """Masks of numbers from 0 to 1, none of them zero everywhere."""
    masks = np.random.default_rng(seed).random((count, *size), np.float32)
    masks[:, -1, -1] = 1
    return masks


def hard(count: int, size: Size, seed: int) -> NDArray[np.bool_]:
    """Masks of zeros and ones, none of them zero everywhere."""
    return soft(count, size, seed) > 0.7


def by_counting(mask: FloatArray, grid: Size) -> FloatArray:
    """Means over patches. The mask is enlarged first until no patch's edge lies within a pixel."""
    large = mask.astype(np.float64)
    for axis, cells in enumerate(grid):
        large = large.repeat(cells // math.gcd(cells, mask.shape[axis]), axis=axis)
    rows, columns = grid
    means = large.reshape(rows, large.shape[0] // rows, columns, large.shape[1] // columns).mean(axis=(1, 3))
    return means.astype(np.float32).reshape(-1)


@given(sizes(60), sizes(12), seeds)
def test_weights_are_the_means_of_the_patches(size: Size, grid: Size, seed: int) -> None:
    masks = soft(2, size, seed)
    weights = mask_weights(masks, size, grid)
    assert (weights.shape, weights.dtype) == ((2, grid[0] * grid[1]), np.float32)
    expected = masks.reshape(2, -1) if size == grid else [by_counting(mask, grid) for mask in masks]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-5)


@given(sizes(200), sizes(24), seeds)
def test_the_share_of_an_image_is_kept(size: Size, grid: Size, seed: int) -> None:
    for masks in (soft(2, size, seed), hard(2, size, seed)):
        weights = mask_weights(masks, size, grid)
        means = masks.mean(axis=(1, 2), dtype=np.float64)
        np.testing.assert_allclose(weights.mean(axis=1, dtype=np.float64), means, rtol=1e-5, atol=1e-5)


@given(sizes(200), sizes(24))
def test_a_mask_of_everything_weighs_all_alike(size: Size, grid: Size) -> None:
    np.testing.assert_allclose(mask_weights(np.ones((1, *size)), size, grid), 1, rtol=0, atol=1e-5)


@given(sizes(100), sizes(24), seeds)
def test_weights_lie_between_zero_and_one(size: Size, grid: Size, seed: int) -> None:
    weights = mask_weights(hard(3, size, seed), size, grid)
    assert weights.min() >= 0
    assert weights.max() <= 1 + 1e-5


@given(sizes(60), sizes(12), seeds)
def test_bools_and_numbers_are_alike(size: Size, grid: Size, seed: int) -> None:
    masks = hard(2, size, seed)
    expected = mask_weights(masks, size, grid)
    for dtype in (np.float32, np.float64, np.float16, np.uint8, np.int64):
        np.testing.assert_array_equal(mask_weights(masks.astype(dtype), size, grid), expected)
    np.testing.assert_array_equal(mask_weights(masks.tolist(), size, grid), expected)
    np.testing.assert_array_equal(mask_weights(list(masks), size, grid), expected)


@given(sizes(60), sizes(12), seeds, st.floats(0, 1))
def test_weights_are_linear_in_the_mask(size: Size, grid: Size, seed: int, share: float) -> None:
    first, second = soft(2, size, seed)
    blend = share * first + (1 - share) * second
    a, b, both = mask_weights(np.stack([first, second, blend]), size, grid)
    np.testing.assert_allclose(both, share * a + (1 - share) * b, rtol=0, atol=1e-5)


@given(sizes(12), sizes(9), seeds)
def test_a_mask_of_whole_patches_has_their_values(grid: Size, patch: Size, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 5, grid) / np.float32(4)
    values[0, 0] = 1
    size = grid[0] * patch[0], grid[1] * patch[1]
    mask = values.repeat(patch[0], axis=0).repeat(patch[1], axis=1)
    weights = mask_weights(mask[None], size, grid)
    np.testing.assert_allclose(weights, values.reshape(1, -1), rtol=0, atol=1e-6)


@given(sizes(12), sizes(9), seeds)
def test_where_patches_are_whole_pixels_weights_are_pillows(grid: Size, patch: Size, seed: int) -> None:
    """Otherwise Pillow counts every pixel fully or not at all, but our weights count its share."""
    size = grid[0] * patch[0], grid[1] * patch[1]
    mask = soft(1, size, seed)
    resized = Image.fromarray(mask[0]).resize((grid[1], grid[0]), Image.Resampling.BOX)
    assert resized.mode == "F"
    np.testing.assert_allclose(mask_weights(mask, size, grid).reshape(grid), np.asarray(resized), rtol=0, atol=1e-4)


def test_a_patch_that_ends_within_a_pixel_takes_its_share() -> None:
    mask = np.array([[[1, 0, 0]]])
    np.testing.assert_allclose(mask_weights(mask, (1, 3), (1, 2)), [[2 / 3, 0]], atol=1e-6)
    mask = np.array([[[0, 1, 0]]])
    np.testing.assert_allclose(mask_weights(mask, (1, 3), (1, 2)), [[1 / 3, 1 / 3]], atol=1e-6)


def test_an_image_that_is_smaller_than_its_grid_is_spread() -> None:
    mask = np.array([[[1, 0]]], np.float32)
    np.testing.assert_allclose(mask_weights(mask, (1, 2), (2, 4)), [[1, 1, 0, 0, 1, 1, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("grid", [(24, 24), (14, 37)])
def test_one_pixel_of_a_photo_is_not_lost(grid: Size) -> None:
    height, width = 3001, 1999
    mask = np.zeros((1, height, width), np.bool_)
    mask[0, 1234, 567] = True
    weights = mask_weights(mask, (height, width), grid)
    place = 1234 * grid[0] // height * grid[1] + 567 * grid[1] // width
    assert weights[0].argmax() == place
    np.testing.assert_allclose(weights.sum() * height * width / weights.size, 1, rtol=1e-4)


@given(sizes(12), seeds)
def test_masks_of_the_grids_size_pass_unchanged(grid: Size, seed: int) -> None:
    size = grid[0] * 16 + 3, grid[1] * 16 + 5
    for masks in (soft(3, grid, seed), hard(3, grid, seed)):
        weights = mask_weights(masks, size, grid)
        assert weights.dtype == np.float32
        np.testing.assert_array_equal(weights, masks.reshape(3, -1))


@given(sizes(12), seeds)
def test_an_image_as_large_as_its_grid_passes_unchanged(grid: Size, seed: int) -> None:
    masks = soft(2, grid, seed)
    np.testing.assert_array_equal(mask_weights(masks, grid, grid), masks.reshape(2, -1))


@pytest.mark.parametrize("masks", [[], (), np.zeros((0, *SIZE)), np.zeros((0, *GRID), bool), np.zeros((0, 0, 0))])
def test_no_masks_give_no_weights(masks: Any) -> None:
    weights = mask_weights(masks, SIZE, GRID)
    assert (weights.shape, weights.dtype) == ((0, 12), np.float32)


@given(st.integers(1, 5), seeds)
def test_masks_do_not_see_one_another(count: int, seed: int) -> None:
    masks = soft(count, SIZE, seed)
    together = mask_weights(masks, SIZE, GRID)
    for index in range(count):
        np.testing.assert_allclose(mask_weights(masks[index : index + 1], SIZE, GRID), together[index : index + 1])


@pytest.mark.parametrize("size", [SIZE, GRID])
def test_masks_are_neither_changed_nor_kept(size: Size) -> None:
    masks = soft(2, size, seed=0)
    before = masks.copy()
    weights = mask_weights(masks, SIZE, GRID)
    np.testing.assert_array_equal(masks, before)
    weights[:] = 0
    np.testing.assert_array_equal(masks, before)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_in_memory_does_not_matter(order: Any) -> None:
    masks = soft(2, SIZE, seed=0)
    turned = np.array(masks.transpose(2, 0, 1), order=order).transpose(1, 2, 0)
    np.testing.assert_allclose(mask_weights(turned, SIZE, GRID), mask_weights(masks, SIZE, GRID), rtol=1e-6)


# Masks that are refused


def refused(masks: Any, *parts: str, code: str = "mask_invalid") -> None:
    with pytest.raises(MaskError) as info:
        mask_weights(masks, SIZE, GRID)
    assert_one_sentence(info.value, *parts, code=code)


@pytest.mark.parametrize(
    "shape",
    [
        SIZE,  # one mask without its axis
        GRID,
        (1, 20, 12),  # turned
        (1, 4, 3),
        (1, 12, 21),
        (1, 13, 20),
        (1, 12, 4),  # rows of the image, columns of the grid
        (1, 240),
        (1, 1, *SIZE),
        (2, 12, 20, 1),
        (1, 0, 0),
        (),
        (3,),
    ],
)
def test_another_shape_is_refused_with_both_that_will_do(shape: tuple[int, ...]) -> None:
    refused(np.ones(shape), f"the shape {list(shape)}", "[m, 12, 20]", "[m, 3, 4]", code="mask_misshaped")


@pytest.mark.parametrize("size", [SIZE, GRID])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, 1.001, 255, -1])
def test_other_numbers_are_refused_by_the_masks_index(size: Size, value: float) -> None:
    masks = np.ones((4, *size))
    masks[2, 1, 1] = value
    refused(masks, "mask 2 ", "not from 0 to 1")


def test_a_grey_picture_is_no_mask() -> None:
    refused(np.full((1, *SIZE), 255, np.uint8), "mask 0 ", "not from 0 to 1")


@pytest.mark.parametrize("size", [SIZE, GRID])
@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.uint8])
def test_a_mask_of_nothing_is_refused_by_its_index(size: Size, dtype: type) -> None:
    masks = np.ones((3, *size), dtype)
    masks[1] = 0
    refused(masks, "mask 1 ", "zero everywhere", code="mask_empty")


@pytest.mark.parametrize(
    "masks",
    [
        "mask",
        b"mask",
        "0.5",
        ["mask", "mask"],
        [[["a"] * 20] * 12],
        None,
        [None],
        {"mask": 1},
        object(),
        [[[1.0, 0.0], [1.0]]],
        [np.ones(SIZE), np.ones(GRID)],
        [np.ones(SIZE), None],
    ],
)
def test_what_is_not_masks_is_refused(masks: Any) -> None:
    refused(masks, "masks", "[m, ")


def test_a_single_number_is_refused() -> None:
    refused(7, "masks", "[m, ", code="mask_misshaped")


def test_a_number_of_many_digits_is_refused() -> None:
    refused([[[10**400] * 20] * 12], "mask")


def test_numbers_in_text_are_refused() -> None:
    refused([[["1"] * 20] * 12], "masks", "not numbers")


@pytest.mark.filterwarnings("ignore")
def test_complex_numbers_are_refused() -> None:
    refused(np.full((1, *SIZE), 1j + 1), "masks")
