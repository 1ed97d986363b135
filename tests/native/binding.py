"""The C library through ctypes, as its tests call it. The structs and numbers are those of ``fgclip_rt.h``."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = {"rgb": (0, 3), "bgr": (1, 3), "rgba": (2, 4), "bgra": (3, 4), "gray": (4, 1)}
BOX_FORMATS = {"xyxy": 0, "xywh": 1, "normalized": 2}
DEVICES = {"cpu": 0, "auto": 1, "cuda": 2, "tensorrt": 3}

_Pointer = ctypes.c_void_p


class Error(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("status", ctypes.c_int32),
        ("index", ctypes.c_int64),
        ("needed", ctypes.c_uint64),
        ("message", ctypes.c_char * 512),
    ]


class Options(ctypes.Structure):
    _fields_ = [
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
    ]


class Image(ctypes.Structure):
    _fields_ = [
        ("data", _Pointer),
        ("stride", ctypes.c_size_t),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("format", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    ]


class Grid(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("bucket", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
    ]


class ImageRequest(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("max_num_patches", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
    ]


class TextRequest(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("walk_type", ctypes.c_char_p),
        ("lengths", _Pointer),
        ("truncated", _Pointer),
    ]


class RegionRequest(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("max_num_patches", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("box_format", ctypes.c_int32),
        ("dense", _Pointer),
        ("dense_count", ctypes.c_size_t),
    ]


class MaskRequest(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("max_num_patches", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("mask_type", ctypes.c_int32),
        ("mask_width", ctypes.c_uint32),
        ("mask_height", ctypes.c_uint32),
        ("dense", _Pointer),
        ("dense_count", ctypes.c_size_t),
    ]


STRUCTS = {
    "fgclip_error": Error,
    "fgclip_options": Options,
    "fgclip_image": Image,
    "fgclip_grid": Grid,
    "fgclip_image_request": ImageRequest,
    "fgclip_text_request": TextRequest,
    "fgclip_region_request": RegionRequest,
    "fgclip_mask_request": MaskRequest,
}


class NativeError(Exception):
    """An error of the library: its status, its name, the index of the input at fault, and the capacity needed."""

    def __init__(self, status: int, name: str, error: Error) -> None:
        super().__init__(error.message.decode())
        self.status, self.code, self.index, self.needed = status, name, error.index, error.needed
        assert error.status == status, (error.status, status)


def sized(kind: type[Any], **values: Any) -> Any:
    """A struct that begins with its size."""
    return kind(ctypes.sizeof(kind), **values)


class Library:
    """The opened library."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.fgclip_version.restype = self.c.fgclip_status_name.restype = ctypes.c_char_p
        self.c.fgclip_model_close.restype = self.c.fgclip_context_free.restype = None
        self.c.fgclip_model_close.argtypes = self.c.fgclip_context_free.argtypes = [_Pointer]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function whose last parameter is an error.

        Raises:
            NativeError: it failed.
        """
        error = sized(Error)
        status = getattr(self.c, f"fgclip_{name}")(*arguments, ctypes.byref(error))
        if status:
            raise NativeError(status, self.name(status), error)
        assert (error.status, error.index, error.needed, error.message) == (0, -1, 0, b"")

    def name(self, status: int) -> str:
        """Name of a status."""
        name: bytes = self.c.fgclip_status_name(status)
        return name.decode()

    def open(self, bundle: Path, **options: Any) -> NativeModel:
        """Open a bundle; options are the fields of the struct, with texts as strings."""
        given = {key: value.encode() if isinstance(value, str) else value for key, value in options.items()}
        handle = _Pointer()
        self.call("model_open", str(bundle).encode(), ctypes.byref(sized(Options, **given)), ctypes.byref(handle))
        return NativeModel(self, handle)


class NativeModel:
    """A model with one context."""

    def __init__(self, library: Library, handle: Any) -> None:
        self.library, self.handle = library, handle
        self.context = _Pointer()
        library.call("context_new", handle, ctypes.byref(self.context))
        dim = ctypes.c_uint32()
        library.call("model_dim", handle, ctypes.byref(dim))
        self.dim = dim.value

    def close(self) -> None:
        self.library.c.fgclip_model_close(self.handle)
        self.library.c.fgclip_context_free(self.context)

    def json(self, name: str) -> Any:
        """``manifest`` or ``runtime_info``."""
        text = ctypes.c_char_p()
        self.library.call(f"model_{name}", self.handle, ctypes.byref(text))
        assert text.value is not None
        return json.loads(text.value)

    def grid(self, width: int, height: int, max_num_patches: int = 0) -> Grid:
        grid = Grid()
        self.library.call("model_grid", self.handle, width, height, max_num_patches, ctypes.byref(grid))
        return grid

    def token_count(self, walk_type: str) -> int:
        count = ctypes.c_uint32()
        self.library.call("model_token_count", self.handle, walk_type.encode(), ctypes.byref(count))
        return count.value

    def embed_images(self, images: Sequence[np.ndarray], **request: int) -> np.ndarray:
        """Vectors [n, D] of arrays [H, W, 3]."""
        kept = [np.ascontiguousarray(image) for image in images]
        listed = (Image * len(kept))(*map(rgb_image, kept))
        out = np.full((len(kept), self.dim), np.nan, np.float32)
        asked = sized(ImageRequest, **request)
        self.library.call(
            "embed_images", self.context, listed, size(len(kept)), ctypes.byref(asked), pointer(out), size(out.size)
        )
        return out

    def embed_texts(self, texts: Sequence[str], walk_type: str = "short", features: int = 0) -> np.ndarray:
        listed, _lengths, request = text_request(texts, walk_type, features)
        out = np.full((len(texts), self.dim), np.nan, np.float32)
        self.library.call(
            "embed_texts", self.context, listed, size(len(texts)), ctypes.byref(request), pointer(out), size(out.size)
        )
        return out

    def tokenize(self, texts: Sequence[str], walk_type: str = "short") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids, mask and whether each text was cut, as ``fgclip_rt.text.Tokens`` has them."""
        listed, _lengths, request = text_request(texts, walk_type, 0)
        cut = np.full(len(texts), 255, np.uint8)
        request.truncated = pointer(cut)
        ids = np.full((len(texts), self.token_count(walk_type)), -1, np.int32)
        mask = np.full_like(ids, -1)
        self.library.call(
            "tokenize",
            self.handle,
            listed,
            size(len(texts)),
            ctypes.byref(request),
            pointer(ids),
            pointer(mask),
            size(ids.size),
        )
        return ids, mask, cut

    def embed_tokens(self, ids: np.ndarray, mask: np.ndarray | None, walk_type: str, features: int = 0) -> np.ndarray:
        request = sized(TextRequest, walk_type=walk_type.encode(), features=features)
        out = np.full((len(ids), self.dim), np.nan, np.float32)
        self.library.call(
            "embed_tokens",
            self.context,
            pointer(ids),
            None if mask is None else pointer(mask),
            size(len(ids)),
            ctypes.byref(request),
            pointer(out),
            size(out.size),
        )
        return out

    def prepare(self, image: Image, max_num_patches: int = 0) -> tuple[np.ndarray, Grid]:
        """Patches [h·w, P·P·3] of an image, and its grid."""
        expected = self.grid(image.width, image.height, max_num_patches)
        out = np.full(expected.bytes, 77, np.uint8)
        request, grid = sized(ImageRequest, max_num_patches=max_num_patches), Grid()
        self.library.call(
            "prepare_image",
            self.context,
            ctypes.byref(image),
            ctypes.byref(request),
            pointer(out),
            size(out.size),
            ctypes.byref(grid),
        )
        assert bytes(grid) == bytes(expected)
        return out.reshape(grid.rows * grid.columns, -1), grid

    def embed_patches(self, patches: np.ndarray, grids: Sequence[tuple[int, int]], features: int = 0) -> np.ndarray:
        listed = (Grid * len(grids))(*(Grid(rows, columns) for rows, columns in grids))
        request = sized(ImageRequest, features=features)
        out = np.full((len(grids), self.dim), np.nan, np.float32)
        self.library.call(
            "embed_patches",
            self.context,
            pointer(patches),
            size(patches.nbytes),
            listed,
            size(len(grids)),
            ctypes.byref(request),
            pointer(out),
            size(out.size),
        )
        return out

    def dense(self, image: np.ndarray, max_num_patches: int = 0, features: int = 0) -> np.ndarray:
        """Dense features [h, w, D]."""
        grid = self.grid(image.shape[1], image.shape[0], max_num_patches)
        out = np.full((grid.rows, grid.columns, self.dim), np.nan, np.float32)
        request = sized(ImageRequest, max_num_patches=max_num_patches, features=features)
        self.library.call(
            "dense",
            self.context,
            ctypes.byref(rgb_image(image)),
            ctypes.byref(request),
            pointer(out),
            size(out.size),
            None,
        )
        return out

    def regions(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        box_format: str = "xyxy",
        dense: np.ndarray | None = None,
        **request: int,
    ) -> np.ndarray:
        asked = sized(RegionRequest, box_format=BOX_FORMATS[box_format], **request, **given_dense(dense))
        boxes = np.ascontiguousarray(boxes, np.float64)
        out = np.full((len(boxes), self.dim), np.nan, np.float32)
        self.library.call(
            "regions",
            self.context,
            ctypes.byref(rgb_image(image)),
            pointer(boxes),
            size(len(boxes)),
            ctypes.byref(asked),
            pointer(out),
            size(out.size),
        )
        return out

    def masks(
        self, image: np.ndarray, masks: np.ndarray, dense: np.ndarray | None = None, **request: int
    ) -> np.ndarray:
        count, height, width = masks.shape
        kind = int(masks.dtype == np.bool_)
        asked = sized(
            MaskRequest, mask_type=kind, mask_width=width, mask_height=height, **request, **given_dense(dense)
        )
        masks = np.ascontiguousarray(masks, np.uint8 if kind else np.float32)
        out = np.full((count, self.dim), np.nan, np.float32)
        self.library.call(
            "masks",
            self.context,
            ctypes.byref(rgb_image(image)),
            pointer(masks),
            size(count),
            ctypes.byref(asked),
            pointer(out),
            size(out.size),
        )
        return out

    def scores(self, name: str, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """``logits`` or ``probabilities`` [n, m]."""
        out = np.full((len(images), len(texts)), np.nan, np.float32)
        self.library.call(
            name,
            self.handle,
            pointer(images),
            size(len(images)),
            pointer(texts),
            size(len(texts)),
            pointer(out),
            size(out.size),
        )
        return out


def rgb_image(pixels: np.ndarray) -> Image:
    """An image over an array [H, W, 3], which must outlive it."""
    assert pixels.flags.c_contiguous
    return Image(pointer(pixels), 0, pixels.shape[1], pixels.shape[0], FORMATS["rgb"][0], 0)


def given_dense(dense: np.ndarray | None) -> dict[str, Any]:
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


def pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(_Pointer)


def size(count: int) -> Any:
    return ctypes.c_size_t(count)
