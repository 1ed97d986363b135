"""One record of settings for each public benchmark, as the released scripts of FG-CLIP have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from msgspec import Struct

from ..errors import ArgumentError, BenchmarkError
from . import class_readers, readers
from .data import Data, LabelledImages, Protocol, Regions
from .templates import IMAGENET, VILD, OfficialTemplates

_T = TypeVar("_T")

#: The benchmark of drawn scenes, which has no files.
SCENES = "scenes"

_CAVEAT = "published by the authors of FG-CLIP 2; not reproduced by this project"
_CAVEATS = {
    "siglip2": f"{_CAVEAT}, and they do not say the size of SigLIP 2's images",
    "fineclip": f"{_CAVEAT}, and they do not say which of FineCLIP's checkpoints they took",
}


class Benchmark(Struct, frozen=True):
    """How a benchmark is measured.

    Attributes:
        read: reads the folder that holds its files.
        walk_type: kind of text.
        lowercase: whether the released script lower-cases texts; None if it leaves that to the tokenizer.
        cutoffs: the k of each R@k or top-k.
        skips_boxes: whether the released script leaves out a box that cannot be sampled.
        read_strictly: reads it for the protocol ``strict``, if the released script takes a part of it only.
        templates: of the texts of classes; None if there are no classes, or their bare names are the texts.
        patches: number that the released script resizes every image to; None takes each image's own.
        batch: images in a batch of the released script, which leaves out the last batch if it is not full.
        by_mask: whether segments are pooled instead of boxes.
        mean_over_classes: whether a figure is the mean over classes.
    """

    read: Callable[[Path], Data]
    walk_type: Literal["short", "box", "long"]
    lowercase: bool | None
    cutoffs: tuple[int, ...]
    skips_boxes: bool = False
    read_strictly: Callable[[Path], Data] | None = None
    templates: OfficialTemplates | None = None
    patches: int | None = None
    batch: int | None = None
    by_mask: bool = False
    mean_over_classes: bool = False

    def load(self, folder: Path, protocol: Protocol, limit: int | None) -> tuple[Data, int]:
        """The data that a protocol takes, and how many boxes or images of them it leaves out.

        Args:
            folder: the folder of the files.
            protocol: of the counting.
            limit: largest number of images or boxes; None takes all.

        Raises:
            BenchmarkError: a file is missing or not as it is downloaded, or there are too few images for a batch.
        """
        strict = protocol == "strict"
        data = (self.read_strictly or self.read)(folder) if strict else self.read(folder)
        left_out = data.absent if isinstance(data, Regions) else 0
        if self.batch is not None and not strict:
            assert isinstance(data, LabelledImages)
            whole = len(data.images) // self.batch * self.batch
            if not whole:
                raise BenchmarkError(
                    f"{folder} holds {len(data.images)} images, and the released script leaves out a last batch of "
                    f"fewer than {self.batch}; count all images with --protocol strict."
                )
            left_out = len(data.images) - whole
            data = data.first(whole)
        return data.first(limit), left_out


_RECALLS = (1, 5, 10)

_IMAGENET = partial(Benchmark, walk_type="short", lowercase=True, templates=IMAGENET, patches=1024)
_BOXES = partial(Benchmark, walk_type="box", lowercase=True, cutoffs=(1, 5), skips_boxes=True, templates=IMAGENET)
_PANOPTIC = partial(
    Benchmark,
    read=class_readers.read_panoptic,
    walk_type="box",
    lowercase=None,
    cutoffs=(1, 5),
    templates=VILD,
    mean_over_classes=True,
)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "coco-retrieval": Benchmark(readers.read_coco_captions, "short", True, _RECALLS),
        "flickr30k": Benchmark(readers.read_flickr30k, "short", True, _RECALLS),
        "flickr30k-cna": Benchmark(readers.read_flickr30k_cna, "short", False, _RECALLS),
        "coco-cn": Benchmark(readers.read_coco_cn, "short", True, _RECALLS),
        "dci": Benchmark(readers.read_dci, "long", True, (1,)),
        "sharegpt4v-1k": Benchmark(readers.read_sharegpt4v, "long", True, (1,)),
        "urban1k": Benchmark(readers.read_urban1k, "long", True, (1,)),
        "docci": Benchmark(readers.read_docci, "long", True, (1,)),
        "lit-cn": Benchmark(readers.read_tabbed, "long", False, (1,)),
        "dci-cn": Benchmark(readers.read_tabbed, "long", False, (1,)),
        "docci-cn": Benchmark(readers.read_tabbed, "long", False, (1,)),
        "fg-ovd-hard": Benchmark(partial(readers.read_fg_ovd, "h_attributes_llava.jsonl"), "box", True, (1,)),
        "fg-ovd-medium": Benchmark(partial(readers.read_fg_ovd, "m_attributes_llava.jsonl"), "box", True, (1,)),
        "fg-ovd-easy": Benchmark(partial(readers.read_fg_ovd, "e_attributes_llava.jsonl"), "box", True, (1,)),
        "fg-ovd-trivial": Benchmark(partial(readers.read_fg_ovd, "shuffle_negatives_llava.jsonl"), "box", True, (1,)),
        "coco-boxes": _BOXES(class_readers.read_coco_boxes),
        "lvis-boxes": _BOXES(class_readers.read_lvis_boxes, read_strictly=class_readers.read_all_lvis_boxes),
        "boxclass-cn": Benchmark(class_readers.read_boxclass_cn, "box", False, (1, 5), skips_boxes=True),
        "panoptic-boxes": _PANOPTIC(),
        "panoptic-masks": _PANOPTIC(by_mask=True),
        "imagenet-1k": _IMAGENET(class_readers.read_imagenet_1k, cutoffs=(1, 5), batch=128),
        "imagenet-v2": _IMAGENET(class_readers.read_imagenet_v2, cutoffs=(1,)),
    }
)

_RETRIEVAL_COLUMNS = (
    *("sharegpt4v-1k", "dci", "coco-retrieval", "flickr30k"),
    *("lit-cn", "dci-cn", "docci-cn", "flickr30k-cna", "coco-cn"),
)
_REGION_COLUMNS = (
    *("fg-ovd-hard", "fg-ovd-medium", "fg-ovd-easy", "fg-ovd-trivial"),
    *("coco-boxes", "lvis-boxes", "boxclass-cn"),
)
_IMAGE_COLUMNS = ("imagenet-1k", "imagenet-v2")


def _figures(columns: Sequence[str], *values: _T) -> dict[str, _T]:
    """A model's row of a table, which ends where its figures do."""
    return dict(zip(columns[: len(values)], values, strict=True))


_retrieval = partial(_figures, _RETRIEVAL_COLUMNS)
_regions = partial(_figures, _REGION_COLUMNS)
_images = partial(_figures, _IMAGE_COLUMNS)

# fmt: off
#: R@1 in percent, image to text and text to image, by model; from tables 3 and 4 of FG-CLIP 2's project page.
_RETRIEVAL: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "fineclip-vitb16": _retrieval((70.6, 73.3), (35.5, 34.4), (54.5, 40.2), (82.5, 67.9)),
    "fineclip-vitl14-336": _retrieval((73.4, 82.7), (40.1, 46.2)),
    "fg-clip-base": _retrieval((96.7, 94.9), (61.8, 60.6), (64.1, 45.4), (90.7, 76.4)),
    "fg-clip-large": _retrieval((97.4, 96.8), (66.7, 66.1), (68.9, 50.9), (93.7, 81.5)),
    "siglip2-base-patch16-naflex": _retrieval(
        (66.0, 67.9), (32.3, 34.3), (68.9, 52.9), (92.6, 80.0),
        (4.6, 2.6), (5.0, 4.0), (7.6, 5.7), (71.7, 49.1), (68.6, 46.2),
    ),
    "siglip2-so400m-patch16-naflex": _retrieval(
        (78.6, 79.5), (46.0, 47.1), (71.0, 55.8), (94.1, 82.5),
        (17.0, 10.8), (13.4, 12.0), (25.0, 21.3), (78.4, 51.7), (72.0, 50.7),
    ),
    "fg-clip2-base": _retrieval(
        (95.8, 95.4), (64.5, 64.9), (72.1, 54.5), (94.1, 81.9),
        (82.4, 81.1), (53.9, 55.7), (71.2, 75.4), (85.4, 69.9), (77.2, 62.9),
    ),
    "fg-clip2-large": _retrieval(
        (96.9, 96.6), (70.0, 71.6), (75.1, 58.6), (96.6, 84.8),
        (86.3, 85.9), (60.4, 62.2), (77.6, 81.9), (90.3, 75.0), (82.8, 66.5),
    ),
    "fg-clip2-so400m": _retrieval(
        (97.5, 96.7), (70.6, 72.1), (74.6, 56.7), (95.9, 85.0),
        (87.6, 86.3), (62.7, 65.1), (79.7, 84.0), (91.5, 77.2), (83.2, 68.1),
    ),
}
# fmt: on

#: Top-1 of boxes in percent, by model; from table 1.
_REGION_TOP1: Mapping[str, Mapping[str, float]] = {
    "fineclip-vitb16": _regions(26.8, 49.8, 50.4, 71.9, 48.4, 23.3),
    "fineclip-vitl14-336": _regions(22.8, 46.0, 46.0, 73.6, 54.5, 22.5),
    "fg-clip-base": _regions(46.1, 66.6, 68.7, 83.4, 52.3, 28.6),
    "fg-clip-large": _regions(48.4, 69.5, 71.2, 89.7, 63.2, 38.3),
    "fg-clip2-base": _regions(52.3, 76.3, 80.3, 92.0, 74.9, 47.3, 60.7),
    "fg-clip2-large": _regions(55.5, 77.5, 83.1, 92.5, 74.0, 41.9, 68.6),
    "fg-clip2-so400m": _regions(54.0, 77.4, 79.8, 93.5, 77.4, 43.9, 66.5),
}

#: Top-1 of images in percent, by model; from table 3.
_IMAGE_TOP1: Mapping[str, Mapping[str, float]] = {
    "fineclip-vitb16": _images(55.7, 48.8),
    "fineclip-vitl14-336": _images(60.8, 53.4),
    "fg-clip-base": _images(69.0, 61.8),
    "fg-clip-large": _images(76.1, 69.0),
    "siglip2-base-patch16-naflex": _images(79.4, 72.7),
    "siglip2-so400m-patch16-naflex": _images(83.8, 77.7),
    "fg-clip2-base": _images(79.5, 72.2),
    "fg-clip2-large": _images(83.0, 77.4),
    "fg-clip2-so400m": _images(84.1, 77.8),
}


def benchmark_by(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        ArgumentError: there is none.
    """
    found = BENCHMARKS.get(name)
    if found is None:
        raise ArgumentError(f"benchmark {name!r} is unknown; choose from {', '.join((SCENES, *BENCHMARKS))}.")
    return found


def published(model: str, name: str) -> dict[str, float]:
    """A released model's published figures on a benchmark in percent, by their names; empty if there are none."""
    if name in _RETRIEVAL.get(model, {}):
        return dict(zip(("image to text R@1", "text to image R@1"), _RETRIEVAL[model][name], strict=True))
    for figure, table in (("region top-1", _REGION_TOP1), ("image top-1", _IMAGE_TOP1)):
        if name in table.get(model, {}):
            return {figure: table[model][name]}
    return {}


def caveat(model: str, weights: str) -> str:
    """Why a published figure of a model may differ from a measured one that is right."""
    reason = _CAVEATS.get(model.partition("-")[0], _CAVEAT)
    return f"{reason}; this bundle's weights came from a file and may be others" if weights == "local" else reason
