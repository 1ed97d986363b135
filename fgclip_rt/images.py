"""Reading images, as the released code reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from .arrays import Array
from .errors import ArgumentError, ImageError, reason
from .image_files import check_format, identify, opened, without_large_metadata

#: A path, the bytes of an image file, an open file or an upload, a Pillow image, or an array uint8 [H, W, 3].
ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | Array"

#: The EXIF tag of the orientation, and its value for an image that is stored as it is seen.
_ORIENTATION, _UPRIGHT = 0x0112, 1

#: The turn that each other value asks for.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Where Pillow keeps data that may hold an orientation.
_ORIENTATION_HOLDERS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


class Decoded(NamedTuple):
    """An image as 8-bit RGB.

    Attributes:
        rgb: the image.
        orientation: the EXIF orientation that it is still to be turned by, 1 to 8; 1 is upright.
    """

    rgb: Image.Image
    orientation: int


def load_image(source: ImageSource, name: str | None = None, *, exif_transpose: bool = False) -> Image.Image:
    """Read an image as 8-bit RGB.

    Alpha is dropped. Palettes, greyscale and CMYK are converted as by Pillow's ``convert("RGB")``, which the released
    code calls. 16-bit images keep their upper 8 bits; that call would clip them to white. An animation gives its first
    frame. Colour profiles and texts of a PNG file are left out if Pillow refuses them for their size.

    Pillow itself turns TIFF files upright, and HEIC files are turned by their decoder.

    Args:
        source: the image. An open file is read from its beginning, if it can seek, and stays open.
        name: its name in messages; the path by default.
        exif_transpose: turn the image upright by its orientation, in EXIF or XMP data. The released code of FG-CLIP
            does not. An orientation that cannot be read counts as upright.

    Raises:
        ImageError: it cannot be read, has over twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, which is where Pillow
            refuses it too, or is not one of the kinds above.
    """
    rgb = read_image(source, name, exif_transpose=exif_transpose).rgb
    return rgb.copy() if rgb is source else rgb


def read_image(
    source: ImageSource,
    name: str | None = None,
    *,
    exif_transpose: bool,
    reserve: Callable[[int], None] = lambda _: None,
) -> Decoded:
    """Read an image as :func:`load_image` does. A Pillow image that needs no change is returned itself.

    Args:
        source: as for :func:`load_image`.
        name: likewise.
        exif_transpose: likewise.
        reserve: called with the number of pixels before they are decoded.

    Raises:
        ImageError: as for :func:`load_image`.
    """
    if name is None:
        name = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else "the image"
    if isinstance(source, np.ndarray):
        return Decoded(_from_array(source, name), _UPRIGHT)

    def decode(image: Image.Image, name: str) -> Decoded:
        _check_pixels(image, name)
        reserve(image.width * image.height)
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image, name)
        return Decoded(_turned(rgb, orientation), _UPRIGHT) if exif_transpose else Decoded(rgb, orientation)

    try:
        if isinstance(source, Image.Image):
            check_format(source, name)
            return decode(source, name)
        with opened(source if isinstance(source, (str, os.PathLike)) else file_bytes(source, name), name) as file:
            return _decode_file(file, name, decode)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's message has the number, which is known to nobody else: the file has not become an image.
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(name, f"{int(found[1]):,} pixels" if found else None) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name} cannot be read ({error.strerror}); check the path.") from None
        raise ImageError(f"{name} is damaged ({reason(error)}); restore or remove it.", code="image_damaged") from None


def image_size(source: str | os.PathLike[str] | bytes, name: str | None = None) -> tuple[int, int]:
    """Width and height of an image file by its header; its pixels are not decoded.

    Args:
        source: a path, or the bytes of a file.
        name: its name in messages; the path by default.

    Raises:
        ImageError: the header cannot be read.
    """
    if name is None:
        name = "the image" if isinstance(source, bytes) else os.fsdecode(source)
    try:
        with opened(source, name) as file:
            return identify(file, name).size
    except ImageError:
        raise
    except Exception as error:  # as above
        raise ImageError(f"{name} cannot be read ({reason(error)}); restore or remove it.") from None


def as_sources(images: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """Iterate over images; a single one counts as a list of one."""
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    if isinstance(images, single) or _open_file(images) is not None or _is_one_array(images):
        return iter([images])  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        raise ArgumentError(
            "images must be paths, bytes, open files, Pillow images or uint8 arrays, not "
            f"{type(images).__name__}; pass one of these or a list of them."
        )
    return iter(images)


def file_bytes(source: object, name: str) -> bytes:
    """The bytes of an image file that is in memory or open. A file is read from its beginning, if it can seek.

    Raises:
        ImageError: it cannot be read, or holds no bytes.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    file = _open_file(source)
    if file is None:
        raise ImageError(
            f"{name} is of type {type(source).__name__}; "
            "pass a path, bytes, an open file, a Pillow image or a uint8 array [H, W, 3].",
            code="image_unsupported",
        )
    try:
        if getattr(file, "seekable", lambda: hasattr(file, "seek"))():
            file.seek(0)
        data = file.read()
    except Exception as error:  # a file object of any library
        raise ImageError(f"{name} cannot be read ({reason(error)}); pass a file that is open.") from None
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"{name} is a file that reads {type(data).__name__} instead of bytes; open it in binary mode.",
            code="image_unsupported",
        )
    return bytes(data)


def _open_file(source: object) -> Any:
    """The file object that a source is, or that an upload of a web framework holds; None if there is none."""
    for file in (source, getattr(source, "file", None)):
        read = getattr(file, "read", None)
        if callable(read):
            from inspect import iscoroutinefunction

            if not iscoroutinefunction(read):
                return file
    return None


def _is_one_array(images: object) -> bool:
    """Whether images are one array of numbers, and not a batch or an array of paths."""
    return isinstance(images, np.ndarray) and images.ndim <= 3 and images.dtype.kind in "biuf"


def _decode_file(file: IO[bytes], name: str, decode: Callable[[Image.Image, str], Decoded]) -> Decoded:
    try:
        return decode(identify(file, name), name)
    except ImageError:
        raise
    except ValueError:
        smaller = without_large_metadata(file)
        if smaller is None:
            raise
        return decode(identify(smaller, name), name)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # damaged EXIF data; the pixels are sound
        return _UPRIGHT
    return orientation if orientation in _TURNS else _UPRIGHT


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright, without the data that would have it turned again."""
    if orientation == _UPRIGHT:
        return image
    turned = image.transpose(_TURNS[orientation])
    for holder in _ORIENTATION_HOLDERS:
        turned.info.pop(holder, None)
    return turned


def _from_array(array: Array, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"{name} is an array of {array.dtype} {list(array.shape)}; pass uint8 [H, W, 3] with values 0 to 255.",
            code="image_unsupported",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image as RGB; itself, if it is RGB already, because a copy would take as much memory again."""
    if image.mode == "RGB":
        return image
    # Pillow opens 16-bit PGM files as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        eight = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
        eight.info = image.info.copy()
        return eight.convert("RGB")
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
    # As Pillow does for files: above the limit itself it only warns.
    if limit is not None and width * height > 2 * limit:
        raise _too_large(name, f"{width}×{height} pixels")


def _too_large(name: str, size: str | None) -> ImageError:
    return ImageError(
        f"{name} is too large to decode safely ({f'{size}, ' if size else ''}over the limit of "
        f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,.0f} pixels); raise it with --max-image-pixels or by setting "
        "PIL.Image.MAX_IMAGE_PIXELS to half of the image's pixels, if you trust it.",
        code="image_too_large",
    )
