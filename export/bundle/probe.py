"""The probe of an export: inputs that reach every bucket, script and head, and the reference's results on them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
from PIL import Image

from fgclip_rt.arrays import ByteArray, DoubleArray, FloatArray
from fgclip_rt.preparation import Patches, preparation
from fgclip_rt.probe import Probe, ProbeImage, ProbeTexts
from fgclip_rt.progress import BeginStage, silent, tracked
from fgclip_rt.text import Tokenizer

from ..families.base import ReferenceModel
from ..reference.float64 import Float64

#: (height, width): one of each bucket, then extreme aspect ratios and a single pixel.
IMAGE_SIZES: tuple[tuple[int, int], ...] = (
    (150, 200),
    (240, 256),
    (300, 451),
    (420, 448),
    (640, 480),
    (20, 1500),
    (2000, 30),
    (1, 1),
)

TEXTS = (
    "a photo of a cat",
    "A Red BICYCLE leaning against the wall",
    "一只黑猫坐在窗台上，旁边有一盆绿植。",
    "电脑 and a white cup",
    "a fox 🦊 jumps — naïve café ½",
    "",
    "  leading and  double spaces ",
    "a long corridor with tall windows on the left and a row of wooden chairs on the right, where a woman in a green "
    "coat reads a newspaper while a small dog sleeps beside her bag; further back two children chase a yellow ball, a "
    "waiter carries a tray with four glasses of water, and behind the last door one can see a garden with apple trees, "
    "a stone fountain, three white benches and a narrow path that leads down to the river, on which a single boat with "
    "a blue sail waits for the evening wind under a sky full of slow grey clouds",
    "厨房里，一张木桌上放着一篮苹果、两只玻璃杯和一把银色的刀；左边的墙上挂着三个铜锅，右边的窗户开着，"
    "可以看到院子里晾着的白色床单和一辆红色的自行车，一位老人坐在门口的椅子上，正在给孩子们讲故事，天空很蓝。",
)


def record(model: ReferenceModel, begin: BeginStage = silent, *, exact: bool = False) -> Probe:
    """Run the reference on the probe's inputs.

    Args:
        model: the loaded reference.
        begin: is told how many of the images and walk types are done.
        exact: compute in float64, which takes several times as long.
    """
    with Float64() if exact else nullcontext():
        return _record(model, begin, "run reference in float64" if exact else "run reference")


def _record(model: ReferenceModel, begin: BeginStage, stage: str) -> Probe:
    prepare = preparation(model.image_spec)
    tokenizer = Tokenizer(model.tokenizer_json, model.text_spec)
    images: list[ProbeImage] = []
    walk_types: dict[str, ProbeTexts] = {}

    def record_image(seed: int, height: int, width: int) -> None:
        rgb = draw_image(height, width, seed)
        patches = prepare(Image.fromarray(rgb))
        boxes, masks = probe_boxes(patches), probe_masks(*patches.grid)
        result = model.image(patches, boxes, masks)
        images.append(
            ProbeImage(
                rgb=rgb,
                patches=patches.pixels,
                grid=np.array(patches.grid, np.int32),
                features=result.features,
                dense=result.dense,
                boxes=None if result.regions is None else boxes,
                regions=result.regions,
                masks=None if result.masks is None else masks,
                mask_features=result.masks,
            )
        )

    def record_texts(walk_type: str) -> None:
        tokens = tokenizer(TEXTS, walk_type)
        features = model.text(tokens, walk_type)
        walk_types[walk_type] = ProbeTexts(TEXTS, tokens.input_ids, tokens.attention_mask, features)

    steps = [partial(record_image, seed, *size) for seed, size in enumerate(IMAGE_SIZES)]
    steps += [partial(record_texts, walk_type) for walk_type in model.text_spec.walk_types]
    for step in tracked(begin, stage, steps):
        step()
    image_features = np.stack([image.features for image in images])
    logits = model.logits(image_features, walk_types["short"].features)
    return Probe(tuple(images), walk_types, logits)


def draw_image(height: int, width: int, seed: int) -> ByteArray:
    """A picture with structure at several scales: a gradient, discs, stripes and a little noise; uint8 [H, W, 3]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    y, x = (y + 0.5) / height, (x + 0.5) / width
    picture = np.stack([x, y, 1 - x * y], axis=-1) * generator.uniform(40, 160, 3)
    for _ in range(6):
        centre, radius = generator.uniform(0, 1, 2), generator.uniform(0.05, 0.3)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        picture[inside] = generator.uniform(0, 255, 3)
    angle, frequency = generator.uniform(0, np.pi), generator.uniform(5, 40)
    stripes = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)))
    picture += 25 * stripes[..., None] + generator.normal(0, 6, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def probe_boxes(patches: Patches) -> DoubleArray:
    """Boxes float64 [4, 4] in pixels of an image: its middle, all of it, a sliver, and one over its upper left corner.

    The number of samples in a box is the ceiling of its extent in patches. The middle and the sliver have sides of
    whole patches, on the borders of patches and between them, so that a proof sees each rounding on the way.
    """
    (height, width), (rows, columns) = patches.image_size, patches.grid
    size, count = np.array([width, height] * 2, np.float64), np.array([columns, rows] * 2, np.float64)
    share = np.array([(0.1, 0.2, 0.5, 0.7), (0.45, 0.4, 0.1, 0.07)])  # x, y, width, height
    whole = np.maximum(np.rint(share * count), (0, 0, 1, 1))
    whole[1, :2] = share[1, :2] * count[:2]
    middle, sliver = np.concatenate([whole[:, :2], whole[:, :2] + whole[:, 2:]], axis=1) / count
    return np.array([middle, (0.0, 0.0, 1.0, 1.0), sliver, (-0.05, -0.03, 0.3, 0.4)]) * size


def probe_masks(rows: int, columns: int) -> FloatArray:
    """Masks float32 [3, h, w] on a grid: its upper half, a slope from none to all, and one patch."""
    masks = np.zeros((3, rows, columns), np.float32)
    masks[0, : (rows + 1) // 2] = 1
    masks[1] = np.linspace(0, 1, columns + 1, dtype=np.float32)[1:]
    masks[2, rows // 2, columns // 3] = 1
    return masks
