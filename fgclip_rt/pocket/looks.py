"""Looks of the things in scenes, and their division into splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, TypeAlias, get_args

Colour: TypeAlias = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
Shape: TypeAlias = Literal["circle", "square", "triangle", "diamond", "star", "cross", "heart", "moon"]
Texture: TypeAlias = Literal["plain", "striped", "dotted", "checkered"]
Size: TypeAlias = Literal["small", "large"]
Split: TypeAlias = Literal["train", "validation", "test"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
SIZES: tuple[Size, ...] = get_args(Size)


@dataclass(frozen=True)
class Look:
    """Look of one thing."""

    size: Size
    texture: Texture
    colour: Colour
    shape: Shape

    @property
    def kind(self) -> tuple[Colour, Shape, Texture]:
        """Everything but the size."""
        return self.colour, self.shape, self.texture

    def with_(self, attribute: str, value: str) -> Look:
        """This look with another value of one attribute."""
        values: dict[str, Any] = {attribute: value}
        return replace(self, **values)


#: The values of each attribute.
ATTRIBUTES: dict[str, tuple[str, ...]] = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}


#: Every look. The order is by digest: arbitrary, and the same on every machine and with every version of Python.
ALL_LOOKS: tuple[Look, ...] = tuple(
    sorted(
        (Look(*values) for values in product(SIZES, TEXTURES, COLOURS, SHAPES)),
        key=lambda look: hashlib.sha256(repr(look).encode()).digest(),
    )
)
_HELD_OUT = len(ALL_LOOKS) // 10

#: The looks that the scenes of each split show. One in ten is for testing and one in ten for validation. Training sees
#: every pair of attribute values, but never all four attributes of a held-out look together.
LOOKS: dict[Split, tuple[Look, ...]] = {
    "test": ALL_LOOKS[:_HELD_OUT],
    "validation": ALL_LOOKS[_HELD_OUT : 2 * _HELD_OUT],
    "train": ALL_LOOKS[2 * _HELD_OUT :],
}
