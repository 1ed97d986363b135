"""Reading images, as the released code reads them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .arrays import Array
from .errors import ArgumentError, ImageError, reason

#: A path, the bytes of an image file, a Pillow image, or an array uint8 [H, W, 3].
ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Array"


def load_image(source: ImageSource, name: str | None = None, *, exif_transpose: bool = False) -> Image.Image:
    """Read an image as 8-bit RGB.

    Alpha is dropped. Palettes, greyscale and CMYK are converted as by Pillow's ``convert("RGB")``, which the released
    code calls. 16-bit images keep their upper 8 bits; that call would clip them to white.

    Args:
        source: the image.
        name: its name in messages; the path by default.
        exif_transpose: turn the image upright by its EXIF orientation. The released code does not.

    Raises:
        ImageError: it cannot be read, is larger than Pillow's limit (``PIL.Image.MAX_IMAGE_PIXELS``), or is not one
            of the kinds above.
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the image"
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    try:
        image = source if isinstance(source, Image.Image) else _open(source, name)
        _check_pixels(image, name)
        if exif_transpose:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image, name)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not an image that Pillow can read; convert it to PNG or JPEG.", code="image_unsupported"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name} cannot be read ({error.strerror}); check the path.") from None
        raise ImageError(f"{name} is damaged ({reason(error)}); restore or remove it.", code="image_damaged") from None


def as_sources(images: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """Iterate over images; a single one counts as a list of one."""
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)) or (
        isinstance(images, np.ndarray) and images.ndim == 3
    ):
        return iter([images])
    if not isinstance(images, Iterable):
        raise ArgumentError(
            f"images must be paths, bytes, Pillow images or uint8 arrays, not {type(images).__name__}; "
            "pass one of these or a list of them."
        )
    return iter(images)


def _open(source: str | os.PathLike[str] | bytes, name: str) -> Image.Image:
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name} is empty; restore or remove it.", code="image_damaged")
        return Image.open(io.BytesIO(source))
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"{name} is of type {type(source).__name__}; "
            "pass a path, bytes, a Pillow image or a uint8 array [H, W, 3].",
            code="image_unsupported",
        )
    # Opened here and not by Pillow, so that the file is closed when decoding fails half-way.
    with Path(source).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0 and Path(source).is_file():
            raise ImageError(f"{name} is empty; restore or remove it.", code="image_damaged")
        image = Image.open(file)
        _check_pixels(image, name)
        image.load()
    return image


def _from_array(array: Array, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"{name} is an array of {array.dtype} {list(array.shape)}; pass uint8 [H, W, 3] with values 0 to 255.",
            code="image_unsupported",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    # Pillow opens 16-bit PGM files as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name} has 32-bit values (Pillow's mode {image.mode!r}) of unknown range; scale them to 8 bits and "
            "pass RGB.",
            code="image_unsupported",
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # The colours are the same. Without this step, Pillow warns about palettes with transparency in bytes.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _check_pixels(image: Image.Image, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width}×{height}); remove it.", code="image_damaged")
    if limit is not None and width * height > limit:
        raise _too_large(name, f"{width}×{height} pixels, ")


def _too_large(name: str, size: str = "") -> ImageError:
    return ImageError(
        f"{name} is too large to decode safely ({size}over the limit of {Image.MAX_IMAGE_PIXELS:,} pixels); "
        "raise the limit with --max-image-pixels or PIL.Image.MAX_IMAGE_PIXELS if you trust it.",
        code="image_too_large",
    )
