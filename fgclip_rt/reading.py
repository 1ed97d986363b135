"""Image sources to patches: read, decoded and resized by threads, within a bound on memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

import msgspec
import numpy as np
from PIL import Image

from .ahead import map_ahead
from .batching import Failure, Item
from .errors import ImageError
from .images import Decoded, ImageSource, as_sources, file_bytes, read_image
from .machine import release_free_memory
from .pixel_budget import PixelBudget
from .preparation import Patches, Preparation

#: Pixels that this process decodes at the same time, over all calls: 134 megapixels, of four bytes each as RGB and of
#: up to twice that while they are converted. Eight photos of 16 megapixels are decoded side by side, and of 88
#: megapixels one by one.
DECODING = PixelBudget(2**27)

#: An image in memory with more pixels is prepared at once instead of being copied for a thread. The copies of a call
#: that wait have about as many pixels together as the budget. After an image with more pixels, its memory is given back
#: to the system, which takes milliseconds where decoding took 100 and more.
_LARGE = 2**24


class ImageReader:
    """Prepares images as a model's manifest says."""

    def __init__(self, preparation: Preparation) -> None:
        """Make a reader.

        Args:
            preparation: turns a decoded image into patches.
        """
        self.preparation = preparation

    def turns(self, source: ImageSource, exif_transpose: bool | None) -> bool:
        """Whether an image is turned upright by its EXIF orientation.

        None does as the model's reference does, which may turn the files that it opens, but no Pillow image.
        """
        if exif_transpose is not None:
            return exif_transpose
        return self.preparation.spec.exif_transpose and not isinstance(source, Image.Image)

    def prepare(
        self,
        source: ImageSource,
        max_num_patches: int | None = None,
        name: str | None = None,
        exif_transpose: bool | None = None,
    ) -> Patches:
        """Read and resize an image, once its pixels fit into what may be decoded at the same time.

        Raises:
            ImageError: it cannot be read or resized.
            ArgumentError: the model has no such number of patches.
        """

        def resized() -> Patches:
            # By itself, so that the decoded image is gone when it returns.
            turned = self.turns(source, exif_transpose)
            rgb, orientation = read_image(source, name, exif_transpose=turned, reserve=reserve)
            return replace(self.preparation(rgb, max_num_patches), orientation=orientation)

        with DECODING.share() as reserve:
            patches = resized()
            if math.prod(patches.image_size) > _LARGE:
                release_free_memory()
        return patches

    def prepare_ahead(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        exif_transpose: bool | None = None,
        *,
        skip: bool = False,
    ) -> Iterator[Item[Patches] | Failure]:
        """Read and resize images in threads, as needed and in order.

        Args:
            images: one or several.
            max_num_patches: as for :meth:`prepare`.
            exif_transpose: likewise.
            skip: yield an image that cannot be read as a failure, instead of raising its error.
        """

        def queue(index: int, source: ImageSource) -> _Queued:
            if isinstance(source, (str, os.PathLike)):
                return _Queued(index, os.fsdecode(source), source)
            name = f"image {index}"
            try:
                if not isinstance(source, (Image.Image, np.ndarray)):
                    return _Queued(index, name, file_bytes(source, name))
                width, height = source.size if isinstance(source, Image.Image) else source.shape[1::-1]
                if width * height > _LARGE:
                    return _Queued(index, name, self.prepare(source, max_num_patches, name, exif_transpose))
                decoded = read_image(source, name, exif_transpose=self.turns(source, exif_transpose))
                rgb = decoded.rgb.copy() if decoded.rgb is source else decoded.rgb
                return _Queued(index, name, decoded._replace(rgb=rgb))
            except ImageError as error:
                return _Queued(index, name, _without_frames(error))

        def prepare(image: _Queued) -> Item[Patches] | Failure:
            try:
                patches = self._finish(image, max_num_patches, exif_transpose)
            except ImageError as error:
                if not skip:
                    raise
                return Failure(image.index, _without_frames(error))
            return Item(image.index, patches.bucket, len(patches.pixels), patches)

        return map_ahead(prepare, (queue(index, source) for index, source in enumerate(as_sources(images))))

    def _finish(self, image: _Queued, max_num_patches: int | None, exif_transpose: bool | None) -> Patches:
        match image.source:
            case ImageError() as error:
                raise error
            case Patches() as patches:
                return patches
            case Decoded(rgb, orientation):
                return replace(self.preparation(rgb, max_num_patches), orientation=orientation)
            case source:
                return self.prepare(source, max_num_patches, image.name, exif_transpose)


def _without_frames(error: ImageError) -> ImageError:
    """An error that is kept, without the frames in which it arose, because these hold the decoded image."""
    error.__context__ = None
    return error.with_traceback(None)


class _Queued(msgspec.Struct, frozen=True):
    """An image that waits for a thread, as far as it is prepared, or the error that it cannot be read.

    A thread reads and decodes files. Pixels in memory are copied at once, and open files are read at once, because
    their owner may close or overwrite them meanwhile.
    """

    index: int
    name: str
    source: str | os.PathLike[str] | bytes | Decoded | Patches | ImageError
