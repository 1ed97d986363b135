"""Readers of boxes, segments and images of classes, as the files are downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import BenchmarkError
from .data import Box, LabelledImages, Region, Regions, Segment
from .files import decode, find_file, find_image, known, only_file, read_lines

#: Of a panoptic image, the released script takes so many segments.
_SEGMENTS = 100
#: Least and largest area of a segment's box in pixels.
_AREAS = (8**2, 1024**2)

#: Suffixes of the files that torchvision's ImageFolder takes, after which the released scripts order images.
_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def read_boxclass_cn(folder: Path) -> Regions:
    """The folder's only JSON file, in COCO's form: boxes to be named by one of all categories."""
    path = only_file(folder, "*.json")
    return _regions(path, decode(path, _Boxes), lambda image: find_image(folder, image.file_name))


def read_coco_boxes(folder: Path) -> Regions:
    """All boxes of COCO's val2017, of crowds too, to be named by one of the 80 categories."""
    path = find_file(folder, "annotations/instances_val2017.json", "instances_val2017.json")
    return _regions(path, decode(path, _Boxes), lambda image: find_image(folder, image.file_name, "val2017"))


def read_lvis_boxes(folder: Path) -> Regions:
    """Boxes of LVIS's validation split on those of its images that ``val2017/`` holds, as the released script has it.

    To be named by one of the 1,203 categories, whose names have blanks for underscores.
    """

    def image(entry: _Image) -> Path | None:
        path = folder / "val2017" / Path(entry.coco_url).name
        return path if path.is_file() else None

    return _read_lvis(folder, image)


def read_all_lvis_boxes(folder: Path) -> Regions:
    """As :func:`read_lvis_boxes`, on all images, of which most lie in ``train2017/``."""

    def image(entry: _Image) -> Path:
        path = Path(entry.coco_url)
        return find_image(folder, path.name, path.parent.name)

    return _read_lvis(folder, image)


def read_panoptic(folder: Path) -> Regions:
    """The segments of COCO's panoptic val2017, with their boxes, to be named by one of the 133 categories.

    Of each image the first 100 segments; those whose box has less than 8² or more than 1,024² pixels are left out.
    A thing's box is the file's. The box of stuff ends at its last pixels' upper left corners, as in the released
    script, so that it is one pixel narrower and lower than the file's.
    """
    path = find_file(folder, "annotations/panoptic_val2017.json", "panoptic_val2017.json")
    file = decode(path, _Panoptic)
    categories = sorted(file.categories, key=lambda category: category.id)
    own_first = _own_first(categories)
    stuff = {category.id for category in categories if not category.isthing}
    images = {image.id: find_image(folder, image.file_name, "val2017") for image in file.images}
    regions = []
    for annotation in file.annotations:
        image = known(path, images, annotation.image_id, "image")
        picture = find_image(folder, annotation.file_name, "annotations/panoptic_val2017", "panoptic_val2017")
        for segment in annotation.segments_info[:_SEGMENTS]:
            candidates = known(path, own_first, segment.category_id, "category")
            x, y, width, height = segment.bbox
            if segment.category_id in stuff:
                width, height = width - 1, height - 1
            if _AREAS[0] <= width * height <= _AREAS[1]:
                box = (x, y, width, height)
                regions.append(Region(image, box, candidates, bool(segment.iscrowd), Segment(picture, segment.id)))
    return Regions(
        tuple(_spoken(category.name) for category in categories),
        tuple(regions),
        "xywh",
        classes=True,
        kinds=tuple("stuff" if category.id in stuff else "thing" for category in categories),
    )


def read_imagenet_1k(folder: Path) -> LabelledImages:
    """The validation images in ``val/``, in one folder for each class; ``classnames.txt`` has its name a line.

    The lines follow the folders in the order of their names, which are WordNet's numbers.
    """
    names, root, folders = _classes(folder, "val")
    if len(folders) != len(names):
        raise _unequal(root, len(folders), len(names))
    return _labelled(names, list(enumerate(folders)))


def read_imagenet_v2(folder: Path) -> LabelledImages:
    """The images of ImageNet-v2, matched frequency.

    A folder's name is the number of its line of ``classnames.txt``, from 0.
    """
    names, root, folders = _classes(folder, "imagenetv2-matched-frequency-format-val")
    other = next((path for path in folders if not path.name.isdecimal()), None)
    if other is not None:
        raise BenchmarkError(f"{other} is not named by the number of its class; give the folder of ImageNet-v2.")
    if max((int(path.name) for path in folders), default=-1) >= len(names):
        raise _unequal(root, len(folders), len(names))
    return _labelled(names, [(int(path.name), path) for path in folders])


class _Image(Struct):
    id: int
    file_name: str = ""
    coco_url: str = ""


class _Annotation(Struct):
    image_id: int
    category_id: int
    bbox: Box
    iscrowd: int = 0


class _Category(Struct):
    id: int
    name: str
    isthing: int = 1


class _Boxes(Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _SegmentInfo(Struct):
    id: int
    category_id: int
    bbox: Box
    iscrowd: int = 0


class _Segments(Struct):
    image_id: int
    file_name: str
    segments_info: list[_SegmentInfo]


class _Panoptic(Struct):
    images: list[_Image]
    annotations: list[_Segments]
    categories: list[_Category]


def _read_lvis(folder: Path, image: Callable[[_Image], Path | None]) -> Regions:
    path = find_file(folder, "lvis_v1_val.json", "annotations/lvis_v1_val.json")
    return _regions(path, decode(path, _Boxes), image, lambda name: name.replace("_", " "))


def _regions(
    path: Path, file: _Boxes, image: Callable[[_Image], Path | None], spoken: Callable[[str], str] = str
) -> Regions:
    """The boxes of the images that are there; ``image`` gives an image's path, or None if it may be missing."""
    categories = sorted(file.categories, key=lambda category: category.id)
    own_first = _own_first(categories)
    images = {entry.id: image(entry) for entry in file.images}
    regions = []
    for entry in file.annotations:
        place = known(path, images, entry.image_id, "image")
        candidates = known(path, own_first, entry.category_id, "category")
        if place is not None:
            regions.append(Region(place, entry.bbox, candidates, bool(entry.iscrowd)))
    names = tuple(spoken(category.name) for category in categories)
    absent = len(file.annotations) - len(regions)
    return Regions(names, tuple(regions), "xywh", classes=True, absent=absent)


def _classes(folder: Path, name: str) -> tuple[tuple[str, ...], Path, list[Path]]:
    """The names of classes, and the folder that holds a folder for each, in order; ``folder`` itself may be it."""
    names = tuple(read_lines(folder / "classnames.txt"))
    root = folder / name if (folder / name).is_dir() else folder
    return names, root, sorted(path for path in root.iterdir() if path.is_dir())


def _labelled(names: tuple[str, ...], folders: Iterable[tuple[int, Path]]) -> LabelledImages:
    images = [
        (path, label)
        for label, folder in folders
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]
    return LabelledImages(names, tuple(path for path, _ in images), tuple(label for _, label in images))


def _unequal(root: Path, folders: int, names: int) -> BenchmarkError:
    return BenchmarkError(
        f"{root} holds {folders:,} folders of classes, and classnames.txt {names:,} names; write one a line for each."
    )


def _own_first(categories: Sequence[_Category]) -> Mapping[int, tuple[int, ...]]:
    """For each category's number, the rows of all in the order of numbers, its own first."""
    every = tuple(range(len(categories)))
    return {category.id: (row, *every[:row], *every[row + 1 :]) for row, category in enumerate(categories)}


def _spoken(name: str) -> str:
    """The name of a panoptic category as FineCLIP's script says it."""
    return name.replace("_", " ").replace("/", " or ").lower().rstrip(".")
