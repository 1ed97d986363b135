"""Parity: whether a bundle, run on this machine, still gives the reference's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from .arrays import Array, ByteArray, FloatArray
from .graphs import ImageInputs, Output
from .images import ImageSource
from .manifest import FromExact, Limits, ParityRow
from .model import Model
from .preparation import Preparation
from .probe import Probe, ProbeImage, ProbeTexts
from .progress import BeginStage, silent, tracked
from .text import Tokens

#: Graphs of parts of an image; not every model has them.
PARTS = ("dense", "region", "mask")

#: Vectors [n, D] to their logits [n, m] against the reference's vectors of the other kind.
Logits: TypeAlias = Callable[[Array], Array]

#: The error of vectors that cannot be compared: a value is not finite, or shapes differ. JSON has no infinity.
_NO_NUMBER = float(np.finfo(np.float64).max)

_TINY = np.finfo(np.float64).tiny

#: Cases of the two steps that take all images together.
_MIXED_BATCH, _LOGITS = "mixed batch", "images × short"

#: Patches of the largest image of the mixed batch, if enough images are as small.
_MOST_MIXED = 256

#: Largest distance from exact vectors, as a multiple of the distance that the float32 reference has from them. Sums in
#: another order have errors of the same size, and the largest of many errors scatters.
_AS_FAR = 3.0

#: The least cosine with the float32 reference that an error of float32 alone could explain, with room to spare.
_LEAST_NEAR_COSINE = 0.99

#: The least cosine with exact vectors that fp32 may have, however far the float32 reference is: the floor of fp16.
_LEAST_EXACT_COSINE = 0.9995


class ReaderGraphs(Protocol):
    """The graphs of a reader, as :class:`fgclip_rt.graphs.Graphs`."""

    def has(self, graph: str) -> bool:
        """Whether the model has a graph."""

    def vision(self, images: ImageInputs, *, normalize: bool = True) -> Output:
        """Vectors float32 [B, D] of prepared images that run together."""


class ReaderImage(Protocol):
    """An image for its parts, as :class:`fgclip_rt.dense.DenseImage`."""

    def features(self, normalize: bool = True) -> FloatArray:
        """Vectors float32 [h, w, D], one per patch."""

    def regions(self, boxes: ArrayLike, normalize: bool = True) -> FloatArray:
        """Vectors float32 [r, D] of boxes [r, 4], xyxy in pixels of the image."""

    def masks(self, masks: ArrayLike, normalize: bool = True) -> FloatArray:
        """Vectors float32 [m, D] of masks [m, h, w]."""


class Reader(Protocol):
    """A reader of a bundle that answers like :class:`fgclip_rt.Model`, as far as a check asks; the C library does too.

    With ``normalize=False`` the answers are the reference's own features.
    """

    @property
    def dim(self) -> int:
        """Width D of every vector."""

    @property
    def graphs(self) -> ReaderGraphs:
        """The graphs."""

    @property
    def preparation(self) -> Preparation:
        """Turns images (RGB) into patches."""

    @property
    def tokenizer(self) -> Callable[[Sequence[str], str], Tokens]:
        """Turns texts of a walk type into tokens."""

    def embed_images(self, images: Sequence[ImageSource], *, normalize: bool = True) -> FloatArray:
        """Vectors float32 [n, D] of images."""

    def embed_texts(self, texts: Sequence[str], walk_type: str, normalize: bool = True) -> FloatArray:
        """Vectors float32 [n, D] of texts."""

    def dense(self, image: ImageSource) -> ReaderImage:
        """An image for its parts."""

    def logits(self, image_embeds: ArrayLike, text_embeds: ArrayLike) -> FloatArray:
        """Logits float32 [n, m] of vectors [n, D] and [m, D]."""


class Step(msgspec.Struct, frozen=True):
    """A part of a check: some runs of a model, and the comparisons of their results.

    Attributes:
        graphs: the graphs that it judges; ``logits`` for the logits, ``preparation`` and ``tokens`` for these.
        case: the inputs, in words; the ``case`` of each of its rows.
        rows: runs the model and compares.
    """

    graphs: tuple[str, ...]
    case: str
    rows: Callable[[], Sequence[ParityRow]]


def compare(
    actual: Array,
    expected: Array,
    limits: Limits,
    graph: str,
    case: str,
    logits: Logits | None = None,
    exact: Array | None = None,
) -> ParityRow:
    """Compare vectors along the last axis with the reference's. A value that is not finite fails, and so do no vectors.

    A residual stream of huge values costs float32 itself more than the limits allow. Vectors that miss the limits pass
    all the same if they are at most three times as far from the exact vectors as the float32 reference is.

    Args:
        actual: [..., D].
        expected: the reference's, of the same shape.
        limits: limits to demand.
        graph: the graph that made the vectors; the limits may let some vectors of ``dense`` fall below.
        case: the input of the graph, in words.
        logits: judges a shift of the vectors; None if there are no vectors of the other kind.
        exact: the results of the reference in float64, of the same shape; None to judge by the limits alone.
    """
    count = math.prod(expected.shape[:-1])
    if actual.shape != expected.shape or not expected.size or not _finite(actual, expected):
        return _incomparable(graph, case, count, judged=logits is not None)
    actual, expected = (vectors.reshape(count, -1) for vectors in (actual, expected))
    difference, error, cosines = _distance(actual, expected)
    shift, flips = (None, None) if logits is None else _shift_and_flips(logits(actual), logits(expected))
    within = float((cosines >= limits.min_cosine).mean())
    share = limits.dense_share if graph == "dense" else 1.0
    passed = within >= share and (limits.max_error is None or error <= limits.max_error)
    from_exact = None
    if not passed and exact is not None and exact.size == expected.size and _finite(exact):
        from_exact = _from_exact(actual, expected, exact.reshape(count, -1))
        passed = _as_near_as_float32(from_exact, limits)
    return ParityRow(
        graph=graph,
        case=case,
        count=count,
        max_error=error,
        max_difference=difference,
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        within=within,
        logit_shift=shift,
        flips=flips,
        from_exact=from_exact,
        passed=passed,
    )


def may_be_float32(row: ParityRow) -> bool:
    """Whether a failed comparison is near enough that float32 may be at fault, and not the graph."""
    return row.min_cosine >= _LEAST_NEAR_COSINE


def _distance(actual: Array, expected: Array) -> tuple[float, float, Array]:
    """Largest difference of vectors [n, D], the same as a share of the largest expected value, and cosines [n]."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    difference = float(np.abs(a - b).max())
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = (a * b).sum(-1) / np.maximum(norms, _TINY)
    return difference, difference / max(float(np.abs(b).max()), _TINY), cosines


def _from_exact(actual: Array, expected: Array, exact: Array) -> FromExact:
    _, error, cosines = _distance(actual, exact)
    _, reference_error, reference_cosines = _distance(expected, exact)
    return FromExact(error, float(cosines.min()), reference_error, float(reference_cosines.min()))


def _as_near_as_float32(distances: FromExact, limits: Limits) -> bool:
    """Whether every distance keeps its limit, or is at most :data:`_AS_FAR` times that of the float32 reference."""
    if limits.max_error is None:
        return False
    most = max(limits.max_error, _AS_FAR * distances.reference_error)
    # For small angles, a cosine's distance from one is half the square of its angle.
    furthest = max(1 - limits.min_cosine, _AS_FAR**2 * (1 - distances.reference_min_cosine))
    least = max(1 - furthest, _LEAST_EXACT_COSINE)
    return distances.error <= most and distances.min_cosine >= least


def compare_exactly(actual: Array, expected: Array, graph: str, case: str) -> ParityRow:
    """Compare rows of whole numbers: every one must be equal."""
    count = math.prod(expected.shape[:-1])
    if actual.shape == expected.shape:
        equal = bool(np.array_equal(actual, expected))
        share = 0.0 if equal else float(np.mean(actual != expected))
        difference = float(np.abs(actual.astype(np.float64) - expected).max(initial=0))
    else:
        equal, share, difference = False, 1.0, _NO_NUMBER
    cosine = 1.0 if equal else 0.0
    return ParityRow(graph, case, count, share, difference, cosine, cosine, cosine, None, None, None, equal)


def check(
    model: Reader,
    probe: Probe,
    limits: Limits,
    begin: BeginStage = silent,
    stage: str = "check parity",
) -> tuple[ParityRow, ...]:
    """Run the probe through every step of ``model``: preparation, each graph, and the logits.

    Args:
        model: a loaded bundle.
        probe: recorded inputs and results.
        limits: limits to demand.
        begin: is told how many runs are compared.
        stage: the name of the work, for ``begin``.
    """
    return _run(probe_steps(model, probe, limits), begin, stage)


def check_held_out(
    model: Model, held_out: Probe, limits: Limits, begin: BeginStage = silent, stage: str = "check held out"
) -> tuple[ParityRow, ...]:
    """Run the graphs of ``model`` on inputs that no choice was made on, in one comparison per bucket and walk type.

    Args:
        model: a loaded bundle.
        held_out: inputs, and the results of the proven fp32 graphs; neither patches, tokens nor logits are read.
        limits: limits to demand.
        begin: is told how many runs are compared.
        stage: the name of the work, for ``begin``.
    """
    return _run(held_out_steps(model, held_out, limits), begin, stage)


def passes(steps: Sequence[Step], graphs: Collection[str], first: Collection[str] = ()) -> bool:
    """Whether every comparison of some graphs passes; none is made after one that fails.

    Args:
        steps: steps of a check.
        graphs: the graphs to judge; steps for other graphs are left out.
        first: cases to begin with, because they failed before.
    """
    wanted = [step for step in steps if not set(graphs).isdisjoint(step.graphs)]
    wanted.sort(key=lambda step: step.case not in first)
    return all(row.passed for step in wanted for row in step.rows() if row.graph in graphs)


def worst_cases(failed: Sequence[ParityRow]) -> set[str]:
    """The case in which each graph fell below by most, of comparisons that failed."""
    worst: dict[str, ParityRow] = {}
    for row in failed:
        worst[row.graph] = min(worst.get(row.graph, row), row, key=_nearness)
    return {row.case for row in worst.values()}


def _nearness(row: ParityRow) -> tuple[float, float]:
    """How near a comparison that failed is to passing: of a dense map, a share of the vectors has to pass."""
    return row.within if row.graph == "dense" else 0.0, row.min_cosine


def _run(steps: Sequence[Step], begin: BeginStage, stage: str) -> tuple[ParityRow, ...]:
    rows: list[ParityRow] = []
    for step in tracked(begin, stage, steps):
        rows += step.rows()
    return tuple(rows)


class _Vectors:
    """A model's vectors of a probe that several comparisons need; each is computed once."""

    def __init__(self, model: Reader, probe: Probe) -> None:
        self._model = model
        self._probe = probe
        self._images: dict[int, Array] = {}
        self._texts: dict[str, Array] = {}

    def image(self, index: int) -> Array:
        """Features [1, D] of an image that runs alone."""
        if index not in self._images:
            self._images[index] = self._model.embed_images([self._probe.images[index].rgb], normalize=False)
        return self._images[index]

    def images(self) -> Array:
        """Features [n, D] of all images, each of which runs alone."""
        return np.concatenate([self.image(index) for index in range(len(self._probe.images))])

    def mixed(self, indices: Sequence[int]) -> Array:
        """Features [k, D] of images from one run: every grid beside every other, as a server may batch them."""
        batch = [self._model.preparation(_pillow(self._probe.images[index])) for index in indices]
        return self._model.graphs.vision(ImageInputs.of(batch), normalize=False).result()

    def texts(self, walk_type: str) -> Array:
        """Features [m, D] of the texts of ``walk_type``; [0, D] if the probe has no such texts."""
        if walk_type not in self._probe.walk_types:
            return np.zeros((0, self._model.dim), np.float32)
        if walk_type not in self._texts:
            texts = self._probe.walk_types[walk_type].texts
            self._texts[walk_type] = self._model.embed_texts(texts, walk_type, normalize=False)
        return self._texts[walk_type]


def probe_steps(model: Reader, probe: Probe, limits: Limits) -> list[Step]:
    """The steps of :func:`check`, in the order of their rows."""
    vectors = _Vectors(model, probe)
    exact = probe.exact

    def preparation(image: ProbeImage) -> list[ParityRow]:
        patches = model.preparation(_pillow(image)).pixels
        return [compare_exactly(patches, image.patches, "preparation", _image_case(image))]

    def vision(index: int, case: str) -> list[ParityRow]:
        one = slice(index, index + 1)
        to_texts = _to_texts(model, probe, "short")
        exactly = None if exact is None else _image_features(exact.images[one])
        return [
            compare(vectors.image(index), _image_features(probe.images[one]), limits, "vision", case, to_texts, exactly)
        ]

    def mixed_batch() -> list[ParityRow]:
        indices = _mixed(probe)
        to_texts = _to_texts(model, probe, "short")
        expected = _image_features(probe.images)[indices]
        exactly = None if exact is None else _image_features(exact.images)[indices]
        return [compare(vectors.mixed(indices), expected, limits, "vision", _MIXED_BATCH, to_texts, exactly)]

    def rows_of_parts(image: ProbeImage, index: int, case: str) -> list[ParityRow]:
        found = image_parts(model, model.dense(_pillow(image)), image.boxes, image.masks)
        exactly = None if exact is None else [_reference(exact.images[index])]
        return _compare_parts(model, probe, [found], [_reference(image)], limits, case, exactly)

    def tokens(walk_type: str, texts: ProbeTexts) -> list[ParityRow]:
        encoded = model.tokenizer(texts.texts, walk_type)
        actual = np.concatenate([encoded.input_ids, encoded.attention_mask], axis=1)
        recorded = np.concatenate([texts.input_ids, texts.attention_mask], axis=1)
        return [compare_exactly(actual, recorded, "tokens", walk_type)]

    def features(walk_type: str, texts: ProbeTexts) -> list[ParityRow]:
        to_images = _to_images(model, probe, walk_type)
        exactly = None if exact is None else exact.walk_types[walk_type].features
        return [compare(vectors.texts(walk_type), texts.features, limits, "text", walk_type, to_images, exactly)]

    def logits() -> list[ParityRow]:
        # Logits are their own logits: the shift is their largest difference, a flip an image with another best text.
        actual = model.logits(vectors.images(), vectors.texts("short"))
        exactly = None if exact is None else exact.logits
        return [compare(actual, probe.logits, limits, "logits", _LOGITS, lambda rows: rows, exactly)]

    parts = _parts(model)
    found: list[Step] = []
    for index, image in enumerate(probe.images):
        case = _image_case(image)
        found.append(Step(("preparation",), case, partial(preparation, image)))
        found.append(Step(("vision",), case, partial(vision, index, case)))
        if parts:
            found.append(Step(parts, case, partial(rows_of_parts, image, index, case)))
    found.append(Step(("vision",), _MIXED_BATCH, mixed_batch))
    for walk_type, texts in probe.walk_types.items():
        found.append(Step(("tokens",), walk_type, partial(tokens, walk_type, texts)))
        found.append(Step(("text",), walk_type, partial(features, walk_type, texts)))
    return [*found, Step(("logits",), _LOGITS, logits)]


def held_out_steps(model: Model, held_out: Probe, limits: Limits) -> list[Step]:
    """The steps of :func:`check_held_out`, in the order of their rows.

    The features of images come from the dense graph, if there is one, which has all layers of the vision graph: so the
    tower runs once for all comparisons of an image.
    """
    parts = _parts(model)

    def images(indices: Sequence[int], case: str) -> list[ParityRow]:
        seen = [held_out.images[index] for index in indices]
        found = [see(model, image.rgb, image.boxes, image.masks) for image in seen]
        features, to_captions = np.stack([whole for whole, _ in found]), _to_texts(model, held_out, "short")
        row = compare(features, _image_features(seen), limits, "vision", case, to_captions)
        recorded = list(map(_reference, seen))
        return [row, *_compare_parts(model, held_out, [of_image for _, of_image in found], recorded, limits, case)]

    def features(walk_type: str, texts: ProbeTexts, case: str) -> list[ParityRow]:
        actual = model.embed_texts(texts.texts, walk_type, normalize=False)
        return [compare(actual, texts.features, limits, "text", case, _to_images(model, held_out, walk_type))]

    found: list[Step] = []
    for bucket, indices in _by_bucket(model, held_out).items():
        case = f"held out, bucket {bucket}"
        found.append(Step(("vision", *parts), case, partial(images, indices, case)))
    for walk_type, texts in held_out.walk_types.items():
        case = f"held out, {walk_type}"
        found.append(Step(("text",), case, partial(features, walk_type, texts, case)))
    return found


def _mixed(probe: Probe) -> list[int]:
    """The indices of the images that run in one batch: small ones, because each takes the time of the largest.

    They are two if all images are large.
    """
    small = [index for index, image in enumerate(probe.images) if len(image.patches) <= _MOST_MIXED]
    return small if len(small) > 1 else list(range(len(probe.images)))[:2]


def _parts(model: Reader) -> tuple[str, ...]:
    """The graphs of parts of an image that a model has."""
    return tuple(graph for graph in PARTS if model.graphs.has(graph))


def _compare_parts(
    model: Reader,
    probe: Probe,
    actual: Sequence[dict[str, Array]],
    expected: Sequence[dict[str, Array]],
    limits: Limits,
    case: str,
    exact: Sequence[dict[str, Array]] | None = None,
) -> list[ParityRow]:
    """One comparison per graph of parts, over the vectors of all images together.

    Args:
        model: the model that is judged.
        probe: what its texts are taken from.
        actual: for each image, the model's vectors by graph.
        expected: likewise, the reference's.
        limits: the limits to keep.
        case: the inputs, in words.
        exact: likewise, exact vectors; None if there are none.
    """
    to_names = _to_texts(model, probe, "box")
    rows = []
    for graph in _parts(model):
        # A graph without recorded vectors in the probe has not been proven.
        if any(graph not in vectors for vectors in (*actual, *expected)):
            rows.append(_incomparable(graph, case, len(actual), judged=to_names is not None))
            continue
        exactly = None if exact is None else _joined(exact, graph)
        joined = _joined(actual, graph), _joined(expected, graph)
        rows.append(compare(*joined, limits, graph, case, to_names, exactly))
    return rows


def _joined(of_images: Sequence[dict[str, Array]], graph: str) -> Array:
    """The vectors [n, D] of one graph, of several images."""
    return np.concatenate([vectors[graph] for vectors in of_images])


def _reference(image: ProbeImage) -> dict[str, Array]:
    """The reference's vectors of parts of an image, by the graph that makes them."""
    vectors = {"dense": image.dense, "region": image.regions, "mask": image.mask_features}
    return {graph: recorded for graph, recorded in vectors.items() if recorded is not None}


def image_parts(model: Reader, dense: ReaderImage, boxes: Array | None, masks: Array | None) -> dict[str, Array]:
    """The vectors of the parts of an image, by graph, from one run of the dense graph.

    Args:
        model: a loaded bundle.
        dense: the image.
        boxes: [r, 4], xyxy in pixels of the image, for a model that has regions.
        masks: [m, h, w], on the image's grid, for a model that has masks.

    Returns:
        Features, not normalised: ``dense`` [h·w, D], and ``region`` [r, D] and ``mask`` [m, D] if there are any.
    """
    vectors: dict[str, Array] = {"dense": dense.features(normalize=False).reshape(-1, model.dim)}
    if model.graphs.has("region") and boxes is not None:
        vectors["region"] = dense.regions(boxes, normalize=False)
    if model.graphs.has("mask") and masks is not None:
        vectors["mask"] = dense.masks(masks, normalize=False)
    return vectors


def see(model: Model, rgb: ByteArray, boxes: Array | None, masks: Array | None) -> tuple[FloatArray, dict[str, Array]]:
    """Features [D] of an image uint8 [H, W, 3], and :func:`image_parts`, from one run of one graph.

    The parts are empty if the model has no dense features.
    """
    if not model.graphs.has("dense"):
        return model.embed_images([rgb], normalize=False)[0], {}
    patches = model.prepare(rgb)
    whole, features = model.graphs.whole_and_dense(ImageInputs.of([patches]))
    return whole[0], image_parts(model, model.dense_image(patches, features[0]), boxes, masks)


def _by_bucket(model: Reader, probe: Probe) -> dict[int, list[int]]:
    """The indices of the probe's images by the bucket that each takes, the smallest first."""
    buckets: dict[int, list[int]] = {}
    for index, image in enumerate(probe.images):
        height, width = image.rgb.shape[:2]
        buckets.setdefault(model.preparation.bucket(width, height), []).append(index)
    return dict(sorted(buckets.items()))


def _to_texts(model: Reader, probe: Probe, walk_type: str) -> Logits | None:
    """Logits against the reference's features of the texts of ``walk_type``; None if there are no such texts."""
    texts = probe.walk_types.get(walk_type)
    return None if texts is None else _against(model, texts.features)


def _to_images(model: Reader, probe: Probe, walk_type: str) -> Logits | None:
    """Logits against the reference's features of the regions or whole images that texts of ``walk_type`` describe."""
    if not probe.images:
        return None
    regions = [image.regions for image in probe.images if image.regions is not None]
    described = np.concatenate(regions) if walk_type == "box" and regions else _image_features(probe.images)
    return _against(model, described)


def _against(model: Reader, others: Array) -> Logits | None:
    """Logits against ``others`` [m, D]; None if they are empty or not finite."""
    if not len(others) or not _finite(others):
        return None
    return lambda vectors: model.logits(vectors, others)


def _image_features(images: Sequence[ProbeImage]) -> Array:
    return np.stack([image.features for image in images])


def _shift_and_flips(actual: Array, expected: Array) -> tuple[float, int]:
    """Largest difference of two arrays of logits [n, m], and the number of rows whose largest column differs."""
    shift = float(np.abs(actual.astype(np.float64) - expected).max())
    return shift, int((actual.argmax(-1) != expected.argmax(-1)).sum())


def _incomparable(graph: str, case: str, count: int, *, judged: bool) -> ParityRow:
    return ParityRow(
        graph=graph,
        case=case,
        count=count,
        max_error=_NO_NUMBER,
        max_difference=_NO_NUMBER,
        min_cosine=-1.0,
        mean_cosine=-1.0,
        within=0.0,
        logit_shift=_NO_NUMBER if judged else None,
        flips=count if judged else None,
        from_exact=None,
        passed=False,
    )


def _finite(*arrays: Array) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _pillow(image: ProbeImage) -> Image.Image:
    return Image.fromarray(image.rgb)


def _image_case(image: ProbeImage) -> str:
    height, width = image.rgb.shape[:2]
    rows, columns = image.grid.tolist()
    return f"{width}×{height}, {rows}×{columns} patches"
