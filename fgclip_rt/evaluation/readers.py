"""Readers of benchmarks' files, as they are downloaded."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Struct

from ..errors import BenchmarkError
from .data import Box, Captions, Region, Regions

_T = TypeVar("_T")

#: Most captions of an image that the released scripts take.
_CAPTIONS = 5
#: Number of entries of ShareGPT4V's file that the released script takes.
_SHAREGPT4V = 1000


def read_coco_captions(folder: Path) -> Captions:
    """COCO's captions of val2017, the first five of each image."""
    path = _file(folder, "annotations/captions_val2017.json", "captions_val2017.json")
    file = _decode(path, _CocoCaptions)
    captions: dict[int, list[str]] = {image.id: [] for image in file.images}
    for annotation in file.annotations:
        _known(path, captions, annotation.image_id, "image").append(annotation.caption)
    return _join((_image(folder, image.file_name, "val2017"), captions[image.id][:_CAPTIONS]) for image in file.images)


def read_flickr30k(folder: Path) -> Captions:
    """Flickr30k's test split, the first five captions of each image."""
    entries = _decode(_file(folder, "flickr30k_test.json"), list[_FlickrImage])
    return _join((_image(folder, entry.image, "flickr30k-images"), entry.caption[:_CAPTIONS]) for entry in entries)


def read_flickr30k_cna(folder: Path) -> Captions:
    """Flickr30k's test split with Chinese captions."""
    return _numbered(
        _file(folder, "flickr30k_cna_test.txt"), "\t", lambda name: _image(folder, f"{name}.jpg", "flickr30k-images")
    )


def read_coco_cn(folder: Path) -> Captions:
    """COCO-CN's test split, on images of COCO 2014."""

    def image(name: str) -> Path:
        split = re.match(r"COCO_((?:train|val)2014)_\d{12}$", name)
        if split is None:
            raise BenchmarkError(f"pair.txt names {name!r}, which is no image of COCO 2014; download the file again.")
        return _image(folder, f"{name}.jpg", split[1])

    return _numbered(_file(folder, "pair.txt"), None, image)


def read_dci(folder: Path) -> Captions:
    """Densely Captioned Images, all files in the order of their names."""
    files = sorted((folder / "annotations").glob("*.json"))
    if not files:
        raise BenchmarkError(f"{folder / 'annotations'} holds no JSON file; give the folder of DCI with --data.")
    entries = (_decode(file, _DciImage) for file in files)
    return _join((_image(folder, entry.image, "photos"), [entry.extra_caption]) for entry in entries)


def read_sharegpt4v(folder: Path) -> Captions:
    """The first 1,000 captions of ShareGPT4V, on images of SA-1B."""
    entries = _decode(_file(folder, "share-captioner_coco_lcs_sam_1246k_1107.json"), list[_Conversation])
    return _join(
        (_image(folder, Path(entry.image).name, "sam/images"), [entry.conversations[1].value])
        for entry in entries[:_SHAREGPT4V]
    )


def read_urban1k(folder: Path) -> Captions:
    """Urban1k: the first line of each caption, in the order of their numbers."""
    files = sorted((folder / "caption").glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise BenchmarkError(f"{folder / 'caption'} holds no text file; give the folder of Urban1k with --data.")
    return _join((_image(folder, f"{file.stem}.jpg", "image"), [_read_text(file).partition("\n")[0]]) for file in files)


def read_docci(folder: Path) -> Captions:
    """The test split of DOCCI."""
    entries = _decode_lines(_file(folder, "docci_descriptions.jsonlines"), _DocciImage)
    return _join(
        (_image(folder, f"{entry.example_id}.jpg"), [entry.description]) for entry in entries if entry.split == "test"
    )


def read_tabbed(folder: Path) -> Captions:
    """The folder's only text file: a path, a tab and a caption in each line."""
    file = _only(folder, "*.txt")
    return _join((_image(folder, name), [caption]) for name, caption in _split_lines(file, "\t"))


def read_fg_ovd(name: str, folder: Path) -> Regions:
    """A file of FG-OVD: a true and several false texts for a box of an image of COCO 2017."""
    index: dict[str, int] = {}
    regions = []
    for entry in _decode_lines(_file(folder, name, f"fgovd/{name}"), _FgOvdRow):
        texts = entry.pos_expression[:1] + entry.neg_expression
        candidates = tuple(index.setdefault(text, len(index)) for text in texts)
        regions.append(Region(_image(folder, entry.img_path), entry.bbox, candidates))
    return Regions(tuple(index), tuple(regions), "xywh")


def read_box_names(folder: Path) -> Regions:
    """The folder's only JSON file, in COCO's form: boxes to be named by one of all categories."""
    path = _only(folder, "*.json")
    file = _decode(path, _CocoBoxes)
    categories = sorted(file.categories, key=lambda category: category.id)
    rows = {category.id: row for row, category in enumerate(categories)}
    every = tuple(range(len(categories)))
    own_first = {id_: (row, *every[:row], *every[row + 1 :]) for id_, row in rows.items()}
    files = {image.id: _image(folder, image.file_name) for image in file.images}
    regions = (
        Region(
            _known(path, files, entry.image_id, "image"),
            entry.bbox,
            _known(path, own_first, entry.category_id, "category"),
        )
        for entry in file.annotations
    )
    return Regions(tuple(category.name for category in categories), tuple(regions), "xywh")


def read_pairs(file: Path) -> tuple[Captions | None, Regions | None]:
    """Pairs of a CSV file with the columns image, text and, optionally, box.

    Returns:
        The rows without a box and those with one; None if there are none.

    Raises:
        BenchmarkError: the file cannot be read, lacks a column or names no image, or a box is not four numbers.
    """
    captions: dict[Path, list[str]] = {}
    boxed: list[tuple[Path, Box, str]] = []
    for number, row in _csv_rows(file):
        image = _image(file.parent, row["image"])
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


class _CocoBox(Struct):
    image_id: int
    category_id: int
    bbox: Box


class _CocoCategory(Struct):
    id: int
    name: str


class _CocoBoxes(Struct):
    images: list[_CocoImage]
    annotations: list[_CocoBox]
    categories: list[_CocoCategory]


class _FlickrImage(Struct):
    image: str
    caption: list[str]


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


def _join(pairs: Iterable[tuple[Path, list[str]]]) -> Captions:
    images: list[Path] = []
    texts: list[str] = []
    owners: list[int] = []
    for image, captions in pairs:
        owners += [len(images)] * len(captions)
        images.append(image)
        texts += captions
    return Captions(tuple(images), tuple(texts), tuple(owners))


def _known(file: Path, table: Mapping[int, _T], id_: int, kind: str) -> _T:
    if id_ not in table:
        raise BenchmarkError(
            f"{file} has an annotation of the {kind} {id_}, which it does not list; download it again."
        )
    return table[id_]


def _numbered(file: Path, separator: str | None, image: Callable[[str], Path]) -> Captions:
    """Captions of lines ``name#number caption``, gathered by name."""
    captions: dict[str, list[str]] = {}
    for key, caption in _split_lines(file, separator):
        captions.setdefault(key.partition("#")[0], []).append(caption)
    return _join((image(name), texts) for name, texts in captions.items())


def _split_lines(file: Path, separator: str | None) -> Iterator[tuple[str, str]]:
    """Both halves of each line that is not blank; None separates at blanks."""
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        halves = line.strip().split(separator, 1)
        if len(halves) != 2:
            raise BenchmarkError(f"{file}, line {number}, has no caption after its image; download the file again.")
        yield halves[0].strip(), halves[1].strip()


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), strict=True)
    lacking = {"image", "text"} - set(reader.fieldnames or ())
    if lacking:
        raise BenchmarkError(
            f"{file} has no column {min(lacking)!r}; begin it with the line image,text or image,text,box."
        )
    for row in _rows(file, reader):
        if not row["image"] or not row["text"]:
            raise BenchmarkError(f"{file}, line {reader.line_num}, lacks an image or a text; give both.")
        yield reader.line_num, row


def _rows(file: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise BenchmarkError(f"{file} is no CSV file ({error}); close its quotation marks.") from None


def _box(file: Path, number: int, value: str) -> Box:
    try:
        left, top, right, bottom = map(float, value.split(","))
    except ValueError:
        raise BenchmarkError(
            f"{file}, line {number}, has the box {value!r}; write x1,y1,x2,y2 in quotation marks."
        ) from None
    return left, top, right, bottom


def _image(folder: Path, name: str, *subfolders: str) -> Path:
    places = [folder / place / name for place in (*subfolders, "", "images")]
    for path in places:
        if path.is_file():
            return path
    raise BenchmarkError(f"{places[0]} is missing; give the folder that holds the benchmark's images.")


def _file(folder: Path, *names: str) -> Path:
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise BenchmarkError(f"{folder} holds {len(files)} files {pattern}; leave the benchmark's alone in it.")
    return files[0]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{file} cannot be read ({error.strerror}); check the path of the data.") from None


def _read_text(file: Path) -> str:
    try:
        return _read(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{file} is not UTF-8 at byte {error.start:,}; save it as UTF-8.") from None


def _decode(file: Path, kind: type[_T]) -> _T:
    return _decode_bytes(str(file), _read(file), kind)


def _decode_lines(file: Path, kind: type[_T]) -> Iterator[_T]:
    for number, line in enumerate(_read(file).split(b"\n"), 1):
        if line.strip():
            yield _decode_bytes(f"{file}, line {number},", line, kind)


def _decode_bytes(name: str, data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BenchmarkError(f"{name} is not as the benchmark's files are ({error}); download it again.") from None
