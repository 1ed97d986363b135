"""Engines at work on a simulated GPU: their inputs, their results, and the order of both."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import LIBRARY, FakeCuda, FakePlan, make_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgclip_rt import parity
from fgclip_rt.backends import Backend
from fgclip_rt.backends.refuse import Refuse
from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import Engine
from fgclip_rt.engines.lane import round_down, round_up
from fgclip_rt.engines.profiles import Shapes, plan
from fgclip_rt.engines.runner import EngineBackend
from fgclip_rt.errors import ArgumentError, BundleError, DeviceError, EngineError
from fgclip_rt.export import PRECISIONS
from fgclip_rt.graphs import ImageInputs, RegionInputs
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe
from helpers import WALK_TYPES, assert_one_sentence, embed_anew, picture

SMALL = Shapes(buckets=[128, 256], text_lengths=[64], batch=(1, 2, 4), boxes=(1, 2, 3))
NOTHING_ELSE = "nothing else runs here"
#: Images of the buckets 128, 256 and 576.
IMAGES = [picture(*size, seed) for seed, size in enumerate([(100, 100), (200, 250), (40, 90), (300, 420), (150, 200)])]
BOXES = [
    [0, 0, 30, 40],
    [5, 5, 60, 80],
    [10, 20, 90, 95],
    [0, 0, 99, 99],
    [50, 50, 51, 51],
    [-20, 30, 40, 200],
    [1, 1, 2, 2],
]

Array = np.ndarray[Any, Any]


def engine_model(
    bundle: Bundle,
    shapes: Shapes = SMALL,
    fallback: Backend | None = None,
    *,
    graphs: Sequence[str] | None = None,
    cuda: FakeCuda | None = None,
    captures_graphs: bool = False,
) -> Model:
    """A model whose engines take ``shapes``."""
    cuda = cuda or FakeCuda()
    engines = [make_engine(bundle, spec) for spec in plan(bundle.manifest, ["fp32"], graphs, shapes)]

    def load(engine: Engine) -> FakePlan:
        return FakePlan(bundle, engine, cuda, captures_graphs)

    return Model(bundle, EngineBackend(bundle, "fp32", engines, fallback or refuse(bundle), load, cuda))  # type: ignore[arg-type]


def refuse(bundle: Bundle) -> Refuse:
    """The fallback of engines that run alone: it refuses every run."""
    return Refuse(bundle.path, "fp32", LIBRARY.name, NOTHING_ELSE)


def assert_same(actual: Array, expected: Array) -> None:
    """Equal but for the rounding of sums in another order."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("captures_graphs", [True, False])
def test_every_step_keeps_parity(bundle_path: Path, captures_graphs: bool) -> None:
    bundle = Bundle.open(bundle_path)
    model = engine_model(bundle, Shapes(batch=(1, 2, 3), boxes=(1, 2, 3)), captures_graphs=captures_graphs)
    probe = Probe.of(bundle)
    rows = parity.check(model, probe, PRECISIONS["fp32"].limits)
    assert [row for row in rows if not row.passed] == []


def test_a_mask_goes_in_too(masked_model: Model) -> None:
    model = engine_model(masked_model.bundle, Shapes(batch=(1, 2, 3)), graphs=["text"])
    for walk_type in WALK_TYPES:
        texts = ["a cat", "一只黑猫 on a mat", "", "words " * 90]
        assert_same(model.embed_texts(texts, walk_type), masked_model.embed_texts(texts, walk_type))


def test_images_of_any_number_and_bucket_come_back_in_their_order(model: Model) -> None:
    engines = engine_model(model.bundle, Shapes(batch=(1, 2, 3)))
    images = IMAGES * 4
    expected = model.embed_images(images)
    for batch_size in (None, 1, 3, 7):
        assert_same(engines.embed_images(iter(images), batch_size=batch_size), expected)
    assert engines.embed_images([]).shape == (0, 96)
    for actual, wanted in zip(engines.dense_features(IMAGES[:3]), model.dense_features(IMAGES[:3]), strict=True):
        assert actual.shape == wanted.shape
        assert_same(actual, wanted)


def test_fewer_than_the_profile_begins_with_are_filled_up(model: Model) -> None:
    engines = engine_model(model.bundle, Shapes(buckets=[128], batch=(4, 4, 8), boxes=(5, 5, 5)))
    with np.errstate(invalid="ignore"):
        assert_same(engines.embed_images(IMAGES[:1]), model.embed_images(IMAGES[:1]))
        assert_same(engines.embed_texts(["a cat"]), model.embed_texts(["a cat"]))
        assert_same(engines.embed_regions(IMAGES[0], BOXES[:2]), model.embed_regions(IMAGES[0], BOXES[:2]))


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_any_number_of_boxes(model: Model, count: int) -> None:
    engines = engine_model(model.bundle)
    boxes = np.array(BOXES[:count], np.float32).reshape(-1, 4)
    assert_same(engines.embed_regions(IMAGES[0], boxes), model.embed_regions(IMAGES[0], boxes))
    patches = model.preparation(_pillow(IMAGES[0]))
    inputs = RegionInputs.of(model.graphs.dense(ImageInputs.of([patches])).result(), patches, boxes)
    assert_same(engines.graphs.region(inputs).result(), model.graphs.region(inputs).result())


def test_what_no_engine_takes_runs_elsewhere(model: Model) -> None:
    engines = engine_model(model.bundle, fallback=model.backend)
    assert_same(engines.embed_images(IMAGES), model.embed_images(IMAGES))
    assert_same(engines.embed_images(IMAGES, max_num_patches=300), model.embed_images(IMAGES, max_num_patches=300))
    assert_same(engines.embed_texts(["a cat"], "long"), model.embed_texts(["a cat"], "long"))
    with pytest.raises(ArgumentError):
        engines.backend.submit("audio", {}, [])


def test_it_says_what_runs_what(model: Model) -> None:
    text = str(engine_model(model.bundle, fallback=model.backend).backend)
    assert text.startswith("tensorrt-rtx 1.2.3 on cuda (engines: ")
    for part in ("vision 128/256", "dense 128/256", "region 128/256", "text 64", f"do not take: {model.backend}"):
        assert part in text


def test_what_nothing_takes_is_refused(model: Model) -> None:
    engines = engine_model(model.bundle)
    for run in (
        lambda: engines.embed_images(IMAGES, max_num_patches=1024),
        lambda: engines.embed_texts(["a cat"], "long"),
    ):
        with pytest.raises(DeviceError) as info:
            run()
        assert_one_sentence(info.value, "no engine takes", NOTHING_ELSE, "fgclip-rt build")
    assert f"do not take: {NOTHING_ELSE}" in str(engines.backend)


def test_the_smallest_engine_that_takes_an_image_runs_it(model: Model) -> None:
    loaded: list[str] = []
    bundle = model.bundle
    cuda = FakeCuda()
    engines = [make_engine(bundle, spec) for spec in plan(bundle.manifest, ["fp32"], ["vision"])]

    def load(engine: Engine) -> FakePlan:
        loaded.append(engine.path.name)
        return FakePlan(bundle, engine, cuda, True)

    backend = EngineBackend(bundle, "fp32", engines, refuse(bundle), load, cuda)  # type: ignore[arg-type]
    made = Model(bundle, backend)
    for patches, engine in ((100, "vision-128"), (230, "vision-256"), (128, "vision-128"), (1000, "vision-1024")):
        assert_same(made.embed_images(IMAGES[:1], patches), model.embed_images(IMAGES[:1], patches))
        assert engine in loaded
    assert loaded == ["vision-128", "vision-256", "vision-1024"]


def test_a_batch_keeps_a_gpu_busy(model: Model) -> None:
    """About 16,384 patches or tokens, as many as the engine takes, and a number that it runs without padding."""
    backend = engine_model(model.bundle, Shapes(text_lengths=[64], batch=(1, 8, 40)), model.backend).backend
    assert [backend.batch_size("vision", length) for length in (100, 256, 576, 784, 1024)] == [32, 32, 24, 16, 16]
    assert backend.batch_size("text", 64) == 32
    assert backend.batch_size("text", 196) == model.backend.batch_size("text", 196)
    assert engine_model(model.bundle).backend.batch_size("text", 64) == 4
    assert engine_model(model.bundle).backend.batch_size("text", 196) == 1


def test_numbers_of_rows_are_rounded_to_few() -> None:
    steps = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert sorted({round_up(rows) for rows in range(1, 257)}) == steps
    for rows in range(1, 257):
        assert round_up(rows) == next(step for step in steps if step >= rows)
        assert round_down(rows) == max(step for step in steps if step <= rows)


def test_every_number_of_rows_comes_back_whole_and_few_are_set_up(model: Model) -> None:
    """Two slots, and seven numbers of texts: 1, 2, 4, 8, 16, 24 and 25, which is the largest."""
    cuda = FakeCuda()
    engines = engine_model(model.bundle, Shapes(text_lengths=[64], batch=(1, 8, 25)), graphs=["text"], cuda=cuda)
    expected = model.embed_texts(MANY_TEXTS)
    # The largest first, so that the memory stays the same.
    for count in [25, 25, *range(1, 26)] * 2:
        rows = np.arange(count) % len(expected)
        found = model_run(engines, [MANY_TEXTS[row] for row in rows])
        assert_same(found, expected[rows])
    assert cuda.executions == 14


def test_engines_of_a_model_share_the_memory_of_their_activations(model: Model) -> None:
    """Streams do nothing until somebody waits, so runs that overwrote each other's activations would be seen."""
    cuda = FakeCuda(3)
    engines = engine_model(model.bundle, Shapes(batch=(1, 8, 8)), cuda=cuda)
    expected = [model.embed_images([image]) for image in IMAGES]
    for image in range(len(IMAGES)):
        assert_same(engines.embed_images([IMAGES[image]]), expected[image])
        assert_same(model_run(engines, ["a cat"]), model.embed_texts(["a cat"]))
    largest = max(cuda.activations)
    assert cuda.activations[-1] == largest
    assert sum(size in cuda.activations for size in cuda.sizes()) == 1


def model_run(model: Model, texts: Sequence[str]) -> Array:
    """The vectors of texts, computed even if they came before."""
    tokens = model.tokenizer(texts)
    inputs = {"input_ids": tokens.input_ids, "walk_type": np.zeros(len(texts), np.int32)}
    return model.backend.submit("text", inputs, ["text_embeds"]).result()[0]


def test_shapes_that_come_again_are_captured(model: Model) -> None:
    """Two slots take turns. Each runs a shape once before it captures a graph, so the third run is a graph's first."""
    for captures_graphs, launched in ((False, 6), (True, 0)):
        cuda = FakeCuda()
        engines = engine_model(model.bundle, cuda=cuda, captures_graphs=captures_graphs)
        expected = model.embed_texts(["a cat"])
        for _ in range(8):
            assert_same(embed_anew(engines, ["a cat"]), expected)
        assert cuda.launched == launched


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), counts=st.lists(st.integers(1, 6), min_size=1, max_size=12), ahead=st.integers(0, 5))
def test_results_do_not_depend_on_when_the_gpu_works(
    text_runs: Callable[[int], tuple[Model, Array]], seed: int, counts: list[int], ahead: int
) -> None:
    """Several runs begin before the first result is asked for; parts share two slots, and streams work in any order."""
    model, expected = text_runs(seed)
    running = []
    for number, size in enumerate(counts):
        rows = np.arange(number, number + size) % len(expected)
        tokens = model.tokenizer([TEXTS[row] for row in rows])
        inputs = {"input_ids": tokens.input_ids, "walk_type": np.zeros(len(tokens.input_ids), np.int32)}
        running.append((rows, model.backend.submit("text", inputs, ["text_embeds"])))
        # The caller may change its inputs once they are submitted.
        tokens.input_ids[...] = 0
        if len(running) > ahead:
            rows, result = running.pop(0)
            assert_same(result.result()[0], expected[rows])
    for rows, result in reversed(running):
        assert_same(result.result()[0], expected[rows])


TEXTS = ["a cat", "一只黑猫", "a white cat on a mat", "", "two dogs", "窗户"]
MANY_TEXTS = [f"cat {number}" for number in range(10)]


@pytest.fixture(scope="module")
def text_runs(model: Model) -> Callable[[int], tuple[Model, Array]]:
    expected = model.embed_texts(TEXTS)
    return lambda seed: (engine_model(model.bundle, cuda=FakeCuda(seed), graphs=["text"]), expected)


def test_threads_share_a_model(model: Model) -> None:
    engines = engine_model(model.bundle)
    images, texts = model.embed_images(IMAGES[:3]), model.embed_texts(TEXTS)

    def work(number: int) -> None:
        order = np.random.default_rng(number).permutation(3)
        assert_same(engines.embed_images([IMAGES[i] for i in order], batch_size=1 + number % 3), images[order])
        assert_same(engines.embed_texts(TEXTS[number % 6 :]), texts[number % 6 :])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(24)))


def test_memory_is_taken_once_and_given_back(model: Model) -> None:
    cuda = FakeCuda()
    engines = engine_model(model.bundle, cuda=cuda)
    for _ in range(3):
        engines.embed_images(IMAGES[:3] * 3)
    used = cuda.used
    assert used > 0
    for _ in range(5):
        engines.embed_images(IMAGES[:3] * 3)
    assert cuda.used == used
    del engines
    assert cuda.used == 0


def test_too_large_a_batch_is_told_what_fits(model: Model) -> None:
    """A text takes 1,024 bytes for activations, 256 for its tokens and 768 for two vectors of 96 numbers."""
    cuda = FakeCuda(capacity=3 * 2048 + 500)
    engines = engine_model(model.bundle, Shapes(text_lengths=[64], batch=(1, 8, 8)), graphs=["text"], cuda=cuda)
    with pytest.raises(DeviceError) as info:
        engines.embed_texts(MANY_TEXTS[:8])
    assert_one_sentence(
        info.value, "text-64", "batch of 8", "largest batch that fits is 2", "batch_size=2", code="out_of_memory"
    )
    assert cuda.used == 0
    assert_same(engines.embed_texts(MANY_TEXTS[:2]), model.embed_texts(MANY_TEXTS[:2]))

    cuda.capacity = cuda.used
    with pytest.raises(DeviceError) as info:
        engines.embed_texts(MANY_TEXTS[4:8])
    assert_one_sentence(info.value, "batch of 4", "largest batch that fits is 2")
    cuda.capacity = 2000
    with pytest.raises(DeviceError) as info:
        engines.embed_texts("a cat")
    assert_one_sentence(info.value, "not even one fits")


def test_a_failure_reaches_those_who_wait_and_nobody_else(model: Model) -> None:
    cuda = FakeCuda()
    engines = engine_model(model.bundle, cuda=cuda, graphs=["text"])
    expected = engines.embed_texts(TEXTS)

    def fail(_: int) -> None:
        raise DeviceError("the GPU fell off the bus.")

    wait, cuda.wait = cuda.wait, fail  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="fell off"):
        engines.embed_texts(["something new", "and another"])
    cuda.wait = wait  # type: ignore[method-assign]
    assert_same(engines.embed_texts(TEXTS), expected)


def test_an_engine_that_cannot_be_loaded_says_so_each_time(model: Model) -> None:
    def load(_: Engine) -> Any:
        raise EngineError("the file is damaged.")

    engines = [make_engine(model.bundle, spec) for spec in plan(model.manifest, ["fp32"], ["text"])]
    broken = Model(model.bundle, EngineBackend(model.bundle, "fp32", engines, refuse(model.bundle), load, FakeCuda()))  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(EngineError, match="damaged"):
            broken.embed_texts(TEXTS)


def test_a_replaced_bundle_is_noticed(model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(model.bundle.path, tmp_path / "bundle")
    engines = engine_model(Bundle.open(folder), graphs=["text"])
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="load it again"):
        engines.embed_texts(TEXTS)


def _pillow(array: Array) -> Image.Image:
    return Image.fromarray(array)


def test_a_forked_child_is_refused_at_once_and_gives_nothing_back(model: Model) -> None:
    cuda = FakeCuda()
    run = engine_model(model.bundle, cuda=cuda)
    expected = run.embed_texts(["a cat"])
    used = cuda.used
    backend = run.backend
    assert isinstance(backend, EngineBackend)
    # As when another thread was loading an engine.
    with backend._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            status = 1
            try:
                run.embed_texts(["a dog"])
            except DeviceError as error:
                known = run.embed_texts(["a cat"])
                refused = "fork" in str(error) and np.array_equal(known, expected)
                del run, backend
                gc.collect()
                status = 0 if refused and cuda.used == used > 0 else 2
            finally:
                os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert run.embed_texts(["a dog"]).shape == expected.shape
