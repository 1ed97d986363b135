"""What the things in a scene may look like, and which looks belong to which split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
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
    """How one thing looks."""

    size: Size
    texture: Texture
    colour: Colour
    shape: Shape

    @property
    def kind(self) -> tuple[Colour, Shape, Texture]:
        """Everything but the size."""
        return self.colour, self.shape, self.texture

    def with_(self, attribute: str, value: str) -> Look:
        """The same with another value of one attribute."""
        values: dict[str, Any] = {attribute: value}
        return replace(self, **values)


#: The values of each attribute.
ATTRIBUTES: dict[str, tuple[str, ...]] = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}


def _split() -> dict[Split, tuple[Look, ...]]:
    looks = [
        Look(size, texture, colour, shape)
        for size in SIZES
        for texture in TEXTURES
        for colour in COLOURS
        for shape in SHAPES
    ]
    # By digest: the same on every machine and with every version of Python.
    looks.sort(key=lambda look: hashlib.sha256(repr(look).encode()).digest())
    held_out = len(looks) // 10
    return {
        "test": tuple(looks[:held_out]),
        "validation": tuple(looks[held_out : 2 * held_out]),
        "train": tuple(looks[2 * held_out :]),
    }


#: The looks whose things the scenes of a split show. One in ten is for validation and one in ten for testing: training
#: sees every pair of attributes, but never all four of a held-out look together.
LOOKS: dict[Split, tuple[Look, ...]] = _split()
