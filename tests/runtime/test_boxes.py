"""Boxes are checked before they reach a graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.boxes import check_boxes
from fgclip_rt.errors import BoxError
from fgclip_rt.model import Model
from helpers import assert_one_sentence, picture

GOOD, SIZE = [1.0, 2.0, 30.0, 40.0], (50, 100)


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
        check_boxes([GOOD, GOOD, box, GOOD], SIZE)
    assert_one_sentence(info.value, "box 2 ", reason, code=code)


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
def test_what_is_not_rows_of_four_numbers_is_refused(model: Model, boxes: Any) -> None:
    with pytest.raises(BoxError) as info:
        model.embed_regions(picture(*SIZE), boxes)
    assert_one_sentence(info.value, "box", code="box_invalid")


@pytest.mark.parametrize(
    "box", [[-10, -10, 10, 10], [90, 40, 200, 300], [-1000, -1000, 1000, 1000], [0, 0, 100, 50], [99.9, 49.9, 100, 50]]
)
def test_boxes_over_the_border_pass(model: Model, box: list[float]) -> None:
    vectors = model.embed_regions(picture(*SIZE), [GOOD, box])
    assert vectors.shape == (2, model.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), ()])
def test_no_boxes_give_no_vectors(model: Model, boxes: Any) -> None:
    vectors = model.embed_regions(picture(*SIZE), boxes)
    assert vectors.shape == (0, model.dim)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("boxes", [np.array([GOOD], np.float64), np.array([GOOD]).astype(int), [tuple(GOOD)]])
def test_any_numbers_are_taken(boxes: Any) -> None:
    checked = check_boxes(boxes, SIZE)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked, np.array([GOOD], np.float32))


def interval(size: int) -> st.SearchStrategy[tuple[float, float]]:
    """Two float32 numbers in order, with some of 0…size between them."""
    edge = st.floats(-1e4, 1e4, width=32)
    return st.tuples(edge, edge).map(sorted).filter(lambda ends: ends[0] < ends[1] and ends[1] > 0 and ends[0] < size)


@given(st.lists(st.tuples(interval(SIZE[1]), interval(SIZE[0])), max_size=20))
def test_valid_boxes_pass_unchanged(intervals: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    boxes = [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in intervals]
    np.testing.assert_array_equal(check_boxes(boxes, SIZE), np.array(boxes, np.float32).reshape(-1, 4))


def test_a_box_that_reaches_too_far_is_refused(model: Model) -> None:
    for far in (1.1e6, 1e30):
        with pytest.raises(BoxError) as info:
            model.embed_regions(picture(*SIZE), [[0, 0, far, 10]])
        assert_one_sentence(info.value, "box 0", "1,000,000", code="box_invalid")
