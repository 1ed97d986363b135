"""Files of boxes, segments and classes, in miniature and as they are downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgclip_rt.errors import BenchmarkError
from fgclip_rt.evaluation import class_readers as readers
from fgclip_rt.evaluation.benchmarks import BENCHMARKS
from fgclip_rt.evaluation.data import Regions, Segment
from fgclip_rt.evaluation.embedding import read_class_vectors, segment_ids
from fgclip_rt.evaluation.templates import IMAGENET, digest, fill, read_templates

CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 1, "name": "fire_hydrant"}, {"id": 2, "name": "cat"}]


def write(path: Path, content: Any = "") -> Path:
    """A file of this text, or of this value in JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def boxed(image: int, category: int, **more: object) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": [0, 0, 1, 1], **more}


def test_coco_boxes_choose_among_all_categories_in_the_order_of_ids(tmp_path: Path) -> None:
    image = write(tmp_path / "val2017/000000000001.jpg")
    file = {
        "images": [{"id": 5, "file_name": image.name, "coco_url": "http://x"}],
        "categories": CATEGORIES,
        "annotations": [boxed(5, 2, iscrowd=1, segmentation={"counts": [1]}), boxed(5, 3, iscrowd=0)],
    }
    write(tmp_path / "annotations/instances_val2017.json", file)
    data = readers.read_coco_boxes(tmp_path)
    assert data.texts == ("fire_hydrant", "cat", "dog")
    assert [(region.candidates, region.crowd) for region in data.regions] == [((1, 0, 2), True), ((2, 0, 1), False)]
    assert (data.classes, data.box_format, data.absent) == (True, "xywh", 0)
    # BoxClass-CN has the same form, and any name.
    write(tmp_path / "boxes.json", file)
    write(tmp_path / f"images/{image.name}")
    assert [region.candidates for region in readers.read_boxclass_cn(tmp_path).regions] == [(1, 0, 2), (2, 0, 1)]


def test_lvis_takes_the_images_of_val2017_officially_and_all_strictly(tmp_path: Path) -> None:
    there = write(tmp_path / "val2017/000000000001.jpg")
    urls = [f"http://images.cocodataset.org/{split}2017/00000000000{i}.jpg" for i, split in ((1, "val"), (2, "train"))]
    file = {
        "images": [{"id": i, "coco_url": url, "width": 3} for i, url in enumerate(urls)],
        "categories": CATEGORIES,
        "annotations": [boxed(1, 1), boxed(0, 3)],
    }
    write(tmp_path / "lvis_v1_val.json", file)
    lvis = BENCHMARKS["lvis-boxes"]
    data, left_out = lvis.load(tmp_path, "official", None)
    assert isinstance(data, Regions)
    assert data.texts == ("fire hydrant", "cat", "dog")
    assert [(region.image, region.candidates[0]) for region in data.regions] == [(there, 2)]
    assert left_out == 1
    with pytest.raises(BenchmarkError, match=r"train2017/000000000002\.jpg is missing"):
        lvis.load(tmp_path, "strict", None)
    write(tmp_path / "train2017/000000000002.jpg")
    data, left_out = lvis.load(tmp_path, "strict", None)
    assert isinstance(data, Regions)
    assert [region.image.parent.name for region in data.regions] == ["train2017", "val2017"]
    assert left_out == 0
    assert lvis.load(tmp_path, "official", None)[1] == 1


def test_annotations_of_what_a_file_does_not_list_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "val2017/1.jpg")
    listed = {"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "a"}]}
    for image, category, message in ((2, 1, "the image 2"), (1, 2, "the category 2")):
        write(tmp_path / "instances_val2017.json", listed | {"annotations": [boxed(image, category)]})
        with pytest.raises(BenchmarkError, match=message):
            readers.read_coco_boxes(tmp_path)


def panoptic(folder: Path, ids: np.ndarray, segments: list[dict[str, Any]]) -> Path:
    """COCO's panoptic files of one image, whose segments have these numbers by pixel."""
    height, width = ids.shape
    (folder / "val2017").mkdir(parents=True)
    Image.new("RGB", (width, height), "red").save(folder / "val2017/1.jpg")
    picture = folder / "annotations/panoptic_val2017/1.png"
    picture.parent.mkdir(parents=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(picture)
    file = {
        "images": [{"id": 7, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 7, "file_name": "1.png", "segments_info": segments}],
        "categories": [
            {"id": 199, "name": "wall-other_merged", "isthing": 0},
            {"id": 1, "name": "Cup/Mug.", "isthing": 1},
        ],
    }
    write(folder / "annotations/panoptic_val2017.json", file)
    return picture


def test_panoptic_segments_have_boxes_as_the_script_makes_them(tmp_path: Path) -> None:
    ids = np.full((60, 50), 70_000)
    ids[10:30, 5:25] = 300
    segments = [
        {"id": 70_000, "category_id": 199, "bbox": [0, 0, 50, 60], "area": 2600, "iscrowd": 0},
        {"id": 300, "category_id": 1, "bbox": [5, 10, 20, 20], "area": 400, "iscrowd": 1},
    ]
    picture = panoptic(tmp_path, ids, segments)
    data = readers.read_panoptic(tmp_path)
    assert data.texts == ("cup or mug", "wall-other merged")
    assert data.kinds == ("thing", "stuff")
    stuff, thing = data.regions
    rows, columns = np.nonzero(ids == 70_000)
    # The script takes the least and the largest index of the mask for the corners of stuff.
    corners = (columns.min(), rows.min(), columns.max() - columns.min(), rows.max() - rows.min())
    assert stuff.box == corners == (0, 0, 49, 59)
    assert (thing.box, thing.crowd, thing.candidates) == ((5, 10, 20, 20), True, (0, 1))
    assert thing.segment == Segment(picture, 300)
    assert (segment_ids(picture) == ids).all()


def test_panoptic_segments_of_other_sizes_and_beyond_a_hundred_are_left_out(tmp_path: Path) -> None:
    # 8² and 1,024² are taken; stuff is one pixel narrower and lower.
    sizes = [(1, 8, 8), (1, 9, 7), (199, 9, 9), (199, 9, 8), (1, 1024, 1024), (1, 1025, 1024), (199, 1025, 1025)]
    segments = [{"id": 1, "category_id": category, "bbox": [0, 0, width, height]} for category, width, height in sizes]
    panoptic(tmp_path, np.ones((4, 4), int), segments + [segments[1]] * 93 + [segments[0]])
    boxes = [region.box[2:] for region in readers.read_panoptic(tmp_path).regions]
    assert boxes == [(8, 8), (8, 8), (1024, 1024), (1024, 1024)]


def test_imagenet_orders_classes_by_folders_and_v2_by_numbers(tmp_path: Path) -> None:
    for folder, root, names in (
        (tmp_path / "1k", "val", ("n01", "n02")),
        (tmp_path / "v2", "imagenetv2-matched-frequency-format-val", ("0", "10")),
    ):
        write(folder / "classnames.txt", "".join(f"{i}\n" for i in range(2 if root == "val" else 11)))
        for name in names:
            write(folder / root / name / "b.JPEG")
            write(folder / root / name / "a.JPEG")
            write(folder / root / name / "notes.txt")
    one, two = readers.read_imagenet_1k(tmp_path / "1k"), readers.read_imagenet_v2(tmp_path / "v2")
    assert [path.name for path in one.images] == ["a.JPEG", "b.JPEG"] * 2
    assert (one.labels, two.labels) == ((0, 0, 1, 1), (0, 0, 10, 10))
    with pytest.raises(BenchmarkError, match="1k/val/n01 is not named by the number"):
        readers.read_imagenet_v2(write(tmp_path / "1k/val/classnames.txt", "a\n").parent)
    write(tmp_path / "1k/classnames.txt", "a\nb\nc\n")
    with pytest.raises(BenchmarkError, match=r"holds 2 folders of classes.* 3 names"):
        readers.read_imagenet_1k(tmp_path / "1k")
    write(tmp_path / "v2/classnames.txt", "a\n")
    with pytest.raises(BenchmarkError, match=r"holds 2 folders of classes.* 1 names"):
        readers.read_imagenet_v2(tmp_path / "v2")


def test_the_last_batch_of_imagenet_is_left_out_officially(tmp_path: Path) -> None:
    write(tmp_path / "classnames.txt", "a\nb\n")
    for i in range(130):
        write(tmp_path / f"val/n{i // 100}/{i}.JPEG")
    imagenet = BENCHMARKS["imagenet-1k"]
    for protocol, limit, expected in (
        ("official", None, (128, 2)),
        ("strict", None, (130, 0)),
        ("official", 5, (5, 2)),
        ("strict", 129, (129, 0)),
    ):
        data, left_out = imagenet.load(tmp_path, protocol, limit)  # type: ignore[arg-type]
        assert not isinstance(data, Regions)
        assert (len(data.images), left_out) == expected
    for i in range(3):
        (tmp_path / f"val/n1/{i + 100}.JPEG").unlink()
    with pytest.raises(BenchmarkError, match=r"holds 127 images.*--protocol strict"):
        imagenet.load(tmp_path, "official", None)


def test_templates_take_a_class_and_its_article(tmp_path: Path) -> None:
    file = write(tmp_path / "templates.txt", "a photo of {article} {}.\n\nThere is {}, my {}.\n")
    templates = read_templates(file)
    assert templates == ("a photo of {article} {}.", "There is {}, my {}.")
    assert [fill(template, "apple", "This is ") for template in templates] == [
        "This is a photo of an apple.",
        "There is apple, my apple.",
    ]
    assert fill(templates[0], "cat") == "a photo of a cat."
    assert digest(templates) == digest(templates[::-1]) != digest(templates[:1])
    assert not IMAGENET.are(templates)
    for content, message in (("\n", "has no templates"), ("a photo\n", "'a photo', which has no")):
        write(file, content)
        with pytest.raises(BenchmarkError, match=message):
            read_templates(file)


def test_vectors_of_classes_are_read_at_length_one(tmp_path: Path) -> None:
    file = tmp_path / "classes.npy"
    np.save(file, np.array([[3, 4], [0, 2]], np.float64))
    assert read_class_vectors(file, 2, 2).tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 1]]))
    with pytest.raises(BenchmarkError, match=r"holds float64 \[2, 2\]; the benchmark has 3 classes"):
        read_class_vectors(file, 3, 2)
    write(file, "no array")
    with pytest.raises(BenchmarkError, match=r"cannot be read as \.npy"):
        read_class_vectors(file, 2, 2)
