"""The model object: order, independence of the batch, laziness, scores and threads."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import fgclip_rt
from fgclip_rt.arrays import Array
from fgclip_rt.backends import Finished
from fgclip_rt.batching import Failure
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, BoxError, BundleError, DeviceError, ImageError, TextError
from fgclip_rt.machine import usable_cores
from fgclip_rt.manifest import Score
from fgclip_rt.model import Model
from helpers import SQUARE_NAMES, WALK_TYPES, Golden, assert_one_sentence, embed_anew, picture

MAIN = Golden("fgclip2")
#: Images of four buckets, in no order.
SIZES = [(100, 100), (300, 420), (150, 200), (330, 300), (480, 640), (20, 300), (256, 240), (90, 120), (17, 31)]
IMAGES = [picture(*size, seed) for seed, size in enumerate(SIZES)]
BOXES = [[5, 5, 60, 80], [0, 0, 100, 100], [-20, 30, 40, 200], [50.5, 50.5, 51, 51]]


def assert_same(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Equal but for the rounding of sums in another order."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def assert_unit(vectors: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def alone(model: Model) -> np.ndarray[Any, Any]:
    """Each image's vector from a call of its own."""
    return np.concatenate([model.embed_images(image) for image in IMAGES])


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("max_num_patches", [None, 64])
def test_a_vector_does_not_depend_on_the_batch(
    model: Model, batch_size: int | None, max_num_patches: int | None
) -> None:
    expected = np.concatenate([model.embed_images(image, max_num_patches) for image in IMAGES])
    assert_same(model.embed_images(IMAGES, max_num_patches, batch_size), expected)


@pytest.mark.parametrize("seed", range(3))
def test_rows_keep_the_order_of_the_images(model: Model, alone: np.ndarray[Any, Any], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(IMAGES))
    vectors = model.embed_images((IMAGES[i] for i in order), batch_size=2)
    assert_same(vectors, alone[order])
    cosines = vectors @ alone.T
    assert (cosines.argmax(axis=1) == order).all(), "the images must differ for this to mean anything"


def test_padding_to_a_batch_changes_no_dense_feature(model: Model) -> None:
    for image, dense in zip(IMAGES, model.dense_features(IMAGES, normalize=False), strict=True):
        [expected] = model.dense_features(image, normalize=False)
        assert dense.shape == (*model.preparation(Image.fromarray(image)).grid, model.dim)
        assert_same(dense, expected)


def test_images_of_different_kinds_mix(model: Model) -> None:
    path = MAIN.images[0]
    vectors = model.embed_images([str(path), path, path.read_bytes(), Image.open(path), np.asarray(Image.open(path))])
    assert_same(vectors, np.repeat(vectors[:1], 5, axis=0))


@pytest.mark.parametrize(
    ("embed", "size", "count"),
    [
        (partial(Model.embed_images, batch_size=2), 2, 7),
        # Dense features choose their own batches: 2,048 patches.
        (partial(Model.dense_features, max_num_patches=16), 128, 300),
    ],
    ids=["embed_images", "dense_features"],
)
def test_images_are_taken_only_as_they_are_needed(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, embed: Callable[..., Any], size: int, count: int
) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu", threads=4)
    ahead = usable_cores()
    batch_sizes: list[int] = []
    alive: list[int] = []
    submit = model.backend.submit

    def counting(graph: str, inputs: dict[str, np.ndarray[Any, Any]], outputs: list[str]) -> Any:
        batch_sizes.append(len(inputs["patches"]))
        return submit(graph, inputs, outputs)

    def images() -> Iterator[np.ndarray[Any, Any]]:
        given: list[weakref.ref[Any]] = []
        for index in range(count):
            assert index - sum(batch_sizes) <= size + ahead, "images pile up before the graph runs"
            image = picture(32, 48, index)
            given.append(weakref.ref(image))
            alive.append(sum(ref() is not None for ref in given))
            yield image

    monkeypatch.setattr(model.backend, "submit", counting)
    assert len(embed(model, images())) == sum(batch_sizes) == count
    assert max(batch_sizes) == size
    assert max(alive) <= 2 + ahead, "images outlive their preparation"


def test_vectors_come_as_their_batches_are_done(model: Model, alone: np.ndarray[Any, Any]) -> None:
    taken: list[int] = []

    def images() -> Iterator[np.ndarray[Any, Any] | bytes]:
        for index, image in enumerate([*IMAGES, b"no image", *IMAGES * 20]):
            taken.append(index)
            yield image

    entries = model.iter_images(images(), batch_size=2, on_error="skip")
    first = next(entries)
    assert len(taken) < 60, "all images were taken before the first vector came"
    rows: dict[int, np.ndarray[Any, Any]] = {}
    failures = []
    for entry in (first, *entries):
        if isinstance(entry, Failure):
            failures.append(entry)
        else:
            assert len(entry.indices) == len(entry.vectors) <= 2
            rows.update(zip(entry.indices, entry.vectors, strict=True))
    assert [(failure.index, failure.error.code) for failure in failures] == [(len(IMAGES), "image_unsupported")]
    assert sorted([*rows, len(IMAGES)]) == list(range(21 * len(IMAGES) + 1))
    for index, vector in rows.items():
        assert_same(vector, alone[(index - (index > len(IMAGES))) % len(IMAGES)])


def test_vectors_of_texts_come_as_their_batches_are_done(bundle_path: Path) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu", threads=1)
    size = model.backend.batch_size("text", 64)
    texts = [f"text {index % (6 * size)}" for index in range(7 * size)]
    model.embed_texts(texts[:2])
    taken: list[int] = []
    batches = model.iter_texts(text for text in texts if not taken.append(1))  # type: ignore[func-returns-value]
    first = next(batches)
    assert len(taken) < len(texts)
    assert {0, 1} <= set(first.indices), "texts that are kept from an earlier call come first"
    rows = {}
    for batch in (first, *batches):
        rows.update(zip(batch.indices, batch.vectors, strict=True))
    assert sorted(rows) == list(range(len(texts)))
    assert_same(np.stack([rows[index] for index in range(len(texts))]), embed_anew(model, texts))
    # No batch runs if all are kept.
    (kept,) = model.iter_texts(texts[:2])
    assert kept.indices == (0, 1)


def test_what_cannot_be_iterated_is_refused_at_once(model: Model) -> None:
    with pytest.raises(ArgumentError, match="on_error"):
        model.iter_images([], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="batch_size"):
        model.iter_images([], batch_size=0)
    with pytest.raises(ArgumentError, match="tall"):
        model.iter_texts([], "tall")


def test_texts_that_come_again_are_not_computed_again(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu")
    computed: list[int] = []
    submit = model.backend.submit

    def counting(graph: str, inputs: dict[str, np.ndarray[Any, Any]], outputs: list[str]) -> Any:
        computed.append(len(inputs["input_ids"]))
        return submit(graph, inputs, outputs)

    monkeypatch.setattr(model.backend, "submit", counting)
    texts = ["a cat", "A CAT", "a dog", "a cat"]
    vectors = model.embed_texts(texts)
    assert computed == [2], "texts that are equal in lower case are computed once"
    assert_same(vectors, np.concatenate([embed_anew(model, [text]) for text in texts]))
    computed.clear()

    vectors[:] = 0
    repeated = model.embed_texts(["a dog", "a bird", "a cat"])
    assert computed == [1]
    assert_same(repeated, embed_anew(model, ["a dog", "a bird", "a cat"]))
    computed.clear()
    model.embed_texts("a cat", "box")
    model.embed_texts("a cat", normalize=False)
    assert computed == [1, 1], "another walk type and other features have vectors of their own"
    with pytest.raises(TextError, match="text 2"):
        model.embed_texts(["a cat", "a dog", 3])  # type: ignore[list-item]


def test_the_vectors_of_so_many_texts_are_kept_and_no_more(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgclip_rt.model._RECENT_TEXTS", 2)
    model = fgclip_rt.load(bundle_path, device="cpu")
    texts = ["a", "b", "c", "a", "b", "c"]
    assert_same(model.embed_texts(texts), np.concatenate([embed_anew(model, [t]) for t in texts]))


@pytest.mark.parametrize("closed", [True, False])
def test_images_may_be_closed_once_they_are_given(model: Model, tmp_path: Path, closed: bool) -> None:
    """Threads read ahead while the caller goes on."""
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        Image.fromarray(picture(32, 48, index)).save(path)

    def images() -> Iterator[Image.Image]:
        for path in paths:
            with Image.open(path) as image:
                yield image
                if not closed:
                    image.paste((0, 0, 0), (0, 0, *image.size))

    assert_same(model.embed_images(images()), model.embed_images(paths))


@pytest.mark.parametrize("walk_type", WALK_TYPES)
def test_texts_are_taken_only_as_they_are_needed_and_keep_their_order(
    model: Model, masked_model: Model, walk_type: str
) -> None:
    texts = [f"{word} {i}" for i in range(12) for word in ("a cat", "红色的汽车", "")]
    for tested in (model, masked_model):
        vectors = tested.embed_texts((text for text in texts), walk_type)
        assert vectors.shape == (len(texts), tested.dim)
        assert_same(vectors, np.concatenate([embed_anew(tested, [text], walk_type) for text in texts]))


def test_one_counts_as_a_list_of_one(model: Model) -> None:
    np.testing.assert_array_equal(model.embed_images(IMAGES[0]), model.embed_images([IMAGES[0]]))
    np.testing.assert_array_equal(model.embed_texts("a cat"), model.embed_texts(["a cat"]))
    np.testing.assert_array_equal(model.dense_features(IMAGES[0]), model.dense_features([IMAGES[0]]))
    assert model.truncated("cat " * 100) == [0]


@pytest.mark.parametrize("nothing", [[], (), iter([])])
def test_nothing_gives_no_rows(model: Model, nothing: Any) -> None:
    for vectors in (model.embed_images(nothing), *(model.embed_texts(nothing, walk_type) for walk_type in WALK_TYPES)):
        assert vectors.shape == (0, model.dim)
        assert vectors.dtype == np.float32
    assert model.dense_features(nothing) == []
    assert model.truncated(nothing) == []


def test_normalized_vectors_are_the_features_at_length_one(model: Model) -> None:
    calls: list[Callable[..., np.ndarray[Any, Any]]] = [
        partial(model.embed_images, IMAGES[:3]),
        *(partial(model.embed_texts, MAIN.texts, walk_type) for walk_type in WALK_TYPES),
        lambda **options: model.dense_features(IMAGES[0], **options)[0],
        partial(model.embed_regions, IMAGES[0], BOXES),
    ]
    for call in calls:
        features, vectors = call(normalize=False), call()
        assert features.dtype == vectors.dtype == np.float32
        assert_unit(vectors)
        assert np.abs(np.linalg.norm(features, axis=-1) - 1).max() > 0.01
        assert_same(vectors, features / np.linalg.norm(features, axis=-1, keepdims=True))


def test_regions_are_those_of_the_images_dense_features(model: Model) -> None:
    image = IMAGES[1]
    [dense] = model.dense_features(image, normalize=False)
    rows, columns, _ = dense.shape
    height, width = image.shape[:2]
    cell = [width / columns, height / rows]
    boxes = [[j * cell[0], i * cell[1], (j + 1) * cell[0], (i + 1) * cell[1]] for i, j in ((0, 0), (2, 3), (5, 1))]
    cells = np.stack([dense[i, j] for i, j in ((0, 0), (2, 3), (5, 1))])
    np.testing.assert_allclose(model.embed_regions(image, boxes, normalize=False), cells, rtol=0, atol=1e-3)


def counting_model(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, list[str]]:
    """A model, and the list of the graphs that it has run."""
    model, runs = fgclip_rt.load(bundle, device="cpu"), list[str]()
    submit = model.backend.submit

    def counting(graph: str, inputs: dict[str, np.ndarray[Any, Any]], outputs: list[str]) -> Any:
        runs.append(graph)
        return submit(graph, inputs, outputs)

    monkeypatch.setattr(model.backend, "submit", counting)
    return model, runs


@pytest.mark.parametrize("normalize", [False, True])
def test_boxes_and_maps_of_one_image_take_one_run_of_the_tower(
    model: Model, bundle_path: Path, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, runs = counting_model(bundle_path, monkeypatch)
    dense = counted.dense(IMAGES[1])
    assert runs == [], "the tower runs when its features are needed"
    regions, features, maps = dense.regions(BOXES, normalize), dense.features(normalize), dense.map(["a cat", "窗"])
    assert runs.count("dense") == 1
    np.testing.assert_array_equal(regions, model.embed_regions(IMAGES[1], BOXES, normalize=normalize))
    [expected] = model.dense_features(IMAGES[1], normalize=normalize)
    np.testing.assert_array_equal(features, expected)
    [unit] = model.dense_features(IMAGES[1])
    np.testing.assert_allclose(maps, np.moveaxis(unit @ model.embed_texts(["a cat", "窗"], "box").T, -1, 0), atol=1e-6)
    np.testing.assert_allclose(dense.map("窗"), maps[1:], atol=1e-6)
    assert (dense.grid, dense.image_size) == (maps.shape[1:], IMAGES[1].shape[:2])
    features[:] = 0
    np.testing.assert_array_equal(dense.features(normalize), expected)


def test_bad_boxes_and_masks_are_refused_before_the_tower_runs(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, runs = counting_model(bundle_path, monkeypatch)
    dense = counted.dense(IMAGES[1])
    with pytest.raises(BoxError) as info:
        dense.regions([[5, 5, 5, 9]])
    assert_one_sentence(info.value, "box")
    assert dense.regions([]).shape == (0, counted.dim)
    with pytest.raises(ArgumentError) as refused:
        dense.masks(np.ones((1, 4, 4)))
    assert_one_sentence(refused.value, "no features of masks")
    assert runs == []


def test_threads_that_share_an_image_run_its_tower_once(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, runs = counting_model(bundle_path, monkeypatch)
    dense = counted.dense(IMAGES[1])
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: dense.regions(BOXES), range(8)))
    assert runs.count("dense") == 1
    for regions in results:
        np.testing.assert_array_equal(regions, results[0])


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_every_call_keeps_to_its_patch_limit(model: Model, limit: int) -> None:
    grid = model.preparation(Image.fromarray(IMAGES[1]), limit).grid
    [dense] = model.dense_features(IMAGES[1], max_num_patches=limit)
    assert dense.shape == (*grid, model.dim)
    assert grid[0] * grid[1] <= limit
    assert model.embed_regions(IMAGES[1], BOXES, max_num_patches=limit).shape == (len(BOXES), model.dim)


def with_score(model: Model, score: Score) -> Model:
    manifest = msgspec.structs.replace(model.manifest, score=score)
    return Model(dataclasses.replace(model.bundle, manifest=manifest), model.backend)


def test_logits_are_scaled_cosines_and_probabilities_their_sigmoid(model: Model) -> None:
    images, texts = model.embed_images(IMAGES, normalize=False), model.embed_texts(MAIN.texts, normalize=False)
    cosines = (images @ texts.T) / np.linalg.norm(images, axis=-1)[:, None] / np.linalg.norm(texts, axis=-1)
    expected = np.exp(model.logit_scale) * cosines + model.logit_bias
    logits, probabilities = model.logits(images, texts), model.probabilities(images, texts)
    assert logits.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-expected)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(model.logits(images[0], texts[0]), logits[:1, :1], rtol=1e-5)


@pytest.mark.parametrize(("scale", "bias"), [(9.0, 0.0), (9.0, -2e4), (9.0, 2e4), (-20.0, 0.0)])
def test_extreme_logits_give_probabilities_without_warnings(model: Model, scale: float, bias: float) -> None:
    extreme = with_score(model, Score("sigmoid", scale, bias))
    basis = np.eye(model.dim, dtype=np.float32)[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = extreme.probabilities(basis, np.concatenate([basis, -basis, 0 * basis]))
    logits = np.exp(scale) * np.array([[1, 0, -1, 0, 0, 0], [0, 1, 0, -1, 0, 0]]) + bias
    np.testing.assert_allclose(probabilities, 0.5 * (1 + np.tanh(logits / 2)), rtol=1e-5, atol=1e-7)


def test_softmax_scores_sum_to_one_over_the_texts(model: Model) -> None:
    basis = np.eye(model.dim, dtype=np.float32)[:3]
    mild = with_score(model, Score("softmax", 0.0, 0.0)).probabilities(basis, basis)
    np.testing.assert_allclose(mild, (np.eye(3) * (np.e - 1) + 1) / (np.e + 2), rtol=1e-5)
    extreme = with_score(model, Score("softmax", 9.0, 0.0)).probabilities(basis, basis)
    np.testing.assert_allclose(extreme, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 95), (2, 97), (95,), (1, 2, 96), ()])
def test_vectors_of_another_width_are_refused(model: Model, shape: tuple[int, ...]) -> None:
    good, bad = np.ones((2, 96), np.float32), np.ones(shape, np.float32)
    for pair in ((good, bad), (bad, good)):
        for call in (model.logits, model.probabilities):
            with pytest.raises(ArgumentError, match="96") as info:
                call(*pair)
            assert_one_sentence(info.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"precision": "fp16"}, ["'fp16'", "fp32"]),
        ({"precision": ""}, ["fp32"]),
        ({"device": "tpu"}, ["'tpu'", "auto, cpu, cuda"]),
        ({"device": "CPU"}, ["'CPU'", "auto, cpu, cuda"]),
        ({"threads": 0}, ["threads is 0"]),
        ({"threads": -2}, ["threads is -2"]),
    ],
)
def test_options_that_cannot_be_used_are_refused(bundle_path: Path, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ArgumentError) as info:
        fgclip_rt.load(bundle_path, **options)
    assert_one_sentence(info.value, *parts)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_sizes_below_one_are_refused(model: Model, batch_size: int) -> None:
    with pytest.raises(ArgumentError, match=f"batch_size is {batch_size}"):
        model.embed_images(IMAGES[:1], batch_size=batch_size)


@pytest.mark.parametrize("images", [7, None])
def test_images_that_are_no_list_are_refused(model: Model, images: Any) -> None:
    with pytest.raises(ArgumentError) as info:
        model.embed_images(images)
    assert_one_sentence(info.value, type(images).__name__)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_cuda_without_its_provider_is_refused_with_the_remedy(bundle_path: Path) -> None:
    with pytest.raises(DeviceError) as info:
        fgclip_rt.load(bundle_path, device="cuda")
    assert_one_sentence(info.value, "'cuda'", "pip install", "'cpu'")
    automatic = fgclip_rt.load(bundle_path, device="auto")
    assert automatic.backend.device == "cpu"
    assert "CUDA" in str(automatic.backend)


def test_threads_and_hashes_change_no_vector(bundle_path: Path, alone: np.ndarray[Any, Any]) -> None:
    single = fgclip_rt.load(bundle_path, device="cpu", precision="fp32", threads=1, check_hashes=False)
    assert_same(single.embed_images(IMAGES), alone)


def test_threads_get_what_one_gets(bundle_path: Path) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu", threads=1)
    jobs: list[Callable[[], Any]] = [
        partial(model.embed_images, IMAGES[:4]),
        partial(model.embed_images, IMAGES[4:], batch_size=2),
        partial(model.embed_regions, IMAGES[0], BOXES),
        *(partial(model.embed_texts, MAIN.texts, walk_type) for walk_type in WALK_TYPES),
    ] * 3
    with ThreadPoolExecutor(6) as pool:
        parallel = [future.result() for future in [pool.submit(job) for job in jobs]]
    for job, actual in zip(jobs, parallel, strict=True):
        assert_same(actual, job())


def test_graphs_are_loaded_when_first_used(bundle_path: Path) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu")
    assert not model.backend._sessions
    model.embed_texts(MAIN.texts)
    assert set(model.backend._sessions) == {"text"}
    model.embed_images(IMAGES[0])
    assert set(model.backend._sessions) == {"text", "vision"}
    model.embed_regions(IMAGES[0], BOXES)
    assert set(model.backend._sessions) == {"text", "vision", "dense", "region"}


class Constant:
    """Gives a vector of ones for every text."""

    precision, device = "fp64", "abacus"

    def __str__(self) -> str:
        return "ones on an abacus"

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Finished:
        assert (graph, list(outputs)) == ("text", ["text_embeds"])
        return Finished([np.ones((len(inputs["input_ids"]), 96), np.float32)])

    def batch_size(self, graph: str, length: int) -> int:
        assert (graph, length) == ("text", 64)
        return 2


def test_anything_that_runs_graphs_can_be_a_backend(model: Model) -> None:
    other = Model(model.bundle, Constant())
    assert (other.precision, str(other.backend)) == ("fp64", "ones on an abacus")
    assert "fp64, ones on an abacus" in repr(other)
    np.testing.assert_array_equal(other.embed_texts(MAIN.texts), np.ones((len(MAIN.texts), 96)))


def test_an_unknown_graph_is_refused(model: Model) -> None:
    with pytest.raises(ArgumentError) as info:
        model.backend.submit("audio", {}, [])
    assert_one_sentence(info.value, "audio", "vision, dense, text, region")


def test_it_says_what_it_is(model: Model) -> None:
    assert (model.dim, model.precision, model.backend.device) == (96, "fp32", "cpu")
    assert "fp32" in repr(model)
    assert "cpu" in repr(model)


def test_a_bundle_that_was_replaced_since_is_noticed(
    bundle_path: Path, masked_bundle_path: Path, tmp_path: Path
) -> None:
    """Graphs are loaded when they are needed; another model's graphs must not join those that are already loaded."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_path, folder)
    model = fgclip_rt.load(folder)
    expected = model.embed_images([IMAGES[0]])
    shutil.rmtree(folder)
    for step in ("removed", "replaced"):
        if step == "replaced":
            shutil.copytree(masked_bundle_path, folder)
        with pytest.raises(BundleError) as info:
            model.embed_texts(["a cat"])
        assert_one_sentence(info.value, str(folder), "load it again")
        np.testing.assert_array_equal(model.embed_images([IMAGES[0]]), expected)


def test_no_texts_give_no_probabilities(model: Model) -> None:
    softmax = with_score(model, Score(activation="softmax", logit_scale=4.0, logit_bias=0.0))
    for tested in (model, softmax):
        assert tested.probabilities(tested.embed_images(IMAGES[:2]), tested.embed_texts([])).shape == (2, 0)


@pytest.fixture
def mixture(tmp_path: Path) -> list[Any]:
    """Good and bad images, in files and in memory."""
    good, damaged = tmp_path / "good.png", tmp_path / "damaged.png"
    Image.fromarray(IMAGES[0]).save(good)
    damaged.write_bytes(good.read_bytes()[:900])
    return [good, damaged, IMAGES[1], IMAGES[2].astype(np.float32), tmp_path / "missing.jpg", b"", Image.open(good)]


def test_images_that_cannot_be_read_are_left_out_and_named(model: Model, mixture: list[Any]) -> None:
    embedded = model.embed_images(mixture, on_error="skip", batch_size=2)
    assert embedded.rows == (0, 2, 6)
    np.testing.assert_allclose(embedded.vectors, model.embed_images([mixture[0], mixture[2], mixture[6]]), atol=1e-6)
    assert [failure.index for failure in embedded.failures] == [1, 3, 4, 5]
    for failure, part in zip(embedded.failures, ("damaged.png", "image 3", "missing.jpg", "image 5"), strict=True):
        assert_one_sentence(failure.error, part)


def test_dense_features_leave_out_images_that_cannot_be_read(model: Model, mixture: list[Any]) -> None:
    embedded = model.dense_features(mixture, 64, on_error="skip")
    expected = model.dense_features([mixture[0], mixture[2], mixture[6]], 64)
    assert embedded.rows == (0, 2, 6)
    for features, alone in zip(embedded.vectors, expected, strict=True):
        assert_same(features, alone)
    assert [failure.index for failure in embedded.failures] == [1, 3, 4, 5]
    with pytest.raises(ImageError, match=r"damaged\.png"):
        model.dense_features(mixture)
    with pytest.raises(ArgumentError, match="on_error"):
        model.dense_features(mixture, on_error="ignore")  # type: ignore[call-overload]


def test_the_first_image_that_cannot_be_read_ends_a_call_that_skips_none(model: Model, mixture: list[Any]) -> None:
    with pytest.raises(ImageError, match=r"damaged\.png"):
        model.embed_images(mixture)
    with pytest.raises(ArgumentError) as info:
        model.embed_images(mixture, on_error="ignore")  # type: ignore[call-overload]
    assert_one_sentence(info.value, "on_error", "'skip'")


def test_dense_features_leave_such_images_out_too(model: Model, mixture: list[Any]) -> None:
    found = model.dense_features(mixture, on_error="skip")
    assert found.rows == (0, 2, 6)
    for actual, image in zip(found.vectors, (mixture[0], mixture[2], mixture[6]), strict=True):
        np.testing.assert_allclose(actual, model.dense_features(image)[0], atol=1e-6)
    assert [failure.index for failure in found.failures] == [1, 3, 4, 5]
    with pytest.raises(ImageError, match=r"damaged\.png"):
        model.dense_features(mixture)
    with pytest.raises(ArgumentError, match="on_error is 'ignore'"):
        model.dense_features(mixture, on_error="ignore")  # type: ignore[call-overload]


def test_no_image_that_can_be_read_leaves_no_vector(model: Model, tmp_path: Path) -> None:
    embedded = model.embed_images([tmp_path / "a.png"], on_error="skip")
    assert (embedded.vectors.shape, embedded.rows, len(embedded.failures)) == ((0, model.dim), (), 1)


def test_a_wrong_argument_is_no_failure_of_an_image(model: Model) -> None:
    with pytest.raises(ArgumentError):
        model.embed_images(IMAGES[:2], max_num_patches=0, on_error="skip")


def test_images_are_turned_upright_where_that_is_asked_for(model: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(IMAGES[1]).save(path, exif=exif, quality=95)
    upright = fgclip_rt.load_image(path, exif_transpose=True)
    expected = model.embed_images([upright])
    for source in (path, path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(model.embed_images([source], exif_transpose=True), expected)
        assert not np.allclose(model.embed_images([source]), expected, atol=1e-3)


def test_the_released_code_of_fg_clip_and_fineclip_turns_no_file(
    bundle_path: Path, square_path: Callable[[str], Path]
) -> None:
    for path in (bundle_path, *map(square_path, SQUARE_NAMES)):
        assert not Bundle.open(path, check_hashes=False).manifest.image.exif_transpose


def test_images_that_were_not_turned_are_listed(model: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    path = tmp_path / "turned.jpg"
    Image.fromarray(IMAGES[1]).save(path, exif=exif)
    images = [IMAGES[0], path, tmp_path / "missing.jpg", Image.open(path)]
    embedded = model.embed_images(images, on_error="skip")
    assert (embedded.rows, embedded.unrotated) == ((0, 1, 3), (1, 3))
    assert model.embed_images(images, on_error="skip", exif_transpose=True).unrotated == ()
    details = model.embed_images(images[:2], details=True)
    assert (details.rows, details.failures, details.unrotated) == ((0, 1), (), (1,))
    np.testing.assert_array_equal(details.vectors, model.embed_images(images[:2]))


def test_one_photo_in_three_formats_gives_one_vector(model: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    # Of one colour in each block of the JPEG, so that this format loses nothing.
    blocks = np.random.default_rng(0).integers(0, 2, (6, 8, 1), np.uint8).repeat(3, axis=2) * 255
    image = Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1))
    files = [tmp_path / f"photo.{kind}" for kind in ("jpg", "tif", "png")]
    for file in files:
        image.save(file, exif=exif)
    vectors = model.embed_images([image.transpose(Image.Transpose.ROTATE_270), *files], exif_transpose=True)
    np.testing.assert_array_equal(vectors[1:], vectors[:1].repeat(3, axis=0))


def test_regions_and_maps_are_turned_as_the_vectors_are(model: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(IMAGES[1]).save(path, exif=exif)
    upright = model.load_image(path, exif_transpose=True)
    assert model.load_image(path).size == upright.size[::-1]
    box, mask = [[2, 3, 30, 20]], np.ones((1, upright.height, upright.width))
    for turned, expected in (
        (model.embed_regions(path, box, exif_transpose=True), model.embed_regions(upright, box)),
        (model.embed_masks(path, mask, exif_transpose=True), model.embed_masks(upright, mask))
        if model.graphs.has("mask")
        else (mask, mask),
        (model.dense_features(path, exif_transpose=True)[0], model.dense_features(upright)[0]),
    ):
        np.testing.assert_array_equal(turned, expected)
    assert (model.dense(path).patches.orientation, model.dense(upright).patches.orientation) == (6, 1)
