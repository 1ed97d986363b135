"""The C library's patches: the bytes of :mod:`fgclip_rt.preparation`, in a fraction of the time."""

from __future__ import annotations

import ctypes

from PIL import Image

from ..arrays import ByteArray
from ..errors import ImageError, NativeError
from ..preparation import Cut, pillow_patches
from . import library as c


class _ArrowArray(ctypes.Structure):
    """The C struct of that name (https://arrow.apache.org/docs/format/CDataInterface.html)."""


_ArrowArray._fields_ = (
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
)

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def native_patches(library: c.Library) -> Cut:
    """A function that has the C library resize images, in several threads at once.

    Pillow keeps four bytes for a pixel, and up to 4 megapixels in one piece, which the C library reads where they lie.
    A larger image lies in several pieces. To copy it costs as much as the C library gains, so Pillow resizes it.
    """

    def cut(image: Image.Image, grid: tuple[int, int], size: int, resample: str) -> ByteArray:
        try:
            _, capsule = image.__arrow_c_array__()
        except ValueError:
            return pillow_patches(image, grid, size, resample)
        # The capsule keeps the pixels in their place while it lives.
        pixels = c.Image(_address(capsule), 0, image.width, image.height, c.RGBA, 0)
        try:
            return library.resize_to_patches(pixels, grid, size, resample)
        except NativeError as error:
            # An error of the image itself, which a caller may skip.
            if error.code == "image_too_large":
                raise ImageError(str(error), code=error.code) from None
            raise

    return cut


def _address(capsule: object) -> int | None:
    """Address of the pixels in the Arrow array of an image (RGB), in which a pixel is a list of four bytes."""
    array = ctypes.cast(_capsule_pointer(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    # The list's only child has the bytes, in its second buffer; the first would say which are missing.
    address: int | None = array.children[0].contents.buffers[1]
    return address
