"""The batcher: equal vectors, whole requests, and an end to every wait."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from fgclip_rt.dense import DenseImage
from fgclip_rt.errors import ArgumentError, DeviceError, ImageError, ServingError, TextError
from fgclip_rt.model import Model, load
from fgclip_rt.pocket.scenes import draw, make_scene
from fgclip_rt.serving import Batcher, DenseItem, EmbeddedImage, EmbeddedText, ImageItem, TextItem
from fgclip_rt.serving.batcher import BatchRun
from gate import Gate


@pytest.fixture(scope="module")
def model(pocket_path: Path) -> Model:
    return load(pocket_path)


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return draw(make_scene(21))


@pytest.fixture
def batcher(gated: Model, gate: Gate) -> Iterator[Batcher]:
    with Batcher(gated) as made:
        yield made
        gate.open()


def test_a_request_alone_gets_the_very_vectors_of_the_model(
    model: Model, pocket_path: Path, scene: Image.Image
) -> None:
    small = scene.resize((100, 60))
    # The batcher's model is another one, because a model keeps the vectors of texts.
    with Batcher(load(pocket_path)) as batcher:
        first, text, second = batcher.submit([ImageItem(scene), TextItem("a red star", "box"), ImageItem(small)])
        assert_array_equal(first.result().vector, model.embed_images([scene])[0])
        assert_array_equal(text.result().vector, model.embed_texts(["a red star"], "box")[0])
        assert_array_equal(second.result().vector, model.embed_images([small])[0])
        assert first.result().patches == len(model.prepare(scene).pixels)
        assert text.result().tokens == len(model.tokenizer.encode("a red star", "box").ids)


def test_a_dense_image_answers_as_the_models_own(model: Model, scene: Image.Image) -> None:
    boxes = [[10, 20, 90, 120], [30.5, 40, 200, 180]]
    with Batcher(model) as batcher:
        (found,) = batcher.submit([DenseItem(scene)])
        dense = found.result()
    assert isinstance(dense, DenseImage)
    own = model.dense(scene)
    assert_array_equal(dense.regions(boxes), own.regions(boxes))
    assert_array_equal(dense.map(["a star"]), own.map(["a star"]))


def test_items_of_many_callers_run_together_and_each_gets_its_own(model: Model, gated: Model, gate: Gate) -> None:
    texts = [f"a red star number {number}" for number in range(40)]
    expected = model.embed_texts(texts)
    gate.shut()
    with Batcher(gated) as batcher, ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda text: batcher.submit([TextItem(text)])[0], texts))
        gate.open()
        vectors = np.stack([answer.result(30).vector for answer in answers])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert sum(rows for _, rows in gate.runs) == 40
    # The first one ran alone, before the others had come; the rest in batches of four.
    assert len(gate.runs) <= 12


def test_a_text_that_was_asked_for_before_does_not_run_again(gated: Model, gate: Gate) -> None:
    with Batcher(gated) as batcher:
        (first,) = batcher.submit([TextItem("a red star")])
        first.result()
        (again,) = batcher.submit([TextItem("A RED STAR" if gated.manifest.text.lowercase else "a red star")])
        (other,) = batcher.submit([TextItem("a red star", "box")])
        assert_array_equal(again.result().vector, first.result().vector)
        other.result()
    assert [graph for graph, _ in gate.runs] == ["text", "text"]


def test_a_bad_item_fails_alone(batcher: Batcher, scene: Image.Image) -> None:
    bad, good, text, surrogate = batcher.submit(
        [ImageItem(b"no image", name="upload 3"), ImageItem(scene), TextItem("a star"), TextItem("\ud800")]
    )
    with pytest.raises(ImageError, match="upload 3"):
        bad.result(30)
    with pytest.raises(TextError):
        surrogate.result(30)
    assert isinstance(good.result(30), EmbeddedImage)
    assert isinstance(text.result(30), EmbeddedText)
    assert batcher.work == 0


def test_requests_are_whole_or_refused(batcher: Batcher) -> None:
    with pytest.raises(ArgumentError, match="walk type"):
        batcher.submit([TextItem("a"), TextItem("b", "essay")])
    assert batcher.work == 0


def test_work_is_bounded_and_given_back(gated: Model, gate: Gate) -> None:
    gate.shut()
    with Batcher(gated, max_work=128) as batcher:
        waiting = batcher.submit([TextItem("a"), TextItem("b")])
        with pytest.raises(ServingError) as full:
            batcher.submit([TextItem("c")])
        assert full.value.code == "overloaded"
        with pytest.raises(ServingError) as never:
            batcher.submit([TextItem(str(number)) for number in range(3)])
        assert never.value.code == "work_too_large"
        gate.open()
        for each in waiting:
            each.result(30)
        batcher.submit([TextItem("c")])[0].result(30)


def test_a_cancelled_item_does_not_run(batcher: Batcher, gate: Gate) -> None:
    gate.shut()
    (running,) = batcher.submit([TextItem("first")])
    assert gate.reached.acquire(timeout=30)
    cancelled, kept = batcher.submit([TextItem("second"), TextItem("third")])
    assert cancelled.cancel()
    gate.open()
    assert isinstance(kept.result(30), EmbeddedText)
    running.result(30)
    with pytest.raises(CancelledError):
        cancelled.result(30)
    assert gate.runs == [("text", 1), ("text", 1)]
    assert batcher.work == 0


def test_an_item_whose_time_is_over_does_not_run(batcher: Batcher, gate: Gate) -> None:
    gate.shut()
    (running,) = batcher.submit([TextItem("first")])
    assert gate.reached.acquire(timeout=30)
    (late,) = batcher.submit([TextItem("second")], timeout=0.01)
    time.sleep(0.02)
    gate.open()
    running.result(30)
    with pytest.raises(ServingError) as found:
        late.result(30)
    assert found.value.code == "deadline_passed"
    assert gate.runs == [("text", 1)]


def test_a_batch_that_fails_takes_no_other_with_it(batcher: Batcher, gate: Gate) -> None:
    gate.error = DeviceError("no memory; ask for less.", code="out_of_memory")
    (failed,) = batcher.submit([TextItem("first")])
    with pytest.raises(DeviceError):
        failed.result(30)
    assert isinstance(batcher.submit([TextItem("first")])[0].result(30), EmbeddedText)


def test_closing_answers_all_and_takes_no_more(gated: Model, gate: Gate) -> None:
    batcher = Batcher(gated)
    gate.shut()
    futures = batcher.submit([TextItem(f"text {number}") for number in range(9)])
    threading.Timer(0.05, gate.open).start()
    assert batcher.close()
    assert all(isinstance(future.result(0), EmbeddedText) for future in futures)
    with pytest.raises(ServingError) as refused:
        batcher.submit([TextItem("a")])
    assert refused.value.code == "shutting_down"


def test_closing_in_time_leaves_nobody_waiting(gated: Model, gate: Gate) -> None:
    batcher = Batcher(gated)
    gate.shut()
    futures = batcher.submit([TextItem(f"text {number}") for number in range(9)])
    assert gate.reached.acquire(timeout=30)
    threading.Timer(0.1, gate.open).start()
    assert not batcher.close(timeout=0.01)
    outcomes = [future.exception(30) for future in futures]
    assert any(isinstance(outcome, ServingError) and outcome.code == "shutting_down" for outcome in outcomes)
    assert all(future.done() for future in futures)


def test_each_batch_is_reported(gated: Model, gate: Gate) -> None:
    seen: list[BatchRun] = []
    with Batcher(gated, on_batch=seen.append) as batcher:
        batcher.submit([TextItem("a star")])[0].result(30)
        gate.error = DeviceError("it failed; restart.")
        batcher.submit([TextItem("a moon")])[0].exception(30)
    assert [(run.lane.graph, run.items, run.room, run.error) for run in seen] == [
        ("text", 1, 4, None),
        ("text", 1, 4, "device_failed"),
    ]


def _in_child(batcher: Batcher, answers: multiprocessing.queues.Queue[str]) -> None:
    try:
        batcher.submit([TextItem("a")])
    except ServingError as error:
        answers.put(str(error))
    answers.put(str(batcher.close()))


def test_a_forked_child_is_told_to_make_its_own(batcher: Batcher) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_child, args=(batcher, answers))
    child.start()
    assert "fork" in answers.get(timeout=30)
    assert answers.get(timeout=30) == "True"
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize("options", [{"max_wait": -1.0}, {"max_wait": float("inf")}, {"max_work": 0}])
def test_bad_options_are_refused(model: Model, options: dict[str, float]) -> None:
    with pytest.raises(ArgumentError):
        Batcher(model, **options)  # type: ignore[arg-type]


def test_a_model_and_its_batcher_keep_texts_together(gated: Model, gate: Gate) -> None:
    (expected,) = gated.embed_texts(["a red star"])
    with Batcher(gated) as batcher:
        (known,) = batcher.submit([TextItem("a red star")])
        assert_array_equal(known.result(0).vector, expected)
        (new,) = batcher.submit([TextItem("a blue star")])
        vector = new.result(30).vector
        assert_array_equal(gated.embed_texts(["a blue star"])[0], vector)
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 1
    assert len(gate.runs) == 2


def test_a_full_batcher_says_so(gated: Model, gate: Gate) -> None:
    gate.shut()
    with Batcher(gated, max_work=130) as batcher:
        waiting = batcher.submit([TextItem("a")])
        assert not batcher.is_full
        waiting += batcher.submit([TextItem("b")])
        assert batcher.is_full
        gate.open()
        for each in waiting:
            each.result(30)
        assert not batcher.is_full
    with Batcher(gated, max_work=1) as small:
        assert not small.is_full
