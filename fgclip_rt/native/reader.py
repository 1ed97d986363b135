"""A bundle through the C library, with the methods of :class:`fgclip_rt.Model` that a check of parity calls."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ..arrays import ByteArray, FloatArray
from ..backends import Finished
from ..bundle import Bundle
from ..devices import parse_device
from ..errors import check_positive
from ..graphs import ImageInputs, Output
from ..images import ImageSource, load_image
from ..manifest import ImageSpec, Manifest
from ..preparation import Patches
from ..text import Tokens
from .library import DEVICES, Library, NativeModel, rgb_image

#: The C library's environment variable with the path of libonnxruntime.
_ONNXRUNTIME = "FGCLIP_RT_ONNXRUNTIME"


class NativeReader:
    """A bundle through the C library. Images are read and decoded by Pillow, since the library has no decoder.

    Attributes:
        precision: the precision that runs.
        dim: width D of every vector.
        graphs: its graphs.
        preparation: turns images (RGB) into patches.
    """

    def __init__(
        self,
        library: Library,
        bundle: Bundle,
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open a bundle.

        Args:
            library: the library.
            bundle: the opened bundle.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``tensorrt``.
            precision: one of the bundle's; None takes its first.
            threads: CPU threads of one operator; None takes one for each usable core.

        Raises:
            ArgumentError: the device is unknown, or ``threads`` is not positive.
            NativeError: the library refuses the bundle or an option.
        """
        check_positive("threads", threads, most=1024)
        kind, number = (device, 0) if device == "tensorrt" else parse_device(device)
        # A precision and a path that are NULL leave the choice to the library, and so do no threads.
        options: dict[str, Any] = {"precision": precision, "onnxruntime": _onnxruntime(), "threads": threads or 0}
        self._model = library.open(bundle.path, device=DEVICES[kind], device_number=number, **options)
        self._version = library.version
        self._info: dict[str, Any] = self._model.json("runtime_info")
        self.precision: str = self._info["precision"]
        self.dim = self._model.dim
        self.graphs = _Graphs(self._model, bundle.manifest)
        self.preparation = _Preparation(self._model, bundle.manifest.image)

    def __str__(self) -> str:
        runtime, device = self._info["onnxruntime"], self._info["device"]
        name = device["name"] + (f":{device['number']}" if device["number"] else "")
        return f"libfgclip_rt {self._version} with onnxruntime {runtime['version']} on {name} ({device['why']})"

    def tokenizer(self, texts: Sequence[str], walk_type: str) -> Tokens:
        """Tokens of texts."""
        return Tokens(*self._model.tokenize(texts, walk_type))

    def embed_images(self, images: Sequence[ImageSource], *, normalize: bool = True) -> FloatArray:
        """Vectors float32 [n, D] of images."""
        return self._model.embed_images([_pixels(image) for image in images], features=int(not normalize))

    def embed_texts(self, texts: Sequence[str], walk_type: str, normalize: bool = True) -> FloatArray:
        """Vectors float32 [n, D] of texts."""
        return self._model.embed_texts(texts, walk_type, features=int(not normalize))

    def dense(self, image: ImageSource) -> _DenseImage:
        """An image for its parts."""
        return _DenseImage(self._model, _pixels(image))

    def logits(self, image_embeds: ArrayLike, text_embeds: ArrayLike) -> FloatArray:
        """Logits float32 [n, m] of vectors [n, D] and [m, D]."""
        images, texts = np.asarray(image_embeds, np.float32), np.asarray(text_embeds, np.float32)
        return self._model.scores("logits", images, texts)


class _Graphs:
    """The graphs of a model, as far as they take prepared inputs."""

    def __init__(self, model: NativeModel, manifest: Manifest) -> None:
        self._model = model
        self._names = manifest.graphs.keys()

    def has(self, graph: str) -> bool:
        return graph in self._names

    def vision(self, images: ImageInputs, *, normalize: bool = True) -> Output:
        grids = [(rows, columns) for rows, columns in images.spatial_shapes.tolist()]
        # Without the zeros behind the patches of shorter images.
        patches = [rows[: height * width] for rows, (height, width) in zip(images.patches, grids, strict=True)]
        vectors = self._model.embed_patches(np.concatenate(patches), grids, features=int(not normalize))
        return Output(Finished([vectors]))


class _Preparation:
    """Images to patches as the library's model prepares them, by its own choice of grid."""

    def __init__(self, model: NativeModel, spec: ImageSpec) -> None:
        self._model = model
        self.spec = spec

    def __call__(self, image: Image.Image, max_num_patches: int | None = None) -> Patches:
        kept = _pixels(image)
        pixels, grid = self._model.prepare(rgb_image(kept), max_num_patches or 0)
        return Patches(pixels, (grid.rows, grid.columns), (image.height, image.width), grid.bucket)

    def bucket(self, width: int, height: int) -> int:
        return self.grid(width, height)[0]

    def grid(self, width: int, height: int, max_num_patches: int | None = None) -> tuple[int, tuple[int, int]]:
        grid = self._model.grid(width, height, max_num_patches or 0)
        return grid.bucket, (grid.rows, grid.columns)


class _DenseImage:
    """An image whose tower runs once for all of its boxes and masks."""

    def __init__(self, model: NativeModel, pixels: ByteArray) -> None:
        self._model = model
        self._pixels = pixels

    def features(self, normalize: bool = True) -> FloatArray:
        return self._model.dense(self._pixels) if normalize else self._features

    def regions(self, boxes: ArrayLike, normalize: bool = True) -> FloatArray:
        return self._model.regions(self._pixels, np.asarray(boxes), dense=self._features, features=int(not normalize))

    def masks(self, masks: ArrayLike, normalize: bool = True) -> FloatArray:
        return self._model.masks(self._pixels, np.asarray(masks), dense=self._features, features=int(not normalize))

    @cached_property
    def _features(self) -> FloatArray:
        """The reference's dense features, float32 [h, w, D]."""
        return self._model.dense(self._pixels, features=1)


def _pixels(image: ImageSource) -> ByteArray:
    """The pixels of an image, uint8 [H, W, 3]."""
    return np.ascontiguousarray(load_image(image), np.uint8)


def _onnxruntime() -> str | None:
    """The libonnxruntime of Python's package; None if the environment names one, or the library has to look."""
    spec = importlib.util.find_spec("onnxruntime")
    if os.environ.get(_ONNXRUNTIME) or spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("capi/libonnxruntime.so.1*"))
    return str(found[0]) if found else None
