"""The C library through ctypes: its structs and functions as ``fgclip_rt.h`` has them, over NumPy arrays."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, BoolArray, ByteArray, FloatArray, IntArray
from ..errors import CODES, NativeError

#: The version of the header that the structs below are of.
ABI_VERSION = 1

#: Environment variable with the path of the library.
VARIABLE = "FGCLIP_RT_LIBRARY"

FILTERS = {"bilinear": 0, "bicubic": 1}
BOX_FORMATS = {"xyxy": 0, "xywh": 1, "normalized": 2}
DEVICES = {"cpu": 0, "auto": 1, "cuda": 2, "tensorrt": 3}

_NAME = f"libfgclip_rt.so.{ABI_VERSION}"
_PACKAGE = Path(__file__).parents[1]
#: Where ``make native`` puts it in a checkout.
_BUILD = _PACKAGE.parent / "native/build"

_Pointer = ctypes.c_void_p

#: ``FGCLIP_FORMAT_RGB`` and ``FGCLIP_FORMAT_RGBA``; alpha is not read.
RGB, RGBA = 0, 2


class Error(ctypes.Structure):
    """``fgclip_error``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("status", ctypes.c_int32),
        ("index", ctypes.c_int64),
        ("needed", ctypes.c_uint64),
        ("message", ctypes.c_char * 512),
    )


class Options(ctypes.Structure):
    """``fgclip_options``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("device", ctypes.c_int32),
        ("device_number", ctypes.c_uint32),
        ("memory", ctypes.c_int32),
        ("spinning", ctypes.c_int32),
        ("check", ctypes.c_int32),
        ("weights", ctypes.c_int32),
        ("max_text_bytes", ctypes.c_uint64),
        ("precision", ctypes.c_char_p),
        ("onnxruntime", ctypes.c_char_p),
    )


class Image(ctypes.Structure):
    """``fgclip_image``."""

    _fields_ = (
        ("data", _Pointer),
        ("stride", ctypes.c_size_t),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("format", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    )


class Grid(ctypes.Structure):
    """``fgclip_grid``."""

    _fields_ = (
        ("rows", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("bucket", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
    )


class ImageRequest(ctypes.Structure):
    """``fgclip_image_request``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("max_num_patches", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
    )


class TextRequest(ctypes.Structure):
    """``fgclip_text_request``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("walk_type", ctypes.c_char_p),
        ("lengths", _Pointer),
        ("truncated", _Pointer),
    )


class RegionRequest(ctypes.Structure):
    """``fgclip_region_request``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("max_num_patches", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("box_format", ctypes.c_int32),
        ("dense", _Pointer),
        ("dense_count", ctypes.c_size_t),
    )


class MaskRequest(ctypes.Structure):
    """``fgclip_mask_request``."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("max_num_patches", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("mask_type", ctypes.c_int32),
        ("mask_width", ctypes.c_uint32),
        ("mask_height", ctypes.c_uint32),
        ("dense", _Pointer),
        ("dense_count", ctypes.c_size_t),
    )


#: The structs by their names in the header.
STRUCTS: dict[str, type[ctypes.Structure]] = {
    "fgclip_error": Error,
    "fgclip_options": Options,
    "fgclip_image": Image,
    "fgclip_grid": Grid,
    "fgclip_image_request": ImageRequest,
    "fgclip_text_request": TextRequest,
    "fgclip_region_request": RegionRequest,
    "fgclip_mask_request": MaskRequest,
}


def find_library(path: Path | None = None) -> Library:
    """Open the C library.

    Args:
        path: its file. None takes the one that the environment variable ``FGCLIP_RT_LIBRARY`` names; or else the first
            of the one beside this package, the one that ``make native`` built in this checkout, and the loader's.

    Raises:
        NativeError: there is none, or it has another ABI version.
    """
    tried = []
    for candidate in _candidates(path):
        try:
            return Library(candidate)
        except OSError as error:
            tried.append(str(error).rstrip("."))
    raise NativeError(
        f"the C library was not found ({'; '.join(tried)}); build it with 'make native', and name its file in "
        f"{VARIABLE}.",
        code="native_missing",
    )


def _candidates(path: Path | None) -> Iterator[str]:
    """The files to try, in order; if somebody names one, no other."""
    named = path or os.environ.get(VARIABLE)
    if named:
        # A name without a folder would be looked for in the loader's folders.
        yield os.path.abspath(named)  # noqa: PTH100 (resolve would follow links)
    else:
        yield from (str(_PACKAGE / _NAME), str(_BUILD / _NAME), _NAME)


class Library:
    """The opened library. Threads may use it at once.

    Attributes:
        version: its version, such as ``0.1.0``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the library in a file.

        Raises:
            OSError: the file cannot be opened, or is no library of this ABI version.
        """
        self.c = ctypes.CDLL(os.fspath(path))
        try:
            found = self.c.fgclip_abi_version()
        except AttributeError:
            raise OSError(f"{path}: it is another library") from None
        if found != ABI_VERSION:
            raise OSError(f"{path}: it has ABI version {found}, and this package calls version {ABI_VERSION}")
        self.c.fgclip_version.restype = self.c.fgclip_status_name.restype = ctypes.c_char_p
        self.c.fgclip_model_close.restype = self.c.fgclip_context_free.restype = None
        self.c.fgclip_model_close.argtypes = self.c.fgclip_context_free.argtypes = [_Pointer]
        self.version: str = self.c.fgclip_version().decode()

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function whose last parameter is an error.

        Raises:
            NativeError: it failed.
        """
        error = sized(Error)
        status = getattr(self.c, f"fgclip_{name}")(*arguments, ctypes.byref(error))
        if status:
            name = self.name(status)
            # A later version may have statuses that this package does not know.
            code = name if name in CODES else "internal"
            raise NativeError(error.message.decode(), code=code, status=status, index=error.index, needed=error.needed)

    def name(self, status: int) -> str:
        """Name of a status."""
        name: bytes = self.c.fgclip_status_name(status)
        return name.decode()

    def open(self, bundle: Path, **options: Any) -> NativeModel:
        """Open a bundle.

        Args:
            bundle: its folder.
            options: fields of ``fgclip_options``, with texts as strings.

        Raises:
            NativeError: the library refuses it.
        """
        given = {key: os.fsencode(value) if isinstance(value, str) else value for key, value in options.items()}
        handle = _Pointer()
        self.call("model_open", os.fsencode(bundle), ctypes.byref(sized(Options, **given)), ctypes.byref(handle))
        return NativeModel(self, handle)

    def resize_to_patches(self, image: Image, grid: tuple[int, int], size: int, resample: str) -> ByteArray:
        """Patches uint8 [h·w, P·P·3] of an image.

        Args:
            image: the image.
            grid: (h, w), rows and columns of patches.
            size: P, a patch's side in pixels.
            resample: one of :data:`FILTERS`.

        Raises:
            NativeError: the image is too tall to resize.
        """
        rows, columns = grid
        out = np.empty((rows * columns, size * size * 3), np.uint8)
        self.call(
            "resize_to_patches",
            ctypes.byref(image),
            rows,
            columns,
            size,
            FILTERS[resample],
            pointer(out),
            ctypes.c_size_t(out.size),
        )
        return out


class NativeModel:
    """A model with one context, so that threads must not use it at once. Its calls are those of the header.

    Attributes:
        dim: width D of every vector.
    """

    def __init__(self, library: Library, handle: Any) -> None:
        """Take a handle that ``fgclip_model_open`` gave."""
        self.library, self.handle = library, handle
        self.context = _Pointer()
        library.call("context_new", handle, ctypes.byref(self.context))
        dim = ctypes.c_uint32()
        library.call("model_dim", handle, ctypes.byref(dim))
        self.dim = dim.value

    def close(self) -> None:
        """Free the model and its context."""
        self.library.c.fgclip_model_close(self.handle)
        self.library.c.fgclip_context_free(self.context)

    def json(self, name: str) -> Any:
        """The ``manifest`` or ``runtime_info``."""
        text = ctypes.c_char_p()
        self.library.call(f"model_{name}", self.handle, ctypes.byref(text))
        assert text.value is not None
        return json.loads(text.value)

    def grid(self, width: int, height: int, max_num_patches: int = 0) -> Grid:
        """Where an image of these sides is resized to."""
        grid = Grid()
        self.library.call("model_grid", self.handle, width, height, max_num_patches, ctypes.byref(grid))
        return grid

    def token_count(self, walk_type: str) -> int:
        """L, the number of token ids of a text."""
        count = ctypes.c_uint32()
        self.library.call("model_token_count", self.handle, walk_type.encode(), ctypes.byref(count))
        return count.value

    def embed_images(self, images: Sequence[ByteArray], **request: int) -> FloatArray:
        """Vectors float32 [n, D] of arrays uint8 [H, W, 3]; ``request`` are fields of ``fgclip_image_request``."""
        kept = [np.ascontiguousarray(image) for image in images]
        listed = (Image * len(kept))(*map(rgb_image, kept))
        asked = sized(ImageRequest, **request)
        return self._vectors("embed_images", len(kept), listed, ctypes.c_size_t(len(kept)), ctypes.byref(asked))

    def embed_texts(self, texts: Sequence[str], walk_type: str = "short", features: int = 0) -> FloatArray:
        """Vectors float32 [n, D] of texts."""
        listed, _lengths, request = text_request(texts, walk_type, features)
        count = ctypes.c_size_t(len(texts))
        return self._vectors("embed_texts", len(texts), listed, count, ctypes.byref(request))

    def tokenize(self, texts: Sequence[str], walk_type: str = "short") -> tuple[IntArray, IntArray, BoolArray]:
        """Token ids, mask and whether each text was cut, as :class:`fgclip_rt.text.Tokens` has them."""
        listed, _lengths, request = text_request(texts, walk_type, 0)
        cut = np.zeros(len(texts), np.bool_)
        request.truncated = pointer(cut)
        ids = np.empty((len(texts), self.token_count(walk_type)), np.int32)
        mask = np.empty_like(ids)
        count = ctypes.c_size_t(len(texts))
        self.library.call(
            "tokenize",
            self.handle,
            listed,
            count,
            ctypes.byref(request),
            pointer(ids),
            pointer(mask),
            ctypes.c_size_t(ids.size),
        )
        return ids, mask, cut

    def embed_tokens(self, ids: IntArray, mask: IntArray | None, walk_type: str, features: int = 0) -> FloatArray:
        """Vectors float32 [n, D] of token ids and masks int32 [n, L], which run together."""
        request = sized(TextRequest, walk_type=walk_type.encode(), features=features)
        masked = None if mask is None else pointer(mask)
        count = ctypes.c_size_t(len(ids))
        return self._vectors("embed_tokens", len(ids), pointer(ids), masked, count, ctypes.byref(request))

    def prepare(self, image: Image, max_num_patches: int = 0) -> tuple[ByteArray, Grid]:
        """Patches uint8 [h·w, P·P·3] of an image, and its grid."""
        out = np.empty(self.grid(image.width, image.height, max_num_patches).bytes, np.uint8)
        request, grid = sized(ImageRequest, max_num_patches=max_num_patches), Grid()
        self.library.call(
            "prepare_image",
            self.context,
            ctypes.byref(image),
            ctypes.byref(request),
            pointer(out),
            ctypes.c_size_t(out.size),
            ctypes.byref(grid),
        )
        return out.reshape(grid.rows * grid.columns, -1), grid

    def embed_patches(self, patches: ByteArray, grids: Sequence[tuple[int, int]], features: int = 0) -> FloatArray:
        """Vectors float32 [n, D] of patches that lie one image behind another; they run together."""
        listed = (Grid * len(grids))(*(Grid(rows, columns) for rows, columns in grids))
        request = sized(ImageRequest, features=features)
        size, count = ctypes.c_size_t(patches.nbytes), ctypes.c_size_t(len(grids))
        return self._vectors("embed_patches", len(grids), pointer(patches), size, listed, count, ctypes.byref(request))

    def dense(self, image: ByteArray, max_num_patches: int = 0, features: int = 0) -> FloatArray:
        """Dense features float32 [h, w, D] of an array uint8 [H, W, 3]."""
        grid = self.grid(image.shape[1], image.shape[0], max_num_patches)
        out = np.empty((grid.rows, grid.columns, self.dim), np.float32)
        request = sized(ImageRequest, max_num_patches=max_num_patches, features=features)
        self.library.call(
            "dense",
            self.context,
            ctypes.byref(rgb_image(image)),
            ctypes.byref(request),
            pointer(out),
            ctypes.c_size_t(out.size),
            None,
        )
        return out

    def regions(
        self,
        image: ByteArray,
        boxes: Array,
        box_format: str = "xyxy",
        dense: FloatArray | None = None,
        **request: int,
    ) -> FloatArray:
        """Vectors float32 [r, D] of boxes [r, 4]; ``dense`` are the image's dense features, if they are there."""
        asked = sized(RegionRequest, box_format=BOX_FORMATS[box_format], **request, **given_dense(dense))
        boxes = np.ascontiguousarray(boxes, np.float64)
        count, described = ctypes.c_size_t(len(boxes)), ctypes.byref(rgb_image(image))
        return self._vectors("regions", len(boxes), described, pointer(boxes), count, ctypes.byref(asked))

    def masks(self, image: ByteArray, masks: Array, dense: FloatArray | None = None, **request: int) -> FloatArray:
        """Vectors float32 [m, D] of masks [m, H, W], bool or numbers from 0 to 1; ``dense`` as for :meth:`regions`."""
        count, height, width = masks.shape
        kind = int(masks.dtype == np.bool_)
        asked = sized(
            MaskRequest, mask_type=kind, mask_width=width, mask_height=height, **request, **given_dense(dense)
        )
        masks = np.ascontiguousarray(masks, np.uint8 if kind else np.float32)
        described = ctypes.byref(rgb_image(image))
        return self._vectors("masks", count, described, pointer(masks), ctypes.c_size_t(count), ctypes.byref(asked))

    def scores(self, name: str, images: FloatArray, texts: FloatArray) -> FloatArray:
        """``logits`` or ``probabilities`` float32 [n, m] of vectors [n, D] and [m, D]."""
        images, texts = np.ascontiguousarray(images, np.float32), np.ascontiguousarray(texts, np.float32)
        out = np.empty((len(images), len(texts)), np.float32)
        self.library.call(
            name,
            self.handle,
            pointer(images),
            ctypes.c_size_t(len(images)),
            pointer(texts),
            ctypes.c_size_t(len(texts)),
            pointer(out),
            ctypes.c_size_t(out.size),
        )
        return out

    def _vectors(self, name: str, count: int, *arguments: Any) -> FloatArray:
        """The result of a function that gives ``count`` vectors."""
        out = np.empty((count, self.dim), np.float32)
        self.library.call(name, self.context, *arguments, pointer(out), ctypes.c_size_t(out.size))
        return out


def sized(kind: type[Any], **values: Any) -> Any:
    """A struct that begins with its size."""
    return kind(ctypes.sizeof(kind), **values)


def rgb_image(pixels: ByteArray) -> Image:
    """An image over an array uint8 [H, W, 3] without gaps, which must outlive it."""
    assert pixels.flags.c_contiguous
    return Image(pointer(pixels), 0, pixels.shape[1], pixels.shape[0], RGB, 0)


def given_dense(dense: FloatArray | None) -> dict[str, Any]:
    """The fields of a request that hold dense features."""
    return {} if dense is None else {"dense": pointer(dense), "dense_count": dense.size}


def text_request(texts: Sequence[str], walk_type: str, features: int) -> tuple[Any, Any, Any]:
    """The list of the texts, their lengths, and a request with these; the caller keeps all three."""
    encoded = [text.encode() for text in texts]
    listed = (ctypes.c_char_p * len(texts))(*encoded)
    lengths = (ctypes.c_size_t * len(texts))(*map(len, encoded))
    request = sized(
        TextRequest, walk_type=walk_type.encode(), features=features, lengths=ctypes.cast(lengths, _Pointer)
    )
    return listed, lengths, request


def pointer(array: Array) -> Any:
    """The address of an array, which must outlive its use."""
    return array.ctypes.data_as(_Pointer)
