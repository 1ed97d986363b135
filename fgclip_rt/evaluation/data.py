"""Data of benchmarks: images with their captions or classes, and boxes with their candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

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


class Segment(Struct, frozen=True):
    """Pixels of a picture of segments.

    Attributes:
        file: PNG; the segment of a pixel is red + 256 · green + 65,536 · blue.
        id: number of the segment.
    """

    file: Path
    id: int


class Region(Struct, frozen=True):
    """A box of an image and the texts to choose from.

    Attributes:
        image: file.
        box: four numbers, as the data's format says.
        candidates: indices of texts; the first is the true one.
        crowd: whether the box holds a group of things instead of one.
        segment: the pixels of the box that are meant, if the data tell.
    """

    image: Path
    box: Box
    candidates: tuple[int, ...]
    crowd: bool = False
    segment: Segment | None = None


class Regions(Struct, frozen=True):
    """Boxes, each to be named by one of its candidates.

    Attributes:
        texts: all candidates of all boxes.
        regions: the boxes.
        box_format: meaning of a box's numbers.
        classes: whether every box chooses among all texts, which are names of classes.
        kinds: of each text ``thing`` or ``stuff``; None if the data do not part them.
        absent: number of boxes that the data list and whose images are not there.
    """

    texts: tuple[str, ...]
    regions: tuple[Region, ...]
    box_format: BoxFormat
    classes: bool = False
    kinds: tuple[str, ...] | None = None
    absent: int = 0

    def first(self, limit: int | None) -> Regions:
        """The first ``limit`` boxes, and the texts that they choose from; None takes all."""
        if limit is None or self.classes:
            return replace(self, regions=self.regions[:limit])
        kept: dict[int, int] = {}
        regions = tuple(
            replace(region, candidates=tuple(kept.setdefault(text, len(kept)) for text in region.candidates))
            for region in self.regions[:limit]
        )
        return replace(self, texts=tuple(self.texts[text] for text in kept), regions=regions)


class LabelledImages(Struct, frozen=True):
    """Images, each of one class.

    Attributes:
        texts: names of the classes.
        images: files.
        labels: for each image, the index of its class.
    """

    texts: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[int, ...]

    def first(self, limit: int | None) -> LabelledImages:
        """The first ``limit`` images; None takes all."""
        return replace(self, images=self.images[:limit], labels=self.labels[:limit])


Data: TypeAlias = Captions | Regions | LabelledImages
