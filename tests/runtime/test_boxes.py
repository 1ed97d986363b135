"""Boxes become units of the grid as the released code makes them, and are checked before they reach a graph."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fgclip_rt
from fgclip_rt.boxes import BOX_FORMATS, BoxFormat, grid_boxes
from fgclip_rt.errors import ArgumentError, BoxError
from fgclip_rt.manifest import BoxShares
from fgclip_rt.model import Model
from helpers import assert_one_sentence, picture

GOOD, SIZE, GRID = [1.0, 2.0, 30.0, 40.0], (50, 100), (8, 16)
SHARES = st.sampled_from(["float64", "float32"])

FloatArray = np.ndarray[Any, np.dtype[np.float32]]


def on_grid(boxes: Any, box_format: Any = "xyxy", shares: BoxShares = "float64") -> FloatArray:
    """The boxes of an image of ``SIZE`` in units of its ``GRID``."""
    return grid_boxes(boxes, SIZE, GRID, box_format, shares)


# From pixels to the grid


def test_the_box_whose_samples_a_division_in_float32_doubles() -> None:
    """Its sides are three patches and one; in float32 one of them comes out as more than three."""
    boxes = grid_boxes([[36, 226, 84, 242]], (432, 576), (27, 36))
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, [[2.25, 14.125, 5.25, 15.125]])


@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    grid=st.tuples(st.integers(1, 1024), st.integers(1, 1024)),
    data=st.data(),
)
def test_edges_on_the_borders_of_patches_stay_there(
    size: tuple[int, int], grid: tuple[int, int], data: st.DataObject
) -> None:
    assume(size[0] * size[1] >= 64)
    (height, width), (rows, columns) = size, grid
    x1, y1 = (data.draw(st.integers(0, count - 1)) for count in (columns, rows))
    x2, y2 = data.draw(st.integers(x1 + 1, columns)), data.draw(st.integers(y1 + 1, rows))
    pixels = [x1 * width / columns, y1 * height / rows, x2 * width / columns, y2 * height / rows]
    whole_image = [0, 0, width, height]
    np.testing.assert_array_equal(
        grid_boxes([pixels, whole_image], size, grid), [[x1, y1, x2, y2], [0, 0, columns, rows]]
    )


def interval(size: int) -> st.SearchStrategy[tuple[float, float]]:
    """Two numbers in order, with some of 0…size between them."""
    edge = st.floats(-1e4, 1e4)
    return st.tuples(edge, edge).map(sorted).filter(lambda ends: ends[0] + 0.1 < ends[1] > 0 and ends[0] < size)


@given(st.lists(st.tuples(interval(SIZE[1]), interval(SIZE[0])), max_size=20))
def test_boxes_are_those_of_the_released_code(intervals: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    (height, width), (rows, columns) = SIZE, GRID
    boxes = [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in intervals]
    # FG-CLIP and FG-CLIP 2: Python's doubles, then a float32 tensor.
    doubles = [
        [x1 / width * columns, y1 / height * rows, x2 / width * columns, y2 / height * rows] for x1, y1, x2, y2 in boxes
    ]
    whole = [0.0, 0.0, width, height]
    np.testing.assert_array_equal(on_grid([*boxes, whole])[:-1], np.array(doubles, np.float32).reshape(-1, 4))
    # FineCLIP: a float32 tensor of shares, multiplied in float32.
    singles = np.array([[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in boxes], np.float32)
    expected = singles.reshape(-1, 4) * np.array([columns, rows, columns, rows], np.float32)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(on_grid([*boxes, whole], shares="float32")[:-1], expected)


def test_float32_shares_are_rounded_before_the_grid() -> None:
    """The same box, of whose two roundings only one keeps the sides at whole patches."""
    (double,) = grid_boxes([[36, 226, 84, 242]], (432, 576), (14, 14))
    (single,) = grid_boxes([[36, 226, 84, 242]], (432, 576), (14, 14), "xyxy", "float32")
    assert single[1] == np.float32(np.float32(226 / 432) * np.float32(14))
    assert double[1] == np.float32(226 / 432 * 14)
    assert double[1] != single[1]


@given(shares=SHARES, box=st.tuples(*[st.floats(0, 1)] * 4))
def test_normalized_boxes_are_multiplied_by_the_grid_alone(shares: BoxShares, box: tuple[float, ...]) -> None:
    x1, x2, y1, y2 = *sorted((box[0], box[2])), *sorted((box[1], box[3]))
    assume(x2 - x1 > 1e-3 and y2 - y1 > 1e-3)
    rounded = np.array([x1, y1, x2, y2]).astype(shares)
    expected = (rounded * np.array([16, 8, 16, 8], shares)).astype(np.float32)
    np.testing.assert_array_equal(on_grid([[x1, y1, x2, y2]], "normalized", shares), [expected])


def test_every_format_says_the_same_box() -> None:
    expected = on_grid([[10, 5, 60, 45]])
    np.testing.assert_array_equal(on_grid([[10, 5, 50, 40]], "xywh"), expected)
    np.testing.assert_array_equal(on_grid([[0.1, 0.1, 0.6, 0.9]], "normalized"), expected)
    assert set(BOX_FORMATS) == {"xyxy", "xywh", "normalized"}


def test_the_corner_of_xywh_is_added_in_double() -> None:
    x, w = 0.1, 30.000000001
    (box,) = grid_boxes([[x, 1, w, 20], [0, 0, 100, 50]], SIZE, (1024, 1024), "xywh")[:1]
    assert box[2] == np.float32((x + w) / 100 * 1024)


@pytest.mark.parametrize("box_format", ["cxcywh", "XYXY", "", None])
def test_another_format_is_refused(model: Model, box_format: Any) -> None:
    with pytest.raises(ArgumentError) as info:
        model.embed_regions(picture(*SIZE), [GOOD], box_format=box_format)
    assert_one_sentence(info.value, repr(box_format), "xyxy, xywh, normalized", code="argument_invalid")


def test_a_model_takes_every_format(model: Model) -> None:
    expected = model.embed_regions(picture(*SIZE), [[10, 5, 60, 45]])
    dense = model.dense(picture(*SIZE))
    np.testing.assert_array_equal(dense.regions([[10, 5, 50, 40]], box_format="xywh"), expected)
    normalized = model.embed_regions(picture(*SIZE), [[0.1, 0.1, 0.6, 0.9]], box_format="normalized")
    np.testing.assert_array_equal(normalized, expected)


# Malformed boxes


@pytest.mark.parametrize(
    ("box", "reason", "code"),
    [
        ([math.nan, 0, 1, 1], "not a finite number", "box_invalid"),
        ([0, 0, 1, math.inf], "not a finite number", "box_invalid"),
        ([0, -math.inf, 1, 1], "not a finite number", "box_invalid"),
        ([None] * 4, "not a finite number", "box_invalid"),
        ([5, 0, 4, 1], "reversed", "box_reversed"),
        ([0, 5, 1, 4], "reversed", "box_reversed"),
        ([5, 0, 5, 1], "empty", "box_empty"),
        ([0, 5, 1, 5], "empty", "box_empty"),
        ([-5, 0, 0, 10], "outside", "box_outside"),
        ([0, -5, 10, 0], "outside", "box_outside"),
        ([100, 0, 110, 10], "outside", "box_outside"),
        ([0, 50, 10, 60], "outside", "box_outside"),
    ],
)
def test_a_bad_box_is_refused_by_its_index(box: list[float], reason: str, code: str) -> None:
    with pytest.raises(BoxError) as info:
        on_grid([GOOD, GOOD, box, GOOD])
    assert_one_sentence(info.value, "box 2 ", reason, code=code)


@pytest.mark.parametrize(
    ("box_format", "box", "parts", "code"),
    [
        ("xyxy", [50, 20, 30, 10], ["reversed", "x1,y1,x2,y2", "--box-format xywh"], "box_reversed"),
        ("xywh", [50, 20, -30, 10], ["(50,20,-30,10)", "reversed", "x,y,width,height in pixels"], "box_reversed"),
        ("xywh", [50, 20, 0, 10], ["empty"], "box_empty"),
        ("xywh", [-50, 20, 50, 10], ["outside", "100×50"], "box_outside"),
        ("xywh", [1e308, 1, 1e308, 1], ["1,000,000 pixels"], "box_invalid"),
        ("normalized", [0.5, 0.5, 0.4, 0.6], ["reversed", "in shares"], "box_reversed"),
        ("normalized", [0.5, 0.5, 0.5, 0.6], ["empty"], "box_empty"),
        ("normalized", [1, 0, 1.5, 1], ["outside", "0 to 1"], "box_outside"),
        ("normalized", [-0.5, 0, 0, 1], ["outside"], "box_outside"),
        ("normalized", [0, math.nan, 1, 1], ["finite", "in shares"], "box_invalid"),
        ("normalized", [10, 5, 60, 45], ["(10,5,60,45)", "in shares", 'box_format="xyxy"'], "box_units"),
        ("normalized", [0, 0, 1, 2.1], ["in shares", "--box-format xyxy"], "box_units"),
        ("normalized", [-1.1, 0, 1, 1], ["in shares"], "box_units"),
    ],
)
def test_a_bad_box_is_refused_in_the_units_of_its_format(
    box_format: BoxFormat, box: list[float], parts: list[str], code: str
) -> None:
    good = [0.1, 0.1, 0.9, 0.9] if box_format == "normalized" else [1, 2, 30, 40]
    with pytest.raises(BoxError) as info:
        on_grid([good, box], box_format)
    assert_one_sentence(info.value, "box 1 ", *parts, code=code)
    assert "xywh" not in str(info.value) or box_format == "xyxy"


def test_a_box_without_samples_in_float32_is_refused(model: Model) -> None:
    """RoIAlign would make zeros of it, and a cosine of nothing."""
    for tiny in ([0, 0, 30, 1e-9], [50, 20, 50 + 1e-9, 30]):
        with pytest.raises(BoxError) as info:
            model.embed_regions(picture(*SIZE), [GOOD, tiny])
        assert_one_sentence(info.value, "box 1 ", "empty in float32", code="box_empty")
    small = model.embed_regions(picture(*SIZE), [GOOD, [50, 20, 50.001, 20.001]])
    np.testing.assert_allclose(np.linalg.norm(small, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("box_format", BOX_FORMATS)
@pytest.mark.parametrize(
    "boxes",
    [
        GOOD,
        [GOOD[:3]],
        [[*GOOD, 1.0]],
        [[GOOD]],
        7,
        None,
        "1,2,30,40",
        [["a", "b", "c", "d"]],
        [GOOD, GOOD[:3]],
        {"x": 1},
        [[0, 0, 10**400, 1]],
    ],
)
def test_what_is_not_rows_of_four_numbers_is_refused(boxes: Any, box_format: BoxFormat) -> None:
    with pytest.raises(BoxError) as info:
        on_grid(boxes, box_format)
    assert_one_sentence(info.value, "box", BOX_FORMATS[box_format], code="box_invalid")


@pytest.mark.parametrize(
    "box", [[-10, -10, 10, 10], [90, 40, 200, 300], [-1000, -1000, 1000, 1000], [0, 0, 100, 50], [99.9, 49.9, 100, 50]]
)
def test_boxes_over_the_border_pass(model: Model, box: list[float]) -> None:
    vectors = model.embed_regions(picture(*SIZE), [GOOD, box])
    assert vectors.shape == (2, model.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("box_format", BOX_FORMATS)
@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), ()])
def test_no_boxes_give_no_vectors(model: Model, boxes: Any, box_format: BoxFormat) -> None:
    vectors = model.embed_regions(picture(*SIZE), boxes, box_format=box_format)
    assert vectors.shape == (0, model.dim)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize(
    "boxes",
    [
        np.array([GOOD], np.float64),
        np.array([GOOD], np.float16),
        [[np.float32(number) for number in GOOD]],
        np.array([GOOD]).astype(int),
        np.asfortranarray(np.array([GOOD, GOOD]))[:1],
        [tuple(GOOD)],
    ],
)
def test_any_numbers_are_taken(boxes: Any) -> None:
    np.testing.assert_array_equal(on_grid(boxes), on_grid([GOOD]))


@given(st.lists(st.integers(0, 99_999), min_size=4, max_size=4, unique=True))
def test_decimals_in_float32_are_the_decimals(thousandths: list[int]) -> None:
    x1, y1, x2, y2 = *sorted(thousandths)[:2], *sorted(thousandths)[2:]
    assume(y1 < 50_000 and x2 - x1 > 1 and y2 - y1 > 1)
    boxes = np.array([[x1, y1, x2, y2], [0, 0, 100_000, 50_000]]) / 1000
    np.testing.assert_array_equal(on_grid(boxes.astype(np.float32)), on_grid(boxes))


def test_a_box_of_float32_numbers_has_the_samples_of_its_decimals() -> None:
    """From 9.7 to 58.2 of 97 pixels are 3 of 6 patches; with the float32 values they would be more than 3."""
    (pixels,) = grid_boxes(np.array([[9.7, 66.6, 58.2, 299.7]], np.float32), (333, 97), (21, 6))
    edges = pixels - np.float32(0.5)
    assert math.ceil(edges[2] - edges[0]) == 3


def test_the_boxes_of_a_caller_stay_as_they_are() -> None:
    boxes = np.array([GOOD])
    on_grid(boxes)
    np.testing.assert_array_equal(boxes, [GOOD])


@pytest.mark.parametrize("far", [1.1e6, 1e30, 2**62])
def test_a_box_that_reaches_too_far_is_refused(far: float) -> None:
    with pytest.raises(BoxError) as info:
        on_grid([[0, 0, far, 10]])
    assert_one_sentence(info.value, "box 0", "1,000,000", code="box_invalid")


def test_the_first_bad_box_of_many_is_named() -> None:
    boxes = np.tile(GOOD, (10_000, 1))
    assert on_grid(boxes).shape == (10_000, 4)
    boxes[[8_000, 9_000], 2] = 0
    with pytest.raises(BoxError, match="box 8000 "):
        on_grid(boxes)


# Other units


@pytest.mark.parametrize(
    ("boxes", "box_format"),
    [
        ([[0.1, 0.2, 0.5, 0.6]], "xyxy"),
        ([[0.1, 0.2, 0.5, 0.6], [0.4, 0.4, 0.9, 1.0]], "xyxy"),
        ([[0, 0, 1, 1]], "xyxy"),
        ([[-0.05, -0.1, 0.4, 1.05]], "xyxy"),
        ([[0.1, 0.2, 0.4, 0.4]], "xywh"),
        ([[0.6, 0.6, 1.0, 1.0]], "xywh"),
    ],
)
def test_pixels_that_are_shares_of_the_image_are_refused(
    model: Model, boxes: list[list[float]], box_format: BoxFormat
) -> None:
    with pytest.raises(BoxError) as info:
        model.embed_regions(picture(*SIZE), boxes, box_format=box_format)
    assert_one_sentence(
        info.value, "box 0 (", "100×50", 'box_format="normalized"', "--box-format normalized", code="box_units"
    )


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        ([[0, 0, 1, 1]], (1, 1)),
        ([[0, 0, 1, 1]], (2, 2)),
        ([[0, 0, 0.5, 1]], (1, 1)),
        ([[0, 0, 1, 1], [20, 20, 60, 45]], (50, 100)),
        ([[0, 0, 2, 2]], (50, 100)),
        ([[40.2, 30.1, 40.9, 31]], (50, 100)),
    ],
)
def test_small_boxes_that_may_be_pixels_pass(boxes: list[list[float]], size: tuple[int, int]) -> None:
    assert np.isfinite(grid_boxes(boxes, size, GRID)).all()


@pytest.mark.parametrize(
    ("boxes", "box_format"),
    [
        ([[2, 3, 9, 7]], "xyxy"),
        ([[0, 0, 16, 8], [3.2, 1.5, 9.9, 7.25]], "xyxy"),
        ([[-1, -0.5, 9, 7]], "xyxy"),
        ([[2, 3, 7, 4]], "xywh"),
    ],
)
def test_pixels_that_may_count_patches_are_warned_of(boxes: list[list[float]], box_format: BoxFormat) -> None:
    with pytest.warns(fgclip_rt.BoxUnitsWarning) as caught:
        on_grid(boxes, box_format)
    assert_one_sentence(caught[0].message, "first 16×8 pixels", "100×50", "give pixels")


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        ([[2, 3, 9, 7], [2, 3, 30, 7]], (50, 100)),
        ([[2, 3, 9, 9]], (50, 100)),
        ([[-2, 3, 9, 7]], (50, 100)),
        ([[20, 20, 30, 27]], (50, 100)),
        # An image whose patches have less than four pixels a side may well be asked for its corner.
        ([[2, 3, 9, 7]], (31, 100)),
        ([[2, 3, 9, 7]], (50, 63)),
    ],
)
def test_pixels_elsewhere_are_not_warned_of(boxes: list[list[float]], size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid_boxes(boxes, size, GRID)


def test_shares_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_grid([[0, 0, 1, 1], [0.1, 0.1, 0.2, 0.2]], "normalized")


def test_a_warning_names_the_line_of_the_caller(model: Model) -> None:
    dense = model.dense(picture(*SIZE))
    with pytest.warns(fgclip_rt.BoxUnitsWarning) as caught:
        dense.regions([[2, 3, 9, 7]])
    assert caught[0].filename == __file__
