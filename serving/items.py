"""The inputs that a batcher takes, and the answers that it gives."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from fgclip_rt.arrays import FloatArray
from fgclip_rt.images import ImageSource


class ImageItem(msgspec.Struct, frozen=True):
    """An image to embed.

    Attributes:
        source: as for :meth:`fgclip_rt.Model.embed_images`.
        max_num_patches: likewise.
        exif_transpose: likewise.
        name: its name in messages; None for the path, or "the image".
    """

    source: ImageSource
    max_num_patches: int | None = None
    exif_transpose: bool | None = None
    name: str | None = None


class DenseItem(ImageItem, frozen=True):
    """An image whose patches are embedded, for boxes, masks and maps; the answer is a ``DenseImage``."""


class TextItem(msgspec.Struct, frozen=True):
    """A text to embed.

    Attributes:
        text: English or Chinese.
        walk_type: as for :meth:`fgclip_rt.Model.embed_texts`.
    """

    text: str
    walk_type: str = "short"


Item: TypeAlias = ImageItem | TextItem


class EmbeddedImage(msgspec.Struct, frozen=True):
    """The vector of an image.

    Attributes:
        vector: float32 [D], of length one.
        patches: number of patches that it was resized to.
        orientation: EXIF orientation that it carries and was not turned by; 1 if there is none.
    """

    vector: FloatArray
    patches: int
    orientation: int
