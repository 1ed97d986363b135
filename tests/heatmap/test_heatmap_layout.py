"""Sizes of heat maps, before anything is drawn."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.errors import ArgumentError
from fgclip_rt.heatmap import plan
from fgclip_rt.heatmap.layout import LONGEST_SIDE, MOST_PIXELS
from helpers import assert_one_sentence

SIDES = st.integers(1, 20_000)
GRIDS = st.tuples(st.integers(1, 400), st.integers(1, 400)).filter(lambda grid: math.prod(grid) <= 16_384)


def is_true(tile: tuple[int, int], photo: tuple[int, int]) -> bool:
    """Whether one factor brings both sides of a photo to within a pixel of its tile's."""
    least = max((side - 0.5) / own if side > 1 else 0 for side, own in zip(tile, photo, strict=True))
    most = min((side + 0.5) / own for side, own in zip(tile, photo, strict=True))
    return least <= most * (1 + 1e-9)


@given(st.tuples(SIDES, SIDES), GRIDS, st.integers(1, 40), st.booleans())
def test_tiles_keep_the_aspect_of_the_photo_and_the_picture_its_limits(
    photo: tuple[int, int], grid: tuple[int, int], maps: int, overlay: bool
) -> None:
    try:
        layout = plan(photo, grid, maps, overlay=overlay)
    except ArgumentError:
        # Only a grid of another shape than its photo can fail: its tile would have to be huge to show each patch.
        assert max(grid[1] / photo[0], grid[0] / photo[1]) * max(photo) > 500
        return
    assert is_true(layout.tile, photo)
    assert layout.tile[0] >= grid[1]
    assert layout.tile[1] >= grid[0]
    assert layout.columns * layout.rows >= maps + 1
    assert max(layout.width, layout.most_height) <= LONGEST_SIDE
    assert layout.width * layout.most_height <= MOST_PIXELS


@pytest.mark.parametrize("photo", [(451, 300), (300, 451), (5, 3), (4000, 3000)])
def test_usual_tiles_have_a_usual_size(photo: tuple[int, int]) -> None:
    width, height = plan(photo, (10, 10), 3).tile
    assert width * height == pytest.approx(420 * 315, rel=0.01)


@pytest.mark.parametrize("maps", [1, 30])
def test_tiles_grow_with_the_grid_so_that_patches_are_seen(maps: int) -> None:
    width, height = plan((4000, 3000), (110, 148), maps).tile
    assert width >= 4 * 148
    assert height >= 4 * 110


def test_panoramas_stand_below_each_other_and_towers_beside_each_other() -> None:
    wide, tall = plan((8000, 400), (7, 143), 3), plan((400, 8000), (143, 7), 3)
    assert (wide.tile, wide.columns) == ((1600, 80), 1)
    assert (tall.tile, tall.columns) == ((80, 1600), 4)
    assert tall.cell_width > tall.tile[0]


def test_an_overlay_has_the_resolution_of_its_photo_if_the_picture_fits() -> None:
    assert plan((2000, 1500), (28, 37), 3, overlay=True).tile == (2000, 1500)
    width, height = plan((4000, 3000), (28, 37), 7, overlay=True).tile
    assert 1000 < width < 4000
    assert is_true((width, height), (4000, 3000))
    small = plan((100, 75), (12, 16), 1, overlay=True).tile
    assert small == plan((100, 75), (12, 16), 1).tile


def test_texts_grow_with_tiles() -> None:
    small, large = plan((400, 300), (12, 16), 1), plan((4000, 3000), (12, 16), 1, overlay=True)
    factor = large.tile[0] / small.tile[0]
    assert large.title_font == pytest.approx(small.title_font * factor, rel=0.05)


@pytest.mark.parametrize("maps", [3_000, 10**6])
def test_a_picture_that_would_be_too_large_is_refused_at_once(maps: int) -> None:
    start = time.perf_counter()
    with pytest.raises(ArgumentError) as error:
        plan((400, 300), (12, 16), maps)
    assert time.perf_counter() - start < 2
    assert_one_sentence(error.value, f"{maps} maps", "12×16 patches", "24,000,000", "fewer texts")
