"""Scales: which colour a cosine has in a map."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from ..arrays import ByteArray, FloatArray

#: Five colours of viridis (matplotlib, CC0), which the FG-CLIP 2 README uses; those between them are interpolated.
COLOURS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")

_STOPS = np.linspace(0, 1, len(COLOURS))
_ANCHORS = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])


class Scale(NamedTuple):
    """The cosines that have the first and the last colour; a cosine beyond them has the colour of the nearer end."""

    low: float
    high: float

    def colours(self, values: FloatArray) -> ByteArray:
        """Colours of cosines [...], uint8 [..., 3]. If the ends are equal, all cosines have the first colour."""
        span = self.high - self.low
        position = (values.astype(np.float64) - self.low) / (span if span > 0 else np.inf)
        channels = [np.interp(position, _STOPS, _ANCHORS[:, channel]) for channel in range(3)]
        return np.stack(channels, axis=-1).round().astype(np.uint8)


def choose_scales(maps: FloatArray, choice: Literal["own", "shared"] | Scale) -> list[Scale]:
    """The scale of each map.

    Args:
        maps: float32 [m, h, w].
        choice: ``own`` reaches from the least to the largest cosine of each map, and ``shared`` from the least to the
            largest of all maps, so that equal colours are equal cosines. A scale is taken as it is.
    """
    if isinstance(choice, Scale):
        return [choice] * len(maps)
    if choice == "shared":
        return [_range(maps)] * len(maps)
    return [_range(values) for values in maps]


def _range(values: FloatArray) -> Scale:
    return Scale(float(values.min()), float(values.max()))
