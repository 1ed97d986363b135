"""What the things in a scene may look like, and which looks belong to which split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

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
        """What the splits divide: everything but the size."""
        return self.colour, self.shape, self.texture


def split_of(look: Look) -> Split:
    """The split whose scenes may show a look.

    One kind in ten is for validation and one in ten for testing, spread so that training sees every pair of a colour
    and a shape, of a colour and a texture, and of a shape and a texture, but never all three of a held-out kind.
    """
    residue = (COLOURS.index(look.colour) + 3 * SHAPES.index(look.shape) + 7 * TEXTURES.index(look.texture)) % 10
    if residue == 0:
        return "test"
    return "validation" if residue == 5 else "train"


#: Every look, by split.
LOOKS: dict[Split, tuple[Look, ...]] = {
    split: tuple(
        look
        for look in (
            Look(size, texture, colour, shape)
            for size in SIZES
            for texture in TEXTURES
            for colour in COLOURS
            for shape in SHAPES
        )
        if split_of(look) == split
    )
    for split in get_args(Split)
}
