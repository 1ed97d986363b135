"""Searches by texts, images and regions: exact, in the right place, and only with the model that made the index."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from indexing import NAME, bring_up_to_date
from numpy.testing import assert_allclose
from PIL import Image

import fgclip_rt
from fgclip_rt.errors import ArgumentError, IndexFileError
from fgclip_rt.evaluation.measures import GALLERY, retrieved
from fgclip_rt.index import ImageIndex, Query, find
from fgclip_rt.index.duplicates import find_duplicates, linked
from fgclip_rt.index.picture import draw_hits
from fgclip_rt.model import Model
from fgclip_rt.pocket.captions import LANGUAGES, box_caption, short_caption, state
from fgclip_rt.pocket.scenes import draw, make_scene
from fgclip_rt.scores import box_around_largest
from helpers import another_export, another_space, assert_one_sentence


@pytest.fixture
def index(pocket: Model, photos: Path, output: Path) -> ImageIndex:
    bring_up_to_date(pocket, photos, output)
    return ImageIndex(output)


def test_hits_are_the_largest_cosines_in_order(pocket: Model, photos: Path, index: ImageIndex) -> None:
    files = sorted(photos.rglob("*.png"))
    queries = pocket.embed_texts(["a big spotted yellow star", "一个黑色的心形"])
    expected = queries @ pocket.embed_images(files).T
    for row, hits in zip(expected, index.search(queries, 4), strict=True):
        order = np.argsort(-row)[:4]
        assert [hit.image for hit in hits] == [str(files[number].relative_to(photos)) for number in order]
        assert_allclose([hit.cosine for hit in hits], row[order], atol=2e-4)
    with Image.open(photos / hits[0].image) as image:
        assert (hits[0].width, hits[0].height) == image.size


def test_more_than_there_are_gives_all(pocket: Model, index: ImageIndex) -> None:
    (hits,) = index.search(pocket.embed_texts("a star"), 1000)
    assert len({hit.image for hit in hits}) == 10


def test_a_folder_and_only_that_is_searched(pocket: Model, photos: Path, output: Path) -> None:
    # Names that begin like the folder, and sort right before and after what lies in it.
    shutil.copytree(photos / "more", photos / "more and more")
    (photos / "0.png").rename(photos / "more0.png")
    (photos / "more" / "8.png").write_bytes((photos / "more" / "8.png").read_bytes() + b"\0")
    bring_up_to_date(pocket, photos, output)
    with ImageIndex(output) as index:
        query = pocket.embed_texts("a star")
        for folder in ("more", "more/", "/more"):
            (hits,) = index.search(query, 12, folder)
            assert sorted(hit.image for hit in hits) == ["more/8.png", "more/9.png"]
            assert index.searched(folder) == 2
        # A copy elsewhere is none of this folder.
        assert [hit.copies for hit in hits] == [0, 0]
        with pytest.raises(IndexFileError) as info:
            index.search(query, 12, "mor")
        assert_one_sentence(info.value, "mor", code="index_empty")


def test_copies_are_one_hit(pocket: Model, photos: Path, output: Path) -> None:
    shutil.copy(photos / "3.png", photos / "also.png")
    bring_up_to_date(pocket, photos, output)
    with ImageIndex(output) as index:
        (hits,) = index.search(pocket.embed_images(photos / "3.png"), 2)
    assert (hits[0].image, hits[0].copies) == ("3.png", 1)
    assert hits[0].cosine == pytest.approx(1, abs=2e-3)
    assert hits[1].copies == 0


def test_another_model_is_refused(pocket: Model, index: ImageIndex, tmp_path: Path) -> None:
    index.check_model(pocket)
    index.check_model(fgclip_rt.load(another_export(pocket.bundle.path, tmp_path / "exported")))
    other = another_space(pocket.bundle.path, tmp_path / "other")
    with pytest.raises(IndexFileError) as info:
        index.check_model(fgclip_rt.load(other))
    names = (NAME, pocket.space_sha256[:12], "another", fgclip_rt.load(other).space_sha256[:12])
    assert_one_sentence(info.value, *names, f"compare {index.path} {other}", "--overwrite", code="index_mismatch")


@pytest.mark.parametrize(("shape", "count"), [((1, 3), 1), ((160,), 1), ((1, 160), 0)])
def test_queries_that_do_not_fit_are_refused(index: ImageIndex, shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(ArgumentError):
        index.search(np.zeros(shape, np.float32), count)


def test_answers_are_those_that_evaluate_counts(pocket: Model, tmp_path: Path) -> None:
    """Of a hundred scenes, float16 rows lose no caption that float32 vectors find."""
    photos = tmp_path / "photos"
    photos.mkdir()
    scenes = [make_scene(seed, "test") for seed in range(GALLERY)]
    for number, scene in enumerate(scenes):
        draw(scene).save(photos / f"{number:03d}.png")
    bring_up_to_date(pocket, photos, tmp_path / "photos.index")
    images = pocket.embed_images(sorted(photos.iterdir()))
    for language in LANGUAGES:
        captions = [short_caption(state(scene, seed), language, seed) for seed, scene in enumerate(scenes)]
        texts = pocket.embed_texts(captions)
        with ImageIndex(tmp_path / "photos.index") as index:
            hits = index.search(texts, 1)
        right = sum(found[0].image == f"{number:03d}.png" for number, found in enumerate(hits))
        assert right == retrieved(texts, images).sum()
        assert right > GALLERY // 2


def test_a_fine_search_says_where(pocket: Model, photos: Path, index: ImageIndex) -> None:
    scene = make_scene(5, "test")
    text = box_caption(scene.things[0].look, "en", 5)
    query = Query.of_text(pocket, text, fine=True)
    answer = find(index, pocket, query, 3, depth=10)
    assert answer.fine
    finest = [hit.finest or 0 for hit in answer.hits]
    both = [hit.cosine + value for hit, value in zip(answer.hits, finest, strict=True)]
    assert both == sorted(both, reverse=True)
    values = pocket.dense(photos / answer.hits[0].image).map(text)[0]
    assert finest[0] == pytest.approx(float(values.max()), abs=1e-5)
    (hit,) = (hit for hit in find(index, pocket, query, 10).hits if hit.image == "5.png")
    left, top, right, bottom = hit.box or ()
    x1, y1, x2, y2 = scene.things[0].box
    assert max(left, x1) < min(right, x2)
    assert max(top, y1) < min(bottom, y2)


def test_an_image_that_is_gone_is_left_out_of_a_fine_search(pocket: Model, photos: Path, index: ImageIndex) -> None:
    (photos / "0.png").unlink()
    answer = find(index, pocket, Query.of_text(pocket, "a star", fine=True), 10)
    assert len(answer.hits) == 9
    assert [(each.input, each.code) for each in answer.skipped] == [("0.png", "image_unreadable")]


def test_the_box_holds_what_hangs_together() -> None:
    values = np.zeros((4, 6), np.float32)
    values[1, 1:3] = 0.9, 1.0
    values[2, 2] = 0.6
    # As large, but apart: it touches by a corner only.
    values[3, 3] = 0.95
    # Less than halfway from the median, 0, to the largest.
    values[1, 3] = 0.4
    assert box_around_largest(values, (60, 40)) == (10.0, 10.0, 30.0, 30.0)
    assert box_around_largest(np.ones((2, 3), np.float32), (30, 20)) == (0.0, 0.0, 30.0, 20.0)


def test_searches_of_many_threads_see_an_update(pocket: Model, photos: Path, output: Path, index: ImageIndex) -> None:
    query = pocket.embed_images(photos / "1.png")
    errors: list[Exception] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            try:
                (hits,) = index.search(query, 1)
                assert hits[0].image in ("1.png", "as1.png")
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    (photos / "1.png").rename(photos / "as1.png")
    for number in range(2, 8):
        (photos / f"{number}.png").unlink()
    bring_up_to_date(pocket, photos, output)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert index.search(query, 1)[0][0].image == "as1.png"


def test_duplicates_are_copies_and_images_that_are_nearly_the_same(pocket: Model, photos: Path, output: Path) -> None:
    shutil.copy(photos / "3.png", photos / "copy of 3.png")
    with Image.open(photos / "4.png") as image:
        image.convert("RGB").save(photos / "4.jpg", quality=95)
    bring_up_to_date(pocket, photos, output)
    with ImageIndex(output) as index:
        answer = find_duplicates(index, 0.99)
    assert sorted(sorted(group.images) for group in answer.groups) == [["3.png", "copy of 3.png"], ["4.jpg", "4.png"]]
    both = pocket.embed_images([photos / "4.png", photos / "4.jpg"])
    (near,) = (group for group in answer.groups if "4.png" in group.images)
    assert near.cosine == pytest.approx(float(both[0] @ both[1]), abs=2e-3)


def test_a_chain_hangs_together_by_its_weakest_link() -> None:
    pairs = [(0, 1, 0.99), (1, 2, 0.95), (0, 2, 0.91), (4, 5, 0.93)]
    assert linked(7, pairs) == [([0, 1, 2], 0.95), ([4, 5], 0.93)]


def test_the_picture_shows_each_hit_and_its_box(pocket: Model, photos: Path, index: ImageIndex) -> None:
    answer = find(index, pocket, Query.of_text(pocket, "a star", fine=True), 5)
    images = [pocket.load_image(photos / hit.image) for hit in answer.hits]
    whole = draw_hits(answer.hits, images)
    assert whole.size == draw_hits(answer.hits, [None, *images[1:]]).size
    plain = draw_hits(find(index, pocket, Query.of_text(pocket, "a star", fine=False), 5).hits, images)
    frame = np.array([0xE4, 0x57, 0x2E])
    assert (np.asarray(whole) == frame).all(-1).any()
    assert not (np.asarray(plain) == frame).all(-1).any()


def test_a_region_is_looked_for_where_its_image_points(pocket: Model, photos: Path, index: ImageIndex) -> None:
    scene = make_scene(5, "test")
    answer = find(index, pocket, Query.of_image(pocket, photos / "5.png", scene.things[0].box), 10)
    finest = [hit.finest or 0 for hit in answer.hits]
    assert finest == sorted(finest, reverse=True)
    assert answer.hits[0].image == "5.png"
