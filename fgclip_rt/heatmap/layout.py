"""Layout of a heat map's picture: how large everything is, before anything is computed or drawn."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..errors import ArgumentError

#: Pixels of the whole picture: 24 megapixels, as many as a camera's photo has.
MOST_PIXELS = 24_000_000
#: Pixels of its longer side: as many as WebP, the narrowest of the formats, can hold.
LONGEST_SIDE = 16_383
#: Lines that a title may take.
TITLE_LINES = 3

#: Pixels of a tile, and of its longer side, that show a photo well beside others.
_TILE_AREA, _TILE_SIDE = 420 * 315, 1600
#: Pixels of a patch's side, so that its colour is seen.
_PATCH_SIDE = 4
#: Pixels of a tile's longer side below which no photo is recognised.
_LEAST_SIDE = 64
#: Width / height of the whole picture, as of a screen.
_ASPECT = 1.6
_SHRINK = 0.95


class Layout(NamedTuple):
    """Sizes in pixels of a picture with a cell for the photo and one for each map.

    Attributes:
        tile: (width, height) of the photo and of each map; the photo's aspect ratio, to the pixel.
        columns: cells in a row.
        cells: number of cells.
        unit: size of texts, gaps and bars, as a multiple of the size that suits a usual tile.
    """

    tile: tuple[int, int]
    columns: int
    cells: int
    unit: float

    @property
    def title_font(self) -> int:
        """Size of the font of titles."""
        return round(17 * self.unit)

    @property
    def value_font(self) -> int:
        """Size of the font of numbers."""
        return round(13 * self.unit)

    @property
    def title_line(self) -> int:
        """Height of a line of a title."""
        return round(25 * self.unit)

    @property
    def value_line(self) -> int:
        """Height of a line of numbers."""
        return round(20 * self.unit)

    @property
    def gap(self) -> int:
        """Space around cells."""
        return round(16 * self.unit)

    @property
    def bar(self) -> tuple[int, int]:
        """(width, height) of a colour bar."""
        return min(self.cell_width, round(560 * self.unit)), round(12 * self.unit)

    @property
    def bar_space(self) -> int:
        """Height of a colour bar with its numbers, and the space above it."""
        return round(6 * self.unit) + self.bar[1] + self.value_line

    @property
    def cell_width(self) -> int:
        """Width of a cell, in which its numbers have room however narrow the tile is."""
        return max(self.tile[0], round(220 * self.unit))

    @property
    def rows(self) -> int:
        """Rows of cells."""
        return -(-self.cells // self.columns)

    @property
    def width(self) -> int:
        """Width of the picture."""
        return self.gap + self.columns * (self.cell_width + self.gap)

    @property
    def most_height(self) -> int:
        """Height of the picture if every title takes all its lines and every map has a bar."""
        return self.gap + self.rows * self._cell_height + self.bar_space

    @property
    def fits(self) -> bool:
        """Whether the picture keeps to :data:`MOST_PIXELS` and :data:`LONGEST_SIDE`, however long its titles are."""
        sides = self.width, self.most_height
        return max(sides) <= LONGEST_SIDE and math.prod(sides) <= MOST_PIXELS

    @property
    def _cell_height(self) -> int:
        return TITLE_LINES * self.title_line + self.value_line + self.tile[1] + self.bar_space + self.gap


def plan(photo: tuple[int, int], grid: tuple[int, int], maps: int, *, overlay: bool = False) -> Layout:
    """Lay out a picture, so that one that would be too large is refused before its maps are computed.

    A tile is of a usual size, and larger if patches would be too small to see; with ``overlay`` it is at least as large
    as the photo. All tiles become smaller until the whole picture fits.

    Args:
        photo: (width, height) in pixels.
        grid: (rows, columns) of patches.
        maps: number of maps.
        overlay: whether the maps lie over the photo.

    Raises:
        ArgumentError: the picture would be too large with one pixel a patch.
    """
    width, height = photo
    rows, columns = grid
    patch = max(columns / width, rows / height)
    least = max(patch, _LEAST_SIDE / max(photo))
    usual = min(math.sqrt(_TILE_AREA / (width * height)), _TILE_SIDE / max(photo))
    scale = max(usual, _PATCH_SIDE * patch, least, 1.0 if overlay else 0.0)
    while not (layout := _lay_out(photo, scale, maps + 1)).fits:
        if scale <= least:
            raise ArgumentError(
                f"a picture of {maps} maps of {rows}×{columns} patches over {width}×{height} pixels would have more "
                f"than {MOST_PIXELS:,} pixels, or more than {LONGEST_SIDE:,} on a side; give fewer texts, fewer "
                "patches, or a part of the image."
            )
        scale = max(scale * _SHRINK, least)
    return layout


def _lay_out(photo: tuple[int, int], scale: float, cells: int) -> Layout:
    """The layout with tiles of ``scale`` times the photo's size, in the columns that suit a screen best."""
    width, height = (max(1, round(side * scale)) for side in photo)
    unit = max(1.0, math.sqrt(width * height / _TILE_AREA))
    column = Layout((width, height), 1, cells, unit)
    ideal = min(cells, math.sqrt(cells * _ASPECT * column._cell_height / (column.cell_width + column.gap)))
    columns = range(max(1, int(ideal / 2)), min(cells, int(ideal * 2) + 1) + 1)
    return min((column._replace(columns=number) for number in columns), key=_awkwardness)


def _awkwardness(layout: Layout) -> float:
    """How far the picture is from the shape of a screen, and how much of its grid is empty."""
    empty = 1 - layout.cells / (layout.rows * layout.columns)
    return abs(math.log(layout.width / layout.most_height / _ASPECT)) + 1.5 * empty
