"""Pictures of heat maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from fgclip_rt.arrays import ByteArray, FloatArray
from fgclip_rt.heatmap import Picture, Scale, choose_scales, draw
from fgclip_rt.heatmap.drawing import OVERLAY_STRENGTH
from helpers import picture as noise


def make_maps(count: int, grid: tuple[int, int], seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).uniform(-0.2, 0.4, (count, *grid)).astype(np.float32)


def make_photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(height, width))


def crop(picture: Picture, box: tuple[int, int, int, int]) -> ByteArray:
    return np.asarray(picture.image.crop(box))


def of_patches(values: ByteArray, size: tuple[int, int]) -> ByteArray:
    """Each pixel's patch, [height, width, ...]: the one that its centre lies in."""
    rows, columns = (
        (2 * np.arange(length) + 1) * count // (2 * length)
        for length, count in zip(size[::-1], values.shape, strict=False)
    )
    return values[rows[:, None], columns[None]]


def on_no_edge(length: int, count: int) -> ByteArray:
    """Indices of pixels whose centre lies on no edge between two of ``count`` patches."""
    indices = np.arange(length)
    return indices[(2 * indices + 1) * count % (2 * length) != 0]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that are drawn."""
    found: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, words: str, *arguments: Any, **options: Any) -> None:
        found.append(words)
        original(self, at, words, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    st.tuples(st.integers(5, 300), st.integers(5, 300)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 4),
    st.sampled_from(["own", "shared", Scale(0.0, 0.1)]),
)
def test_a_pixel_of_a_tile_has_the_colour_of_its_patch(
    photo: tuple[int, int], grid: tuple[int, int], count: int, choice: Any
) -> None:
    maps = make_maps(count, grid)
    scales = choose_scales(maps, choice)
    picture = draw(make_photo(*photo), maps, ["a"] * count, scales)
    assert len(picture.tiles) == count + 1
    for box, values, scale in zip(picture.tiles[1:], maps, scales, strict=True):
        tile = crop(picture, box)
        height, width, _ = tile.shape
        expected = of_patches(scale.colours(values), (width, height))
        inside = np.ix_(on_no_edge(height, grid[0]), on_no_edge(width, grid[1]))
        assert (tile[inside] == expected[inside]).all()


def test_the_first_tile_is_the_photo() -> None:
    photo = make_photo(840, 630).resize((210, 157), Image.Resampling.BOX)
    picture = draw(photo, make_maps(1, (3, 4)), ["a"], [Scale(0, 1)])
    box = picture.tiles[0]
    size = box[2] - box[0], box[3] - box[1]
    assert (crop(picture, box) == np.asarray(photo.resize(size, Image.Resampling.LANCZOS))).all()


def test_a_bar_runs_through_the_colours_of_its_scale() -> None:
    maps = make_maps(2, (3, 4))
    scales = choose_scales(maps, "own")
    picture = draw(make_photo(40, 30), maps, ["a", "b"], scales)
    assert len(picture.bars) == 2
    for bar, tile, scale in zip(picture.bars, picture.tiles[1:], scales, strict=True):
        colours = crop(picture, bar)
        expected = scale.colours(np.linspace(scale.low, scale.high, bar[2] - bar[0], dtype=np.float32))
        assert (colours == expected[None]).all()
        assert len(colours) >= 10
        # Each bar stands below its own map.
        assert (bar[0], bar[1] > tile[3], bar[1] < tile[3] + 30) == (tile[0], True, True)


@pytest.mark.parametrize(
    ("choice", "count", "bars"), [("shared", 3, 1), ("own", 3, 3), (Scale(0.0, 1.0), 3, 1), ("shared", 1, 1)]
)
def test_maps_with_one_scale_share_a_bar(choice: Any, count: int, bars: int) -> None:
    maps = make_maps(count, (3, 4))
    picture = draw(make_photo(40, 30), maps, ["a"] * count, choose_scales(maps, choice))
    assert len(picture.bars) == bars
    assert all(bar[3] < picture.image.height for bar in picture.bars)


def test_titles_and_bars_say_the_cosines(said: list[str]) -> None:
    maps = np.array([[[-0.12, 0.34]], [[-0.05, -0.0004]]], np.float32)
    draw(make_photo(400, 300), maps, ["a cat", "window"], choose_scales(maps, "own"))
    assert said == [
        *("400 x 300 pixels", "image"),
        *("cosine -0.120 to 0.340", "a cat", "-0.120", "0.340", "0.110"),
        *("cosine -0.0500 to -0.0004", "window", "-0.0500", "-0.0004", "-0.0252"),
    ]


def test_a_shared_bar_says_the_ends_of_all_maps(said: list[str]) -> None:
    maps = np.array([[[-0.12, 0.34]], [[-0.5, 0.1]]], np.float32)
    draw(make_photo(400, 300), maps, ["a", "b"], choose_scales(maps, "shared"))
    assert said[-3:] == ["-0.500", "0.340", "-0.080"]


@pytest.mark.parametrize(
    ("scale", "low", "high"),
    [
        (Scale(0.0, 0.3), "0.000 or less", "0.300 or more"),
        (Scale(-0.2, 0.3), "-0.200", "0.300 or more"),
        (Scale(0.0, 0.9), "0.000 or less", "0.900"),
        (Scale(float(np.float32(-0.12)), float(np.float32(0.34))), "-0.120", "0.340"),
    ],
)
def test_a_bar_says_whether_cosines_lie_beyond_it(scale: Scale, low: str, high: str, said: list[str]) -> None:
    draw(make_photo(400, 300), np.array([[[-0.12, 0.34]]], np.float32), ["a"], [scale])
    assert said[4:6] == [low, high]


def test_the_numbers_of_a_narrow_bar_do_not_meet(said: list[str]) -> None:
    picture = draw(make_photo(20, 400), make_maps(1, (9, 1)), ["a"], [Scale(-0.051, -0.050)])
    font = ImageFont.load_default(13)
    assert said[4:] == ["-0.05100 or less", "-0.05000 or more"]
    assert sum(map(font.getlength, said[4:])) + 5 < picture.bars[0][2] - picture.bars[0][0]


def test_a_map_of_one_cosine_is_drawn(said: list[str]) -> None:
    maps = np.full((1, 2, 2), -0.00001, np.float32)
    draw(make_photo(40, 30), maps, ["a"], choose_scales(maps, "own"))
    assert said[2:5:2] == ["cosine 0.000 to 0.000", "0.000"]


def test_an_overlay_blends_colours_with_the_photo_in_grey() -> None:
    photo = make_photo(600, 450)
    maps = make_maps(1, (3, 4))
    scale = Scale(-0.2, 0.4)
    picture = draw(photo, maps, ["a"], [scale], overlay=True)
    tile = crop(picture, picture.tiles[1]).astype(float)
    assert tile.shape == (450, 600, 3)
    grey = np.asarray(photo.convert("L"))[..., None].astype(float)
    colours = of_patches(scale.colours(maps[0]), photo.size).astype(float)
    np.testing.assert_allclose(tile, grey + (colours - grey) * OVERLAY_STRENGTH, atol=1)
    # The photo itself stands beside it, in its own colours.
    assert (crop(picture, picture.tiles[0]) == np.asarray(photo)).all()


LONG = "a very long text that goes on and on, " * 9


def test_long_and_tall_titles_stay_in_their_cells() -> None:
    maps = make_maps(3, (4, 3))
    photo, scales = make_photo(30, 40), [Scale(0, 1)] * 3
    texts = [LONG, "Z" + "\u0335\u0301\u0316" * 100, "W" * 300]
    picture, plain = draw(photo, maps, texts, scales), draw(photo, maps, ["", "", ""], scales)
    for box, other in zip((*picture.tiles, *picture.bars), (*plain.tiles, *plain.bars), strict=True):
        assert (crop(picture, box) == crop(plain, other)).all()
    # Cells have a gap between them, in which there is nothing.
    for left in sorted({tile[0] for tile in picture.tiles}):
        gap = np.asarray(picture.image.crop((left - 8, 0, left, picture.image.height)))
        assert (gap == 255).all()


def test_a_row_is_as_high_as_its_longest_title() -> None:
    maps = make_maps(1, (3, 4))
    heights = [draw(make_photo(40, 30), maps, [text], [Scale(0, 1)]).image.height for text in ("a", LONG, LONG * 9)]
    assert heights[0] < heights[1] == heights[2]


def test_a_text_that_no_font_can_write_is_numbered(said: list[str]) -> None:
    maps = make_maps(3, (3, 4))
    texts = ["a cat", "电\u8111", "a dog"]
    picture = draw(make_photo(40, 30), maps, texts, choose_scales(maps, "shared"))
    assert picture.unlabelled == ("电\u8111",)
    assert picture.lacking == {"电", "\u8111"}
    assert [word for word in said if word in (*texts, "text 2")] == ["a cat", "text 2", "a dog"]


def test_an_empty_text_is_numbered_and_no_font_is_missing(said: list[str]) -> None:
    maps = make_maps(2, (3, 4))
    picture = draw(make_photo(40, 30), maps, ["a", " "], choose_scales(maps, "shared"))
    assert picture.unlabelled == ()
    assert "text 2" in said


def test_a_text_that_a_font_can_write_is_written(make_font: Callable[..., Path], said: list[str]) -> None:
    make_font("a.ttf", "电脑")
    maps = make_maps(1, (3, 4))
    picture = draw(make_photo(40, 30), maps, ["my 电脑"], choose_scales(maps, "shared"))
    assert (picture.unlabelled, picture.lacking) == ((), frozenset())
    assert said[3:5] == ["my ", "电脑"]


def test_a_texts_title_follows_a_named_font(make_font: Callable[..., Path], said: list[str]) -> None:
    named = make_font("a.txt", "电脑")
    maps = make_maps(1, (3, 4))
    assert draw(make_photo(40, 30), maps, ["电脑"], choose_scales(maps, "own"), font=named).unlabelled == ()
    assert "电脑" in said
