"""Colours of cosines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.heatmap import Scale, choose_scales
from fgclip_rt.heatmap.scales import COLOURS

ENDS = st.tuples(st.floats(-1, 1), st.floats(-1, 1)).filter(lambda ends: ends[0] + 1e-3 < ends[1]).map(sorted)


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


@given(ENDS)
def test_colours_run_from_the_first_to_the_last(ends: list[float]) -> None:
    scale = Scale(*ends)
    at = np.linspace(scale.low, scale.high, len(COLOURS), dtype=np.float32)
    np.testing.assert_allclose(scale.colours(at), [rgb(colour) for colour in COLOURS], atol=1)
    beyond = np.array([scale.low - 1, scale.high + 1], np.float32)
    assert scale.colours(beyond).tolist() == [rgb(COLOURS[0]), rgb(COLOURS[-1])]


def test_colours_between_two_are_interpolated() -> None:
    middle = Scale(-1, 1).colours(np.array([-0.75], np.float32))[0]
    expected = (np.array(rgb(COLOURS[0])) + rgb(COLOURS[1])) / 2
    np.testing.assert_allclose(middle, expected, atol=0.5)


def test_a_map_of_one_cosine_has_the_first_colour() -> None:
    colours = Scale(0.2, 0.2).colours(np.full((2, 3), 0.2, np.float32))
    assert colours.shape == (2, 3, 3)
    assert (colours == rgb(COLOURS[0])).all()


def test_a_shared_scale_holds_all_maps_and_an_own_one_each() -> None:
    maps = np.array([[[-0.5, 0.25]], [[0.0, 0.125]]], np.float32)
    assert choose_scales(maps, "own") == [Scale(-0.5, 0.25), Scale(0.0, 0.125)]
    assert choose_scales(maps, "shared") == [Scale(-0.5, 0.25)] * 2
    assert choose_scales(maps, Scale(0, 1)) == [Scale(0, 1)] * 2


@given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=9))
def test_a_shared_scale_gives_equal_colours_to_equal_cosines(values: list[float]) -> None:
    first = np.array([[values]], np.float32)
    maps = np.concatenate([first, first[..., ::-1] / 2, first[..., ::-1]])
    shared = [scale.colours(cosines) for scale, cosines in zip(choose_scales(maps, "shared"), maps, strict=True)]
    assert (shared[0] == shared[2][:, ::-1]).all()


def test_an_absent_text_shines_in_its_own_scale_and_stays_dark_in_a_shared_one() -> None:
    maps = np.array([[[-0.1, 0.3]], [[-0.1, -0.05]]], np.float32)
    own, shared = (choose_scales(maps, choice)[1].colours(maps[1]) for choice in ("own", "shared"))
    assert own[0, 1].tolist() == rgb(COLOURS[-1])
    assert shared[0, 1].tolist() == pytest.approx(rgb(COLOURS[0]), abs=45)
