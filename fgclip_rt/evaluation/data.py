"""Data of benchmarks: images with their captions, and boxes with their candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from ..boxes import BoxFormat

Box: TypeAlias = tuple[float, float, float, float]
Protocol: TypeAlias = Literal["official", "strict"]


class Captions(Struct, frozen=True):
    """Images and their captions, each to be found by the other.

    Attributes:
        images: files, each once.
        texts: captions.
        owners: for each caption, the index of its image.
    """

    images: tuple[Path, ...]
    texts: tuple[str, ...]
    owners: tuple[int, ...]

    def first(self, limit: int | None) -> Captions:
        """The first ``limit`` images and their captions; None takes all."""
        if limit is None:
            return self
        kept = [index for index, owner in enumerate(self.owners) if owner < limit]
        return Captions(self.images[:limit], tuple(self.texts[i] for i in kept), tuple(self.owners[i] for i in kept))


class Region(Struct, frozen=True):
    """A box of an image and the texts to choose from.

    Attributes:
        image: file.
        box: four numbers, as the data's format says.
        candidates: indices of texts; the first is the true one.
    """

    image: Path
    box: Box
    candidates: tuple[int, ...]


class Regions(Struct, frozen=True):
    """Boxes, each to be named by one of its candidates.

    Attributes:
        texts: all candidates of all boxes.
        regions: the boxes.
        box_format: meaning of a box's numbers.
    """

    texts: tuple[str, ...]
    regions: tuple[Region, ...]
    box_format: BoxFormat

    def first(self, limit: int | None) -> Regions:
        """The first ``limit`` boxes; None takes all."""
        return Regions(self.texts, self.regions[:limit], self.box_format)
