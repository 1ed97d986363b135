"""Figures of classes: of boxes, segments and images; and runs that are stopped and go on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

import fgclip_rt
from fgclip_rt.batching import Failure
from fgclip_rt.dense import DenseImage
from fgclip_rt.errors import BenchmarkError, ImageError
from fgclip_rt.evaluation.class_readers import read_coco_boxes, read_imagenet_1k, read_panoptic
from fgclip_rt.evaluation.data import Captions, LabelledImages, Region, Regions, Segment
from fgclip_rt.evaluation.embedding import embed_classes, embed_regions, embed_texts
from fgclip_rt.evaluation.keeping import kept
from fgclip_rt.evaluation.measures import class_mean, class_mean_interval, interval, named
from fgclip_rt.evaluation.running import measure_captions, measure_images, measure_regions
from fgclip_rt.model import EmbeddedBatch, Model
from fgclip_rt.pocket.captions import box_caption
from fgclip_rt.pocket.scenes import Scene, draw, make_scene
from helpers import run_command

SCENES = 8
TEMPLATES = ("{}", "a picture with {}")

Drawn = tuple[Path, list[Scene], list[str]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """Drawn scenes in COCO's forms of boxes and of segments, and in ImageNet's form; and the classes' names."""
    folder = tmp_path_factory.mktemp("classes")
    scenes = [make_scene(seed, "test") for seed in range(SCENES)]
    names = list(dict.fromkeys(box_caption(thing.look, "en", 0) for scene in scenes for thing in scene.things))
    categories = [{"id": number, "name": name, "isthing": number % 2} for number, name in enumerate(names)]
    (folder / "val2017").mkdir()
    (folder / "panoptic_val2017").mkdir()
    images, boxes, segments = [], [], []
    for index, scene in enumerate(scenes):
        file = f"{index:012}.png"
        draw(scene).save(folder / "val2017" / file)
        images.append({"id": index, "file_name": file})
        ids = np.zeros((scene.height, scene.width), np.uint8)
        own_segments = []
        for number, thing in enumerate(scene.things, 1):
            left, top, right, bottom = map(int, thing.box)
            category = names.index(box_caption(thing.look, "en", 0))
            box = [left, top, right - left, bottom - top]
            boxes.append({"image_id": index, "category_id": category, "bbox": box, "iscrowd": int(number == 2)})
            ids[top:bottom, left:right] = number
            own_segments.append({"id": number, "category_id": category, "bbox": box, "iscrowd": 0})
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(folder / "panoptic_val2017" / file)
        segments.append({"image_id": index, "file_name": file, "segments_info": own_segments})
        own = folder / "val" / f"n{index % 2}"
        own.mkdir(parents=True, exist_ok=True)
        (own / file).write_bytes((folder / "val2017" / file).read_bytes())
    (folder / "classnames.txt").write_text("star\ncircle\n")
    (folder / "templates.txt").write_text("\n".join(TEMPLATES))
    for name, listed in (("instances", boxes), ("panoptic", segments)):
        content = {"images": images, "annotations": listed, "categories": categories}
        (folder / f"{name}_val2017.json").write_text(json.dumps(content))
    return folder, scenes, names


@pytest.fixture(scope="module")
def class_texts(pocket: Model, drawn: Drawn) -> np.ndarray:
    with kept() as keeping:
        return embed_classes(pocket, drawn[2], ("{}",), "box", keeping)


def test_a_class_is_the_unit_mean_of_its_templates(pocket: Model) -> None:
    done: list[None] = []
    with kept() as keeping:
        found = embed_classes(
            pocket, ["red star", "cat"], ["a {}", "{}"], "box", keeping, lambda: done.append(None), opening="See "
        )
    for name, vector in zip(["red star", "cat"], found, strict=True):
        mean = pocket.embed_texts([f"See a {name}", name], "box").mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert len(done) == 2


def test_boxes_in_the_form_of_coco_get_the_scenes_own_figures(
    pocket: Model, drawn: Drawn, class_texts: np.ndarray
) -> None:
    folder, scenes, names = drawn
    rights = []
    for scene in scenes:
        regions = pocket.dense(draw(scene)).regions([thing.box for thing in scene.things])
        own = [names.index(box_caption(thing.look, "en", 0)) for thing in scene.things]
        rights += named(regions, class_texts, own).tolist()
    top1, top5 = measure_regions(pocket, read_coco_boxes(folder), (1, 5), texts=class_texts, skips_boxes=True)
    assert top1.rights.tolist() == rights
    assert 0.5 < top1.share == sum(rights) / len(rights) <= top5.share
    assert top1.labels is not None
    assert set(top1.labels.tolist()) == set(range(len(names)))
    # Strictly, a box of a crowd is no question: each scene's second.
    strict, _ = measure_regions(pocket, read_coco_boxes(folder), (1, 5), "strict", texts=class_texts)
    assert strict.total == len(rights) - sum(len(scene.things) > 1 for scene in scenes)


def test_images_are_named_by_the_nearest_class(pocket: Model, drawn: Drawn) -> None:
    data = read_imagenet_1k(drawn[0])
    texts = pocket.embed_texts(data.texts)
    patches = 64
    images = pocket.embed_images([str(image) for image in data.images], max_num_patches=patches)
    rights = (images @ texts.T).argmax(axis=1) == np.array(data.labels)
    (rate,) = measure_images(pocket, data, texts, (1,), max_num_patches=patches)
    assert rate.rights.tolist() == rights.tolist()
    tied = np.stack([texts[0], texts[0]])
    assert [measure_images(pocket, data, tied, (1,), protocol)[0].share for protocol in ("official", "strict")] == [
        1,
        0,
    ]
    with pytest.raises(BenchmarkError, match="no images"):
        measure_images(pocket, LabelledImages((), (), ()), texts, (1,))


def test_a_mean_over_classes_weighs_rare_classes_as_common_ones() -> None:
    right, labels = np.array([True, False, False, True, False]), np.array([4, 4, 4, 9, 9], np.int32)
    assert class_mean(right, labels) == pytest.approx((1 / 3 + 1 / 2) / 2)
    # A third in half precision is 0.333251953125.
    assert class_mean(right, labels, half=True) == pytest.approx((0.333251953125 + 1 / 2) / 2, abs=1e-9)
    groups = np.arange(200, dtype=np.int32)
    even = np.arange(200) % 2 == 0
    one_class = np.zeros(200, np.int32)
    assert class_mean_interval(even, one_class, groups) == pytest.approx(interval(even, groups), abs=0.01)
    # Each class is all right or all wrong, so that a sample's mean is one half whenever it holds both.
    assert class_mean_interval(even, even.astype(np.int32), groups) == (0.5, 0.5)


def test_only_the_official_protocol_rounds_the_shares_of_classes(
    square_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fgclip_rt.load(square_path("fineclip"), device="cpu")
    # One of three boxes lies at its class, and none is of the other.
    vectors = np.eye(2, dtype=np.float32)[[0, 1, 1]]
    monkeypatch.setattr("fgclip_rt.evaluation.running.embed_regions", lambda *_, **__: vectors)
    regions = tuple(Region(Path("1.jpg"), (0, 0, 9, 9), (0, 1)) for _ in vectors)
    data = Regions(("wall", "cat"), regions, "xywh", classes=True, kinds=("stuff", "thing"))
    for protocol, share in (("official", 0.333251953125), ("strict", 1 / 3)):
        rates = measure_regions(
            model,
            data,
            (1,),
            protocol,  # type: ignore[arg-type]
            texts=np.eye(2, dtype=np.float32),
            by_mask=True,
            mean_over_classes=True,
        )
        # There is no thing, so that there is no figure of things.
        assert [(rate.name.split()[0], rate.share) for rate in rates] == [("region", share), ("stuff", share)]


def test_segments_give_means_over_things_and_stuff(square_path: Callable[[str], Path], drawn: Drawn) -> None:
    model = fgclip_rt.load(square_path("fineclip"), device="cpu")
    data = read_panoptic(drawn[0])
    vectors = []
    for region in data.regions:
        assert region.segment is not None
        mask = np.asarray(Image.open(region.segment.file))[..., 0] == region.segment.id
        dense = model.dense(region.image)
        touched = np.zeros(dense.grid, bool)
        height, width = dense.grid
        for y, x in zip(*np.nonzero(mask), strict=True):
            touched[y * height // mask.shape[0], x * width // mask.shape[1]] = True
        vectors.append(dense.masks(touched[None])[0])
    with kept() as keeping:
        official = embed_regions(model, data, "official", keeping, by_mask=True)
        strict = embed_regions(model, data, "strict", keeping, by_mask=True)
        texts = embed_texts(model, data.texts, "box", keeping)
    np.testing.assert_allclose(official, vectors, atol=1e-6)
    assert np.abs(strict - official).max() > 1e-4
    rates = measure_regions(model, data, (1,), texts=texts, by_mask=True, mean_over_classes=True)
    own = np.array([region.candidates[0] for region in data.regions], np.int32)
    right = (official @ texts.T).argmax(axis=1) == own
    thing = np.array([data.kinds is not None and data.kinds[label] == "thing" for label in own])
    for rate, name, part in zip(rates, ("region", "stuff", "thing"), (thing | True, ~thing, thing), strict=True):
        assert rate.name == f"{name} top-1, mean over classes"
        assert rate.share == class_mean(right[part], own[part], half=True)
        assert rate.total == part.sum()
    wrong = replace(data.regions[0], segment=Segment(drawn[0] / "panoptic_val2017/000000000000.png", 9))
    with kept() as keeping, pytest.raises(BenchmarkError, match=r"000000000000\.png has no pixel of its segment 9"):
        embed_regions(model, replace(data, regions=(wrong,)), "official", keeping, by_mask=True)


class StoppedError(Exception):
    """A run is stopped."""


def stop_after(count: int) -> Callable[[], None]:
    """A function that may be called so many times."""
    left = [None] * count

    def done() -> None:
        if not left:
            raise StoppedError
        left.pop()

    return done


def test_images_and_texts_that_are_there_are_not_embedded_again(
    pocket: Model, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    for index in range(6):
        images.append(tmp_path / f"{index}.png")
        # Of one size, so that two make a batch and come in order.
        draw(drawn[1][index]).resize((64, 64)).save(images[-1])
    monkeypatch.setattr(type(pocket.backend), "batch_size", lambda *_: 2)
    captions = Captions(tuple(images), tuple(f"text {index}" for index in range(6)), tuple(range(6)))
    expected = measure_captions(pocket, captions, "short", (1,))
    work = tmp_path / "work"
    with pytest.raises(StoppedError), kept(work) as keeping:
        measure_captions(pocket, captions, "short", (1,), done=stop_after(3), keeping=keeping)
    images[0].touch()
    asked: list[str] = []
    iter_images = Model.iter_images

    def watched(self: Model, given: Iterator[str], patches: int | None) -> Iterator[EmbeddedBatch | Failure]:
        def noted() -> Iterator[str]:
            for image in given:
                asked.append(image)
                yield image

        return iter_images(self, noted(), patches)

    monkeypatch.setattr(Model, "iter_images", watched)
    monkeypatch.setattr(Model, "embed_texts", None)
    with kept(work) as keeping:
        rates = measure_captions(pocket, captions, "short", (1,), done=stop_after(6), keeping=keeping)
        # Six texts and the two whole batches of images, less the one that was changed.
        assert keeping.found == 6 + 4 - 1
    assert asked == [str(images[index]) for index in (0, 4, 5)]
    assert [rate.rights.tolist() for rate in rates] == [rate.rights.tolist() for rate in expected]
    assert not list(work.iterdir())


def test_vectors_of_another_precision_or_kind_are_not_taken_up(pocket: Model, tmp_path: Path) -> None:
    int8 = fgclip_rt.load(pocket.bundle.path, device="cpu", precision="int8")
    texts = ["one", "two"]

    def found(model: Model, texts: list[str], walk_type: str) -> int:
        # An end by an error keeps what is there.
        with contextlib.suppress(StoppedError), kept(tmp_path) as keeping:
            embed_texts(model, texts, walk_type, keeping)
            raise StoppedError
        return keeping.found

    assert found(pocket, texts, "short") == 0
    assert found(pocket, texts, "short") == 2
    assert found(int8, texts, "short") == found(pocket, texts, "box") == found(pocket, texts[::-1], "short") == 0


def test_regions_that_are_there_run_no_tower(
    pocket: Model, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_coco_boxes(drawn[0])
    runs: list[object] = []
    dense = Model.dense

    def counted(self: Model, image: str) -> object:
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(image)
        return dense(self, image)

    monkeypatch.setattr(Model, "dense", counted)
    with pytest.raises(KeyboardInterrupt), kept(tmp_path) as keeping:
        embed_regions(pocket, data, "official", keeping)
    first = list(runs)
    runs.clear()
    monkeypatch.setattr(Model, "dense", lambda self, image: (runs.append(image), dense(self, image))[1])
    with kept(tmp_path) as keeping:
        resumed = embed_regions(pocket, data, "official", keeping)
    assert len(first) == 3
    assert len(runs) == SCENES - 3
    assert not set(first) & set(runs)
    with kept() as keeping:
        np.testing.assert_array_equal(resumed, embed_regions(pocket, data, "official", keeping))


def test_the_command_takes_templates_and_tells_classes(pocket_path: Path, drawn: Drawn, tmp_path: Path) -> None:
    folder, _, names = drawn
    command = ("evaluate", pocket_path, "--benchmark", "coco-boxes", "--data", folder, "--limit", 6)
    assert "80 templates of CLIP's notebook" in run_command(*command, status=1).stderr
    templated = (*command, "--templates", folder / "templates.txt", "--work", tmp_path / "work")
    report = json.loads(run_command(*templated, "--json").stdout)
    assert [figure["name"] for figure in report["figures"]] == ["region top-1", "region top-5"]
    assert sum(entry["total"] for entry in report["classes"]) == 6
    assert sum(entry["right"] for entry in report["classes"]) == report["figures"][0]["right"]
    assert {entry["name"] for entry in report["classes"]} <= set(names)
    settings = report["settings"]
    assert (settings["templates"], settings["official_templates"], settings["boxes"]) == (2, False, "xywh")
    said = run_command(*templated, "--protocol", "strict").stdout
    assert "templates 2, not known to be the benchmark's own; boxes xywh; left out" in said
    vectors = tmp_path / "classes.npy"
    np.save(vectors, np.eye(len(names), 96, dtype=np.float32))
    assert "the model vectors of" in run_command(*command, "--class-vectors", vectors, status=1).stderr
    refused = ("evaluate", pocket_path, "--benchmark", "dci", "--data", folder, "--templates", folder / "templates.txt")
    assert "dci has no classes" in run_command(*refused, status=1).stderr


def test_the_command_says_where_vectors_are_kept(
    pocket_path: Path, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", pocket_path, "--benchmark", "coco-boxes", "--data", drawn[0])
    command = (*command, "--templates", drawn[0] / "templates.txt", "--work", tmp_path / "work")
    whole = run_command(*command, "--json").stdout
    dense = Model.dense

    def failing(self: Model, image: str) -> DenseImage:
        if image.endswith("1.png"):
            raise ImageError("the disk fails; restore it.")
        return dense(self, image)

    monkeypatch.setattr(Model, "dense", failing)
    said = run_command(*command, status=1).stderr
    assert "vectors are kept in" in said
    assert "the disk fails" in said
    monkeypatch.setattr(Model, "dense", dense)
    resumed = run_command(*command, "--json")
    assert "vectors were there from a run that was stopped" in resumed.stderr
    assert resumed.stdout == whole
