"""Test vectors of the preparation, for readers of bundles in other languages: inputs and what they become.

Each file is JSON, but for images, which are tensors in safetensors files. ``docs/bundle/vectors.md`` describes them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
from PIL import Image
from safetensors.numpy import save

from fgclip_rt.arrays import ByteArray
from fgclip_rt.boxes import BoxFormat, grid_boxes
from fgclip_rt.errors import FgclipError
from fgclip_rt.manifest import BoxShares, NaflexSpec, SquareSpec
from fgclip_rt.preparation import preparation
from fgclip_rt.text import Tokenizer

Json = dict[str, Any]

_NAFLEX = NaflexSpec(
    patch_size=16,
    channels=3,
    resample="bilinear",
    buckets=(128, 256, 576, 784, 1024),
    max_num_patches=16384,
    exif_transpose=False,
)
_SQUARE = SquareSpec(patch_size=16, channels=3, resample="bicubic", image_size=32, exif_transpose=False)

#: Width and height of images: one pixel, strips, either side of a bucket's border, common sizes, odd sizes.
_SIZES = (
    (1, 1),
    (15, 17),
    (16, 16),
    (1, 100_000),
    (100_000, 1),
    (3, 4_000),
    (128, 256),
    (127, 273),
    (256, 256),
    (272, 240),
    (255, 257),
    (365, 280),
    (384, 384),
    (400, 383),
    (448, 448),
    (449, 447),
    (500, 333),
    (512, 512),
    (640, 480),
    (333, 1_999),
    (1_023, 1_025),
    (1_920, 1_080),
    (4_032, 3_024),
    (8_000, 6_001),
)
#: Patch counts that are asked for, besides an image's own bucket.
_COUNTS = (1, 2, 7, 128, 256, 1_000, 4_096, 16_384)

#: Width and height of images that become patches: larger and smaller than their grid, and strips for which some
#: versions of Pillow, left alone, resize vertically first.
_PREPARED = ((1, 1), (5, 3), (40, 30), (31, 97), (7, 320), (300, 9), (24, 24))

#: Format, (height, width) of the image, rows and columns of its grid, and boxes.
_BOXES: tuple[tuple[BoxFormat, tuple[int, int], tuple[int, int], Sequence[Sequence[float]]], ...] = (
    ("xyxy", (280, 365), (21, 27), ((198, 143, 314, 259), (12.2, 215.8, 62.9, 278.1), (0, 0, 365, 280))),
    ("xyxy", (280, 365), (21, 27), ((-40, -3.5, 30, 300), (364, 279, 365, 280), (0.1, 0.2, 0.3, 120))),
    ("xyxy", (480, 640), (24, 32), ((20, 20, 40, 40), (20, 20, 40.000001, 40), (1 / 3, 2 / 3, 200 / 7, 300 / 7))),
    ("xywh", (280, 365), (21, 27), ((198, 143, 116, 116), (9.7, 20.1, 0.3, 77.7))),
    ("normalized", (280, 365), (21, 27), ((0.1, 0.2, 0.7, 0.9), (-0.5, 0, 1.5, 1), (1 / 3, 1 / 7, 2 / 3, 6 / 7))),
    ("xyxy", (224, 224), (14, 14), ((16, 32, 48, 64), (7, 3.3, 100.1, 200.7))),
    ("xyxy", (280, 365), (21, 27), ((50, 10, 20, 60),)),
    ("xyxy", (280, 365), (21, 27), ((50, 10, 50, 60),)),
    ("xyxy", (280, 365), (21, 27), ((365, 10, 400, 60),)),
    ("xyxy", (280, 365), (21, 27), ((0.1, 0.2, 0.7, 0.9),)),
    ("xyxy", (280, 365), (21, 27), ((0, 0, 1e7, 60),)),
    ("xywh", (280, 365), (21, 27), ((50, 10, -5, 60),)),
    ("normalized", (280, 365), (21, 27), ((10, 20, 70, 90),)),
)

_TEXTS = (
    "",
    " ",
    "a big spotted yellow star",
    "A BIG Spotted   Yellow Star!",
    "  leading and trailing  ",
    "大大的圆点黄色五角星",
    "a star 和 一个圆形",
    "naïve café",
    "nai\u0308ve",
    "İSTANBUL ẞ ΑΣ",
    "🐱👨‍👩‍👧",
    "tab\tand\nline",
    "nul\0inside",
    "<eos> and <pad>",
    "a star " * 40,
    "黄" * 300,
)


def vectors(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files by their path beside the bundle's page.

    Args:
        tokenizer: the one of ``fg-clip2-pocket``.
    """
    return {
        "vectors/grids.json": _json(list(_grids())),
        "vectors/patches.safetensors": save(_patches()),
        "vectors/boxes.json": _json(list(_boxes())),
        "vectors/tokens.json": _json(list(_tokens(tokenizer))),
    }


def _grids() -> Iterator[Json]:
    prepare = preparation(_NAFLEX)
    for width, height in _SIZES:
        for asked in (None, *_COUNTS):
            count, grid = prepare.grid(width, height, asked)
            yield {"width": width, "height": height, "max_num_patches": asked, "bucket": count, "grid": list(grid)}


def _patches() -> dict[str, ByteArray]:
    """Images uint8 [h, w, 3] as ``N.image``, and for both kinds of preparation ``N.KIND`` uint8 [h·w, P·P·3]."""
    generator = np.random.default_rng(0)
    tensors: dict[str, ByteArray] = {}
    for number, (width, height) in enumerate(_PREPARED):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        tensors[f"{number}.image"] = pixels
        tensors[f"{number}.naflex.16"] = preparation(_NAFLEX)(image, 16).pixels
        tensors[f"{number}.square"] = preparation(_SQUARE)(image).pixels
    return tensors


def _boxes() -> Iterator[Json]:
    for box_format, image_size, grid, boxes in _BOXES:
        for shares in get_args(BoxShares):
            case: Json = {
                "box_format": box_format,
                "image_size": list(image_size),
                "grid": list(grid),
                "box_shares": shares,
                "boxes": [list(box) for box in boxes],
            }
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    case["grid_boxes"] = grid_boxes(boxes, image_size, grid, box_format, shares).tolist()
            except FgclipError as error:
                case["refused"] = error.code
            yield case


def _tokens(tokenizer: Tokenizer) -> Iterator[Json]:
    for walk_type in tokenizer.spec.walk_types:
        for text in _TEXTS:
            encoded = tokenizer.encode(tokenizer.prepare(text, walk_type), walk_type)
            yield {"text": text, "walk_type": walk_type, "ids": encoded.ids, "truncated": encoded.truncated}


def _json(cases: list[Json]) -> bytes:
    """One case a line, so that a difference shows which."""
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    return f"[\n{lines}\n]\n".encode()
