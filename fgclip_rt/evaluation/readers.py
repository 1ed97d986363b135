"""Readers of captions, of FG-OVD and of a user's pairs, as the files are downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Struct

from ..errors import BenchmarkError
from ..image_files import identify, opened
from .data import Box, Captions, Region, Regions
from .files import (
    csv_rows,
    decode,
    decode_bytes,
    decode_lines,
    find_file,
    find_image,
    known,
    only_file,
    read_lines,
    read_text,
)

#: Most captions of an image that the released scripts take.
_CAPTIONS = 5
#: Pixels by which a rounded box may reach over its image's border.
_ROUNDED = 1
#: Number of entries of ShareGPT4V's file that the released script takes.
_SHAREGPT4V = 1000


def read_coco_captions(folder: Path) -> Captions:
    """COCO's captions of val2017, the first five of each image."""
    path = find_file(folder, "annotations/captions_val2017.json", "captions_val2017.json")
    file = decode(path, _CocoCaptions)
    captions: dict[int, list[str]] = {image.id: [] for image in file.images}
    for annotation in file.annotations:
        known(path, captions, annotation.image_id, "image").append(annotation.caption)
    return _join(
        (find_image(folder, image.file_name, "val2017"), captions[image.id][:_CAPTIONS]) for image in file.images
    )


def read_flickr30k(folder: Path) -> Captions:
    """Flickr30k's test split, the first five captions of each image, from the first of its usual files that is there.

    ``flickr30k_test.json`` holds the split alone. Karpathy's ``dataset_flickr30k.json`` and
    ``flickr_annotations_30k.csv`` name each image's split. ``results.csv`` has no splits, so that ``test.txt`` must
    list the names of the split's images.
    """
    forms = {
        "flickr30k_test.json": _flickr_listed,
        "dataset_flickr30k.json": _flickr_karpathy,
        "flickr_annotations_30k.csv": _flickr_annotated,
        "results.csv": _flickr_results,
    }
    file = find_file(folder, *forms)
    entries = forms[file.name](file)
    return _join((find_image(folder, name, "flickr30k-images"), captions[:_CAPTIONS]) for name, captions in entries)


def read_flickr30k_cna(folder: Path) -> Captions:
    """Flickr30k's test split with Chinese captions."""
    return _numbered(
        find_file(folder, "flickr30k_cna_test.txt"),
        "\t",
        lambda name: find_image(folder, f"{name}.jpg", "flickr30k-images"),
    )


def read_coco_cn(folder: Path) -> Captions:
    """COCO-CN's test split, on images of COCO 2014."""

    def image(name: str) -> Path:
        split = re.match(r"COCO_((?:train|val)2014)_\d{12}$", name)
        if split is None:
            raise BenchmarkError(f"pair.txt names {name!r}, which is no image of COCO 2014; download the file again.")
        return find_image(folder, f"{name}.jpg", split[1])

    return _numbered(find_file(folder, "pair.txt"), None, image)


def read_dci(folder: Path) -> Captions:
    """Densely Captioned Images, all files in the order of their names."""
    files = sorted((folder / "annotations").glob("*.json"))
    if not files:
        raise BenchmarkError(f"{folder / 'annotations'} holds no JSON file; give the folder of DCI with --data.")
    entries = (decode(file, _DciImage) for file in files)
    return _join((find_image(folder, entry.image, "photos"), [entry.extra_caption]) for entry in entries)


def read_sharegpt4v(folder: Path) -> Captions:
    """The first 1,000 captions of ShareGPT4V, on images of SA-1B."""
    entries = decode(find_file(folder, "share-captioner_coco_lcs_sam_1246k_1107.json"), list[_Conversation])
    return _join(
        (find_image(folder, Path(entry.image).name, "sam/images"), [entry.conversations[1].value])
        for entry in entries[:_SHAREGPT4V]
    )


def read_urban1k(folder: Path) -> Captions:
    """Urban1k: the first line of each caption, in the order of their numbers."""
    files = sorted((folder / "caption").glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise BenchmarkError(f"{folder / 'caption'} holds no text file; give the folder of Urban1k with --data.")
    return _join(
        (find_image(folder, f"{file.stem}.jpg", "image"), [read_text(file).partition("\n")[0]]) for file in files
    )


def read_docci(folder: Path) -> Captions:
    """The test split of DOCCI."""
    entries = decode_lines(find_file(folder, "docci_descriptions.jsonlines"), _DocciImage)
    return _join(
        (find_image(folder, f"{entry.example_id}.jpg"), [entry.description])
        for entry in entries
        if entry.split == "test"
    )


def read_tabbed(folder: Path) -> Captions:
    """The folder's only text file: a path, a tab and a caption in each line."""
    file = only_file(folder, "*.txt")
    return _join((find_image(folder, name), [caption]) for name, caption in _split_lines(file, "\t"))


def read_fg_ovd(name: str, folder: Path) -> Regions:
    """A file of FG-OVD: a true and several false texts for a box of an image of COCO 2017.

    The released boxes are x, y, width, height.

    Raises:
        BenchmarkError: a file cannot be read, or the boxes are corners.
    """
    index: dict[str, int] = {}
    regions = []
    for entry in decode_lines(find_file(folder, name, f"fgovd/{name}"), _FgOvdRow):
        texts = entry.pos_expression[:1] + entry.neg_expression
        candidates = tuple(index.setdefault(text, len(index)) for text in texts)
        regions.append(Region(find_image(folder, entry.img_path), entry.bbox, candidates))
    _check_sizes(name, regions)
    return Regions(tuple(index), tuple(regions), "xywh")


def read_pairs(file: Path) -> tuple[Captions | None, Regions | None]:
    """Pairs of a CSV file with the columns image, text and, optionally, box.

    Returns:
        The rows without a box and those with one; None if there are none.

    Raises:
        BenchmarkError: the file cannot be read, lacks a column or names no image, or a box is not four numbers.
    """
    captions: dict[Path, list[str]] = {}
    boxed: list[tuple[Path, Box, str]] = []
    for number, row in _pairs(file):
        image = find_image(file.parent, row["image"])
        box = row.get("box")
        if box:
            boxed.append((image, _box(file, number, box), row["text"]))
        else:
            captions.setdefault(image, []).append(row["text"])
    if not captions and not boxed:
        raise BenchmarkError(f"{file} has no pairs; write one image and text in each line after the first.")
    texts = {text: index for index, text in enumerate(dict.fromkeys(text for _, _, text in boxed))}
    regions = tuple(
        Region(image, box, (texts[text], *(index for other, index in texts.items() if other != text)))
        for image, box, text in boxed
    )
    return (
        _join(captions.items()) if captions else None,
        Regions(tuple(texts), regions, "xyxy") if regions else None,
    )


class _CocoImage(Struct):
    id: int
    file_name: str


class _CocoCaption(Struct):
    image_id: int
    caption: str


class _CocoCaptions(Struct):
    images: list[_CocoImage]
    annotations: list[_CocoCaption]


class _FlickrImage(Struct):
    image: str
    caption: list[str]


class _Sentence(Struct):
    raw: str


class _KarpathyImage(Struct):
    filename: str
    split: str
    sentences: list[_Sentence]


class _Karpathy(Struct):
    images: list[_KarpathyImage]


class _DciImage(Struct):
    image: str
    extra_caption: str


class _Turn(Struct):
    value: str


class _Conversation(Struct):
    image: str
    conversations: Annotated[list[_Turn], msgspec.Meta(min_length=2)]


class _DocciImage(Struct):
    example_id: str
    split: str
    description: str


class _FgOvdRow(Struct):
    img_path: str
    bbox: Box
    pos_expression: Annotated[list[str], msgspec.Meta(min_length=1)]
    neg_expression: Annotated[list[str], msgspec.Meta(min_length=1)]


def _flickr_listed(file: Path) -> list[tuple[str, list[str]]]:
    return [(entry.image, entry.caption) for entry in decode(file, list[_FlickrImage])]


def _flickr_karpathy(file: Path) -> list[tuple[str, list[str]]]:
    images = decode(file, _Karpathy).images
    return [(image.filename, [each.raw for each in image.sentences]) for image in images if image.split == "test"]


def _flickr_annotated(file: Path) -> list[tuple[str, list[str]]]:
    return [
        (row["filename"], decode_bytes(f"{file}, line {number},", row["raw"], list[str]))
        for number, row in csv_rows(file, ("raw", "split", "filename"), "download it again")
        if row["split"] == "test"
    ]


def _flickr_results(file: Path) -> list[tuple[str, list[str]]]:
    names = file.with_name("test.txt")
    if not names.is_file():
        raise BenchmarkError(
            f"{file} holds all of Flickr30k without its splits; write the names of the 1,000 test images to {names}."
        )
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(file)[1:], 2):
        # In the released file, one row lacks the second bar. Captions hold quotation marks that are not closed.
        row = re.match(r"([^|]+)\|\s*\d+\s*\|?\s*(.+)", line)
        if row is None:
            raise BenchmarkError(f"{file}, row {number}, is not image|number|caption; download it again.")
        captions.setdefault(Path(row[1].strip()).stem, []).append(row[2])
    listed = [Path(name).stem for name in read_lines(names)]
    unknown = next((name for name in listed if name not in captions), None)
    if unknown is not None:
        raise BenchmarkError(f"{names} names {unknown}, of which {file.name} has no captions; correct the list.")
    return [(f"{name}.jpg", captions[name]) for name in listed]


def _check_sizes(name: str, regions: Sequence[Region]) -> None:
    """Refuse boxes that are x1, y1, x2, y2 instead of x, y, width, height.

    Corners always increase, which sizes do in few boxes. Where all do, those of sizes still end within their images.

    Raises:
        BenchmarkError: all boxes may be corners, and one reaches over its image's border if it is not.
    """
    if any(width <= x or height <= y for x, y, width, height in (region.box for region in regions)):
        return
    for region in regions:
        x, y, width, height = region.box
        with opened(region.image, str(region.image)) as file:
            image_width, image_height = identify(file, str(region.image)).size
        if x + width > image_width + _ROUNDED or y + height > image_height + _ROUNDED:
            raise BenchmarkError(
                f"{name} has boxes x1,y1,x2,y2, such as {region.box}, and the released file has x,y,width,height; "
                "download it again."
            )


def _join(pairs: Iterable[tuple[Path, list[str]]]) -> Captions:
    images: list[Path] = []
    texts: list[str] = []
    owners: list[int] = []
    for image, captions in pairs:
        owners += [len(images)] * len(captions)
        images.append(image)
        texts += captions
    return Captions(tuple(images), tuple(texts), tuple(owners))


def _numbered(file: Path, separator: str | None, image: Callable[[str], Path]) -> Captions:
    """Captions of lines ``name#number caption``, gathered by name."""
    captions: dict[str, list[str]] = {}
    for key, caption in _split_lines(file, separator):
        captions.setdefault(key.partition("#")[0], []).append(caption)
    return _join((image(name), texts) for name, texts in captions.items())


def _split_lines(file: Path, separator: str | None) -> Iterator[tuple[str, str]]:
    """Both halves of each line that is not blank; None separates at blanks."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        halves = line.strip().split(separator, 1)
        if len(halves) != 2:
            raise BenchmarkError(f"{file}, line {number}, has no caption after its image; download the file again.")
        yield halves[0].strip(), halves[1].strip()


def _pairs(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    remedy = "begin it with the line image,text or image,text,box"
    for number, row in csv_rows(file, ("image", "text"), remedy):
        if not row["image"] or not row["text"]:
            raise BenchmarkError(f"{file}, line {number}, lacks an image or a text; give both.")
        yield number, row


def _box(file: Path, number: int, value: str) -> Box:
    try:
        left, top, right, bottom = map(float, value.split(","))
    except ValueError:
        raise BenchmarkError(
            f"{file}, line {number}, has the box {value!r}; write x1,y1,x2,y2 in quotation marks."
        ) from None
    return left, top, right, bottom
