"""Inputs that quantisation is calibrated on, and held-out inputs that its effect is measured on."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from fgclip_rt.arrays import ByteArray
from fgclip_rt.errors import ArgumentError
from fgclip_rt.images import load_image
from fgclip_rt.manifest import Calibration
from fgclip_rt.model import Model
from fgclip_rt.parity import see
from fgclip_rt.preparation import Patches
from fgclip_rt.probe import Probe, ProbeImage, ProbeTexts
from fgclip_rt.progress import BeginStage, silent, tracked

from ..bundle.probe import probe_boxes, probe_masks
from ..request import check_enough
from .observation import METHOD

_T = TypeVar("_T")

#: Largest number of inputs that are used. Of more, this many are taken at even distances.
MOST = 512
#: One input in this many is held out, and at most the second number, so that images and their results fit into memory.
_HELD_OUT = 4
_MOST_HELD_OUT = 32


@dataclass(frozen=True)
class CalibrationInputs:
    """Images and texts of the kind that the model will meet, as a user gives them.

    Attributes:
        images: paths of image files, or RGB images.
        texts: texts for every walk type, or texts by walk type.
    """

    images: Sequence[str | Path | Image.Image]
    texts: Sequence[str] | Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        """Refuse too few inputs.

        Raises:
            ArgumentError: there are fewer different images, or texts of a walk type, than calibration needs.
        """
        texts = list(self.texts.values()) if isinstance(self.texts, Mapping) else [self.texts]
        images = {id(image) if isinstance(image, Image.Image) else Path(image) for image in self.images}
        check_enough(len(images), min((len(set(t)) for t in texts), default=0))


@dataclass(frozen=True)
class CalibrationData:
    """Images and texts of the kind that a model will meet.

    Attributes:
        images: paths of image files, or images.
        texts: by walk type.
        held_out_images: as ``images``; kept from calibration to measure its outcome.
        held_out_texts: as ``texts``, likewise.
        sha256: digest over the digests of all images, then all texts.
    """

    images: Sequence[Path | Image.Image]
    texts: Mapping[str, Sequence[str]]
    held_out_images: Sequence[Path | Image.Image]
    held_out_texts: Mapping[str, Sequence[str]]
    sha256: str

    def run(self, model: Model, begin: BeginStage, stage: str) -> None:
        """Send all inputs that are not held out through a model, each image by itself, so that nothing is padded."""
        # The dense graph holds every layer that the other graphs of images have.
        embed = model.dense_features if model.graphs.has("dense") else model.embed_images
        steps: list[Callable[[], object]] = [partial(embed, image) for image in self.images]
        steps += [partial(model.embed_texts, texts, walk_type) for walk_type, texts in self.texts.items()]
        for step in tracked(begin, stage, steps):
            step()

    def record(self) -> Calibration:
        """Its description for the manifest."""
        return Calibration(
            method=METHOD,
            images=len(self.images),
            texts=_count_distinct(self.texts),
            held_out_images=len(self.held_out_images),
            held_out_texts=_count_distinct(self.held_out_texts),
            sha256=self.sha256,
        )

    def held_out(self, model: Model, begin: BeginStage = silent) -> Probe:
        """The inputs that are held out, with the results of ``model``, in float32."""
        images: list[ProbeImage] = []
        walk_types: dict[str, ProbeTexts] = {}

        def run_image(source: Path | Image.Image) -> None:
            image = model.load_image(source)
            patches = model.preparation(image)
            # Kept at the size that the model sees, because photos of many megapixels would fill the memory.
            rows, columns = patches.grid
            size = (columns * model.manifest.image.patch_size, rows * model.manifest.image.patch_size)
            rgb = np.asarray(image.resize(size) if math.prod(size) < math.prod(image.size) else image)
            patches = model.preparation(Image.fromarray(rgb))
            images.append(_seen(model, rgb, patches))

        def run_texts(walk_type: str, texts: Sequence[str]) -> None:
            tokens = model.tokenizer(texts, walk_type)
            features = model.embed_texts(texts, walk_type, normalize=False)
            walk_types[walk_type] = ProbeTexts(tuple(texts), tokens.input_ids, tokens.attention_mask, features)

        steps = [partial(run_image, source) for source in self.held_out_images]
        steps += [partial(run_texts, walk_type, texts) for walk_type, texts in self.held_out_texts.items()]
        for step in tracked(begin, "run held-out inputs", steps):
            step()
        return Probe(tuple(images), walk_types, logits=np.zeros((0, 0), np.float32))


def _seen(model: Model, rgb: ByteArray, patches: Patches) -> ProbeImage:
    """An image with the results of a model."""
    boxes, masks = probe_boxes(patches), probe_masks(*patches.grid)
    features, parts = see(model, rgb, boxes, masks)
    return ProbeImage(
        rgb=rgb,
        patches=patches.pixels,
        grid=np.array(patches.grid, np.int32),
        features=features,
        dense=parts.get("dense"),
        boxes=boxes if "region" in parts else None,
        regions=parts.get("region"),
        masks=masks if "mask" in parts else None,
        mask_features=parts.get("mask"),
    )


def read(inputs: CalibrationInputs, walk_types: Sequence[str], begin: BeginStage = silent) -> CalibrationData:
    """Read inputs once, so that a bad one is found early, and divide them.

    Args:
        inputs: images and texts; of more than :data:`MOST` of a kind, that many are used.
        walk_types: the model's walk types.
        begin: is told how many images are read.

    Raises:
        ArgumentError: texts are given by walk type, but for other walk types than the model's.
        ImageError: an image cannot be read.
    """
    by_walk_type = inputs.texts if isinstance(inputs.texts, Mapping) else dict.fromkeys(walk_types, inputs.texts)
    if set(by_walk_type) != set(walk_types):
        raise ArgumentError(
            f"calibration texts are for the walk types {', '.join(by_walk_type)}; "
            f"give some for each of {', '.join(walk_types)}."
        )
    images = _spread([image if isinstance(image, Image.Image) else Path(image) for image in inputs.images])
    texts = {walk_type: _spread(values) for walk_type, values in by_walk_type.items()}
    digest = hashlib.sha256()
    for image in tracked(begin, "read calibration", images):
        digest.update(hashlib.sha256(_checked_bytes(image)).digest())
    for walk_type, values in texts.items():
        for text in (walk_type, *values):
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    used_images, held_out_images = _divide(images)
    divided = {walk_type: _divide(values) for walk_type, values in texts.items()}
    return CalibrationData(
        images=used_images,
        texts={walk_type: used for walk_type, (used, _) in divided.items()},
        held_out_images=held_out_images,
        held_out_texts={walk_type: held_out for walk_type, (_, held_out) in divided.items()},
        sha256=digest.hexdigest(),
    )


def _checked_bytes(image: Path | Image.Image) -> bytes:
    if isinstance(image, Path):
        load_image(image)
        return image.read_bytes()
    return repr((image.mode, image.size)).encode() + image.tobytes()


def _spread(items: Sequence[_T]) -> Sequence[_T]:
    if len(items) <= MOST:
        return items
    return [items[index * len(items) // MOST] for index in range(MOST)]


def _divide(items: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """Items to use and items to hold out, drawn at random, because their order may alternate by language or subject."""
    held_out = set(random.Random(0).sample(range(len(items)), min(len(items) // _HELD_OUT, _MOST_HELD_OUT)))
    return (
        [item for index, item in enumerate(items) if index not in held_out],
        [item for index, item in enumerate(items) if index in held_out],
    )


def _count_distinct(texts: Mapping[str, Sequence[str]]) -> int:
    return len({text for values in texts.values() for text in values})
