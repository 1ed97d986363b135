"""Files of public benchmarks, in miniature and as they are downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from fgclip_rt.errors import BenchmarkError
from fgclip_rt.evaluation import readers
from fgclip_rt.evaluation.benchmarks import BENCHMARKS
from fgclip_rt.evaluation.data import Captions, Regions


def write(path: Path, content: Any = "") -> Path:
    """A file of this text, or of this value in JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_coco_takes_five_captions_of_each_image_in_the_order_of_images(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"val2017/{number:012}.jpg") for number in (9, 4))
    captions = [(4, "a"), (9, "b"), *((4, f"c{i}") for i in range(5))]
    write(
        tmp_path / "annotations/captions_val2017.json",
        {
            "info": {"year": 2017},
            "images": [{"id": 9, "file_name": first.name, "width": 3}, {"id": 4, "file_name": second.name}],
            "annotations": [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(captions)],
        },
    )
    expected = Captions((first, second), ("b", "a", "c0", "c1", "c2", "c3"), (0, 1, 1, 1, 1, 1))
    assert readers.read_coco_captions(tmp_path) == expected


def test_flickr30k_takes_five_captions(tmp_path: Path) -> None:
    image = write(tmp_path / "flickr30k-images/1.jpg")
    write(tmp_path / "flickr30k_test.json", [{"image": "1.jpg", "caption": list("abcdef")}])
    assert readers.read_flickr30k(tmp_path) == Captions((image,), tuple("abcde"), (0,) * 5)


def test_flickr30k_takes_the_test_split_of_its_other_files(tmp_path: Path) -> None:
    images = tuple(write(tmp_path / f"flickr30k-images/{name}.jpg") for name in ("2", "1"))
    expected = Captions(images, ('"b" | c', "d", "a"), (0, 0, 1))

    results = """image_name| comment_number| comment
1.jpg| 0| a
2.jpg| 0| "b" | c
2.jpg| 1   d
3.jpg| 0| not in the split
"""
    file = write(tmp_path / "results.csv", results)
    with pytest.raises(BenchmarkError, match=r"without its splits; write the names .*test\.txt"):
        readers.read_flickr30k(tmp_path)
    write(tmp_path / "test.txt", "2\n1.jpg\n")
    assert readers.read_flickr30k(tmp_path) == expected
    write(tmp_path / "test.txt", "4\n")
    with pytest.raises(BenchmarkError, match=r"names 4, of which results\.csv has no captions"):
        readers.read_flickr30k(tmp_path)
    write(file, results + "5.jpg, 0, commas\n")
    with pytest.raises(BenchmarkError, match="row 6, is not image"):
        readers.read_flickr30k(tmp_path)

    row = "raw,sentids,split,filename,img_id\n"
    row += (
        '"[""\\""b\\"" | c"", ""d""]","[5, 6]",test,2.jpg,1\n"[""x""]",[7],train,3.jpg,2\n"[""a""]",[8],test,1.jpg,0\n'
    )
    write(tmp_path / "flickr_annotations_30k.csv", row)
    assert readers.read_flickr30k(tmp_path) == expected

    splits = [("2.jpg", "test", ['"b" | c', "d"]), ("3.jpg", "val", ["x"]), ("1.jpg", "test", ["a"])]
    entries = [
        {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": []} for text in texts], "imgid": 0}
        for name, split, texts in splits
    ]
    write(tmp_path / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})
    assert readers.read_flickr30k(tmp_path) == expected


def test_flickr30k_cna_gathers_captions_by_name(tmp_path: Path) -> None:
    images = tuple(write(tmp_path / f"{name}.jpg") for name in ("7", "3"))
    write(tmp_path / "flickr30k_cna_test.txt", "7#0\t一只 猫\n3#0\t狗\n7#1\t猫\n\n")
    assert readers.read_flickr30k_cna(tmp_path) == Captions(images, ("一只 猫", "猫", "狗"), (0, 0, 1))


def test_coco_cn_finds_images_of_both_splits(tmp_path: Path) -> None:
    names = ("COCO_train2014_000000000001", "COCO_val2014_000000000002")
    images = tuple(write(tmp_path / name.split("_")[1] / f"{name}.jpg") for name in names)
    write(tmp_path / "pair.txt", f"{names[0]}#zhm#0 一只 猫\n{names[1]}#zhm#0 狗\n")
    assert readers.read_coco_cn(tmp_path) == Captions(images, ("一只 猫", "狗"), (0, 1))
    write(tmp_path / "pair.txt", "../secret#zhm#0 猫\n")
    with pytest.raises(BenchmarkError, match="no image of COCO 2014"):
        readers.read_coco_cn(tmp_path)


def test_the_released_form_of_coco_cn_gives_five_captions_an_image(tmp_path: Path) -> None:
    """Names of both splits in any order, five numbered captions each, parted by a tab; captions hold blanks."""
    names = [f"COCO_{split}2014_{number:012}" for split, number in (("val", 41), ("train", 7), ("val", 3))]
    for name in names:
        write(tmp_path / name.split("_")[1] / f"{name}.jpg")
    rows = [f"{name}#zhm#{number}\t{name[-1]} 图片 {number} TV" for number in range(5) for name in names]
    write(tmp_path / "pair.txt", "\n".join(rows) + "\n")
    captions, left_out = BENCHMARKS["coco-cn"].load(tmp_path, "official", None)
    assert isinstance(captions, Captions)
    assert [image.stem for image in captions.images] == names
    assert captions.owners == tuple(np.repeat(range(3), 5).tolist())
    assert captions.texts[5:7] == ("7 图片 0 TV", "7 图片 1 TV")
    assert left_out == 0


def test_dci_takes_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in "ba":
        write(tmp_path / f"annotations/{name}.json", {"image": f"{name}.jpg", "extra_caption": name * 3, "mask": {}})
    images = tuple(write(tmp_path / f"photos/{name}.jpg") for name in "ab")
    assert readers.read_dci(tmp_path) == Captions(images, ("aaa", "bbb"), (0, 1))


def test_sharegpt4v_takes_the_first_thousand_by_file_name(tmp_path: Path) -> None:
    image = write(tmp_path / "sa_1.jpg")
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "long"}]
    entry = {"id": "1", "image": "sam/images/sa_1.jpg", "conversations": turns}
    write(tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json", [entry] * 1000 + [entry | {"image": "missing"}])
    assert readers.read_sharegpt4v(tmp_path) == Captions((image,) * 1000, ("long",) * 1000, tuple(range(1000)))


def test_urban1k_takes_first_lines_in_the_order_of_numbers(tmp_path: Path) -> None:
    images = tuple(write(tmp_path / f"image/{number}.jpg") for number in (2, 10))
    write(tmp_path / "caption/10.txt", "ten\nmore")
    write(tmp_path / "caption/2.txt", "two")
    assert readers.read_urban1k(tmp_path) == Captions(images, ("two", "ten"), (0, 1))


def test_docci_takes_the_test_split(tmp_path: Path) -> None:
    image = write(tmp_path / "images/test_00001.jpg")
    rows = [{"example_id": f"{split}_00001", "split": split, "description": split} for split in ("train", "test")]
    write(tmp_path / "docci_descriptions.jsonlines", lines(*rows))
    assert readers.read_docci(tmp_path) == Captions((image,), ("test",), (0,))


def test_tabbed_files_keep_tabs_of_captions_and_their_case(tmp_path: Path) -> None:
    image = write(tmp_path / "a b.jpg")
    write(tmp_path / "any.txt", "a b.jpg\tA red\tcar\n")
    assert readers.read_tabbed(tmp_path) == Captions((image,), ("A red\tcar",), (0,))
    write(tmp_path / "any.txt", "a b.jpg\n")
    with pytest.raises(BenchmarkError, match="line 1, has no caption"):
        readers.read_tabbed(tmp_path)
    write(tmp_path / "other.txt")
    with pytest.raises(BenchmarkError, match="holds 2 files"):
        readers.read_tabbed(tmp_path)


def test_fg_ovd_has_the_true_text_first_and_shares_texts(tmp_path: Path) -> None:
    image = write(tmp_path / "train2017/1.jpg")
    row = {
        "img_path": "train2017/1.jpg",
        "bbox": [10, 2, 3.5, 4],
        "pos_expression": ["t"],
        "neg_expression": ["f", "g"],
    }
    other = row | {"pos_expression": ["g"], "neg_expression": ["t"]}
    write(tmp_path / "h.jsonl", lines(row, other))
    data = readers.read_fg_ovd("h.jsonl", tmp_path)
    assert data.texts == ("t", "f", "g")
    assert [region.candidates for region in data.regions] == [(0, 1, 2), (2, 0)]
    assert {(region.image, region.box) for region in data.regions} == {(image, (10, 2, 3.5, 4))}
    assert data.box_format == "xywh"
    # A limit takes no text that is not asked for; of classes, it takes all.
    (last,) = replace(data, regions=data.regions[1:]).first(1).regions
    assert replace(data, regions=data.regions[1:]).first(1).texts == ("g", "t")
    assert last.candidates == (0, 1)
    assert replace(data, classes=True).first(1) == replace(data, classes=True, regions=data.regions[:1])


def test_the_released_form_of_fg_ovd_has_two_to_ten_false_texts(tmp_path: Path) -> None:
    """Images of both splits, boxes with fractions, one true text in a list, and of ten false texts sometimes fewer."""
    rows = []
    for number, negatives in enumerate((10, 2, 7, 9)):
        split = "train2017" if number % 2 else "val2017"
        image = write(tmp_path / "coco" / split / f"{number:012}.jpg")
        rows.append(
            {
                "img_path": f"{split}/{image.name}",
                "bbox": [359.17, 146.17, 112.45, 213.57],
                "pos_expression": [f"A dark brown wooden stool {number}."],
                "neg_expression": [f"A light {index} wooden stool {number}." for index in range(negatives)],
            }
        )
    write(tmp_path / "coco/fgovd/h_attributes_llava.jsonl", lines(*rows))
    data, _ = BENCHMARKS["fg-ovd-hard"].load(tmp_path / "coco", "official", None)
    assert isinstance(data, Regions)
    assert [len(region.candidates) for region in data.regions] == [11, 3, 8, 10]
    assert [data.texts[region.candidates[0]] for region in data.regions] == [
        f"A dark brown wooden stool {number}." for number in range(4)
    ]
    assert len(data.texts) == 4 + 10 + 2 + 7 + 9
    assert data.regions[0].box == (359.17, 146.17, 112.45, 213.57)


def test_corners_for_the_sizes_of_fg_ovd_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80)).save(tmp_path / "1.png")

    def read(*boxes: tuple[float, float, float, float]) -> int:
        rows = [{"img_path": "1.png", "bbox": box, "pos_expression": ["t"], "neg_expression": ["f"]} for box in boxes]
        write(tmp_path / "h.jsonl", lines(*rows))
        return len(readers.read_fg_ovd("h.jsonl", tmp_path).regions)

    with pytest.raises(BenchmarkError, match=r"h\.jsonl has boxes x1,y1,x2,y2, such as \(60\.0, 10\.0, 90\.0, 70\.0\)"):
        read((0, 0, 20, 20), (60, 10, 90, 70))
    # A box over the border by a rounded pixel, and boxes of which one cannot be corners.
    assert read((10, 10, 90.9, 70.9)) == 1
    assert read((60, 10, 90, 70), (50, 20, 10, 10)) == 2


def test_pairs_part_into_captions_and_boxes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name) for name in ("1.jpg", "2.jpg"))
    file = write(
        tmp_path / "pairs.csv", 'text,image,box\none,1.jpg,\n"a, b",2.jpg,"1,2,3,4"\nuno,1.jpg,\nc,2.jpg,"5,6,7,8.5"\n'
    )
    captions, regions = readers.read_pairs(file)
    assert captions == Captions((first,), ("one", "uno"), (0, 0))
    assert regions is not None
    assert [(r.image, r.box, r.candidates) for r in regions.regions] == [
        (second, (1, 2, 3, 4), (0, 1)),
        (second, (5, 6, 7, 8.5), (1, 0)),
    ]
    assert (regions.texts, regions.box_format) == (("a, b", "c"), "xyxy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\n1.jpg,a\n", "no column 'text'"),
        ("", "no column 'image'"),
        ("image,text\n", "has no pairs"),
        ("image,text\n1.jpg,\n", "line 2, lacks"),
        ("image,text\n2.jpg,a\n", "2.jpg is missing"),
        ('image,text,box\n1.jpg,a,"1,2,3"\n', "has the box '1,2,3'"),
        ("image,text\n1.jpg\n", "line 2, lacks"),
        ('image,text\n1.jpg,"a\n', "is no CSV file"),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path / "1.jpg")
    with pytest.raises(BenchmarkError, match=message):
        readers.read_pairs(write(tmp_path / "pairs.csv", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "Expected `array`"),
        ('[{"image": "1.jpg"}]', "missing required field `caption`"),
        ("[", "truncated"),
        ('[{"image": "2.jpg", "caption": ["a"]}]', "2.jpg is missing"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path / "flickr30k_test.json", content)
    with pytest.raises(BenchmarkError, match=message):
        readers.read_flickr30k(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read, name in (
        (readers.read_coco_captions, "captions_val2017.json"),
        (readers.read_dci, "annotations"),
        (readers.read_urban1k, "caption"),
        (readers.read_tabbed, "holds 0 files"),
    ):
        with pytest.raises(BenchmarkError, match=name):
            read(tmp_path)


def test_a_limit_takes_whole_images() -> None:
    captions = Captions((Path("1"), Path("2")), ("a", "b", "c"), (1, 0, 0))
    assert captions.first(1) == Captions((Path("1"),), ("b", "c"), (0, 0))
    assert captions.first(None) == captions


def test_captions_of_images_that_a_file_does_not_list_are_refused(tmp_path: Path) -> None:
    file = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 2, "caption": "a"}]}
    write(tmp_path / "captions_val2017.json", file)
    with pytest.raises(BenchmarkError, match="the image 2"):
        readers.read_coco_captions(tmp_path)


def test_entries_without_texts_are_refused(tmp_path: Path) -> None:
    row = {"img_path": "1.jpg", "bbox": [0, 0, 1, 1], "pos_expression": ["a"], "neg_expression": ["b"]}
    for lacking in ("pos_expression", "neg_expression"):
        write(tmp_path / "h.jsonl", lines(row | {lacking: []}))
        with pytest.raises(BenchmarkError, match=f"line 1, is not as .*{lacking}"):
            readers.read_fg_ovd("h.jsonl", tmp_path)
    write(
        tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json",
        [{"image": "1.jpg", "conversations": [{"value": "only a question"}]}],
    )
    with pytest.raises(BenchmarkError, match="conversations"):
        readers.read_sharegpt4v(tmp_path)


def test_texts_in_another_encoding_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes("image,text\n1.jpg,狗\n".encode("gb18030"))
    with pytest.raises(BenchmarkError, match="is not UTF-8 at byte 17"):
        readers.read_pairs(file)


def test_a_byte_order_mark_and_lines_within_a_cell_are_read(tmp_path: Path) -> None:
    image = write(tmp_path / "1.jpg")
    (tmp_path / "pairs.csv").write_bytes(b'\xef\xbb\xbfimage,text\r\n1.jpg,"a\nb"\r\n')
    assert readers.read_pairs(tmp_path / "pairs.csv") == (Captions((image,), ("a\nb",), (0,)), None)
