"""Images to patches, exactly as the released processors make them.

These rescale and normalise afterwards; here the patches stay bytes and the graph does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from PIL import Image

from .arrays import ByteArray
from .errors import ArgumentError, ImageError
from .manifest import ImageSpec, NaflexSpec, SquareSpec

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

#: Pixels, of four bytes in Pillow. Only strips a few pixels wide and 100,000s tall come near, and a small file may
#: hold one.
_MOST_BETWEEN_PASSES = 2**27


#: Resizes an image (RGB) by a filter to a grid (h, w) of patches of P×P pixels: image, grid, P and filter to uint8
#: [h·w, P·P·3].
Cut: TypeAlias = Callable[[Image.Image, tuple[int, int], int, str], ByteArray]


@dataclass(frozen=True)
class Patches:
    """One prepared image.

    Attributes:
        pixels: uint8 [h·w, P·P·3], patches in row order, each as (row, column, channel).
        grid: (h, w), the number of patch rows and columns.
        image_size: (height, width) of the original image in pixels.
        bucket: the largest number of patches that it was allowed.
        orientation: EXIF orientation that the original image carries and was not turned by, 2 to 8; 1 if there is none.
    """

    pixels: ByteArray
    grid: tuple[int, int]
    image_size: tuple[int, int]
    bucket: int
    orientation: int = 1


def side_by_side(batch: Sequence[Patches]) -> ByteArray:
    """Pixels uint8 [B, N, P·P·3] of prepared images, padded with zeros to the longest of them."""
    length = max(len(patches.pixels) for patches in batch)
    pixels = np.zeros((len(batch), length, batch[0].pixels.shape[1]), np.uint8)
    for row, patches in zip(pixels, batch, strict=True):
        row[: len(patches.pixels)] = patches.pixels
    return pixels


class Preparation(Protocol):
    """Images to patches, by the specification in a manifest."""

    @property
    def spec(self) -> ImageSpec:
        """The specification."""

    def __call__(self, image: Image.Image, max_num_patches: int | None = None) -> Patches:
        """Prepare ``image`` (RGB), with a number of patches that is asked for or the model's own choice.

        Raises:
            ArgumentError: the model has no such number of patches.
            ImageError: the image is too tall to resize.
        """

    def bucket(self, width: int, height: int) -> int:
        """The number of patches that the model chooses for an image of ``width`` × ``height`` pixels."""

    def grid(self, width: int, height: int, max_num_patches: int | None = None) -> tuple[int, tuple[int, int]]:
        """Bucket, and rows and columns of patches, that an image of ``width`` × ``height`` pixels is prepared to.

        Raises:
            ArgumentError: the model has no such number of patches.
        """


def pillow_patches(image: Image.Image, grid: tuple[int, int], size: int, resample: str) -> ByteArray:
    """Patches of an image that Pillow resizes; a :data:`Cut`.

    Raises:
        ImageError: the image is too tall to resize.
    """
    rows, columns = grid
    return _cut(_resize(image, columns * size, rows * size, resample), size)


def preparation(spec: ImageSpec, cut: Cut = pillow_patches) -> Preparation:
    """How images are prepared that a manifest specifies so; ``cut`` does the work on pixels."""
    return SquarePreparation(spec, cut) if isinstance(spec, SquareSpec) else NaflexPreparation(spec, cut)


class SquarePreparation:
    """One size for all images, as CLIP's models have it."""

    def __init__(self, spec: SquareSpec, cut: Cut = pillow_patches) -> None:
        self.spec = spec
        self._cut = cut

    def __call__(self, image: Image.Image, max_num_patches: int | None = None) -> Patches:
        """Resize ``image`` (RGB) to the square and cut it up.

        Raises:
            ArgumentError: ``max_num_patches`` is not the number of its patches.
            ImageError: the image is too tall to resize.
        """
        bucket, grid = self.grid(*image.size, max_num_patches)
        pixels = self._cut(image, grid, self.spec.patch_size, self.spec.resample)
        return Patches(pixels, grid, (image.height, image.width), bucket)

    def bucket(self, width: int, height: int) -> int:  # noqa: ARG002 (it is one for all)
        """The number of patches, which is the same for all images."""
        return self.spec.max_num_patches

    def grid(self, width: int, height: int, max_num_patches: int | None = None) -> tuple[int, tuple[int, int]]:
        """Bucket and grid, which are the same for all images."""
        bucket = self.bucket(width, height)
        if max_num_patches is not None and max_num_patches != bucket:
            size = self.spec.image_size
            raise ArgumentError(
                f"max_num_patches is {max_num_patches!r}, and this model takes images of {size}×{size} pixels, "
                f"{bucket} patches, only; leave it out."
            )
        side = self.spec.image_size // self.spec.patch_size
        return bucket, (side, side)


class NaflexPreparation:
    """A grid that fills a bucket and keeps the aspect ratio.

    The processor is SigLIP 2's (``models/siglip2/image_processing_pil_siglip2.py`` in transformers) with FG-CLIP 2's
    choice of bucket (``determine_max_value`` in its README).
    """

    def __init__(self, spec: NaflexSpec, cut: Cut = pillow_patches) -> None:
        self.spec = spec
        self._cut = cut

    def __call__(self, image: Image.Image, max_num_patches: int | None = None) -> Patches:
        """Resize ``image`` (RGB) to the grid that fills its bucket, or ``max_num_patches``, and cut it up.

        Raises:
            ArgumentError: ``max_num_patches`` is out of range.
            ImageError: the image is too tall to resize.
        """
        bucket, grid = self.grid(*image.size, max_num_patches)
        pixels = self._cut(image, grid, self.spec.patch_size, self.spec.resample)
        return Patches(pixels, grid, (image.height, image.width), bucket)

    def bucket(self, width: int, height: int) -> int:
        """The bucket of an image of ``width`` × ``height`` pixels: the first to hold its whole patches, or the last."""
        whole = (width // self.spec.patch_size) * (height // self.spec.patch_size)
        return next((bucket for bucket in self.spec.buckets if whole <= bucket), self.spec.buckets[-1])

    def grid(self, width: int, height: int, max_num_patches: int | None = None) -> tuple[int, tuple[int, int]]:
        """Bucket, or ``max_num_patches``, and the grid that fills it.

        Raises:
            ArgumentError: ``max_num_patches`` is out of range.
            ImageError: a side is so long that its smallest grid has more patches.
        """
        bucket = self.bucket(width, height) if max_num_patches is None else self._checked(max_num_patches)
        rows, columns = target_grid(height, width, self.spec.patch_size, bucket)
        if rows * columns > bucket:
            raise ImageError(
                f"an image of {width:,}×{height:,} pixels is too long to become {bucket:,} patches or fewer; crop it.",
                code="image_too_large",
            )
        return bucket, (rows, columns)

    def _checked(self, max_num_patches: int) -> int:
        if isinstance(max_num_patches, bool) or not isinstance(max_num_patches, (int, np.integer)):
            raise ArgumentError(f"max_num_patches is {max_num_patches!r}; pass a whole number.")
        if not 1 <= max_num_patches <= self.spec.max_num_patches:
            raise ArgumentError(
                f"max_num_patches is {max_num_patches}; pass a number from 1 to {self.spec.max_num_patches}."
            )
        return int(max_num_patches)


def target_grid(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Rows and columns of patches for an image: the largest scale at which they number at most ``max_num_patches``.

    A binary search over the scale, as the released processor does it, step for step: another way to the same optimum
    can end in another grid.
    """
    tolerance = 1e-5
    low, high = tolerance / 10, 100.0
    while high - low >= tolerance:
        scale = (low + high) / 2
        if _cells(height, scale, patch_size) * _cells(width, scale, patch_size) <= max_num_patches:
            low = scale
        else:
            high = scale
    return _cells(height, low, patch_size), _cells(width, low, patch_size)


def _cells(size: int, scale: float, patch_size: int) -> int:
    return max(1, math.ceil(size * scale / patch_size))


def _resize(image: Image.Image, width: int, height: int, resample: str) -> Image.Image:
    """Resize ``image`` by two passes: horizontally, rounded to 8 bits, then vertically.

    The order shows in the result, since each pass rounds. Every Pillow that the processors were released with begins
    horizontally; 12.2 and later choose by the image's shape. A call that changes one side has one pass in all of them.

    Raises:
        ImageError: the image between the passes would fill the memory.
    """
    if width * image.height > _MOST_BETWEEN_PASSES:
        raise ImageError(
            f"an image of {image.width:,}×{image.height:,} pixels is too tall to become {width:,} wide "
            f"({width * image.height:,} pixels on the way, over the limit of {_MOST_BETWEEN_PASSES:,}); crop it.",
            code="image_too_large",
        )
    resampling = _FILTERS[resample]
    return image.resize((width, image.height), resampling).resize((width, height), resampling)


def _cut(image: Image.Image, size: int) -> ByteArray:
    """Patches uint8 [h·w, P·P·3] of an image whose sides are multiples of ``size``."""
    rows, columns = image.height // size, image.width // size
    pixels = np.asarray(image, dtype=np.uint8).reshape(rows, size, columns, size, -1)
    return np.ascontiguousarray(pixels.transpose(0, 2, 1, 3, 4)).reshape(rows * columns, -1)
