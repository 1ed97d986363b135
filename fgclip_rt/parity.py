"""Parity: whether a bundle, run on this machine, still gives the reference's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from .graphs import ImageInputs
from .images import ImageSource
from .manifest import Limits, ParityRow
from .model import Model
from .probe import Probe, ProbeImage

#: What each precision must keep. A dense map has hundreds of vectors, and some lie where the model itself is undecided:
#: one in twenty may fall below the floor where steps are coarse.
LIMITS = {
    "fp32": Limits(max_error=2e-5, min_cosine=0.999999, dense_share=1.0),
    "fp16": Limits(max_error=None, min_cosine=0.9995, dense_share=1.0),
    "bf16": Limits(max_error=None, min_cosine=0.995, dense_share=0.95),
    "int8": Limits(max_error=None, min_cosine=0.99, dense_share=0.95),
    "fp8": Limits(max_error=None, min_cosine=0.99, dense_share=0.95),
}

Array = np.ndarray[Any, Any]

#: Graphs of parts of an image; not every model has them.
PARTS = ("dense", "region", "mask")

#: Vectors [n, D] to their logits [n, m] against the reference's vectors of the other kind.
Logits: TypeAlias = Callable[[Array], Array]

#: The error of what cannot be compared: a value that is not finite, or another shape. JSON has no infinity.
_NO_NUMBER = float(np.finfo(np.float64).max)

_TINY = np.finfo(np.float64).tiny


def compare(
    actual: Array, expected: Array, limits: Limits, graph: str, case: str, logits: Logits | None = None
) -> ParityRow:
    """Compare vectors along the last axis with the reference's. Anything not finite fails, and so does nothing at all.

    Args:
        actual: [..., D].
        expected: the reference's, of the same shape.
        limits: what to demand.
        graph: where the vectors come from; of ``dense`` the limits may let some fall below.
        case: what they are of.
        logits: what to judge a shift of the vectors by; None where there is nothing to compare them with.
    """
    count = math.prod(expected.shape[:-1])
    if actual.shape != expected.shape or not expected.size or not _finite(actual, expected):
        return _incomparable(graph, case, count, judged=logits is not None)
    actual, expected = (vectors.reshape(count, -1) for vectors in (actual, expected))
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    difference = float(np.abs(a - b).max())
    error = difference / max(float(np.abs(b).max()), _TINY)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = (a * b).sum(-1) / np.maximum(norms, _TINY)
    shift, flips = (None, None) if logits is None else _shift_and_flips(logits(actual), logits(expected))
    within = float((cosines >= limits.min_cosine).mean())
    share = limits.dense_share if graph == "dense" else 1.0
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
        passed=within >= share and (limits.max_error is None or error <= limits.max_error),
    )


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
    return ParityRow(graph, case, count, share, difference, cosine, cosine, cosine, None, None, equal)


def check(
    model: Model, probe: Probe, limits: Limits, progress: Callable[[], None] = lambda: None
) -> tuple[ParityRow, ...]:
    """Run the probe through every step of ``model``: preparation, each graph, and the logits.

    Args:
        model: a loaded bundle.
        probe: recorded inputs and results.
        limits: what to demand.
        progress: called after each comparison.
    """
    return _collect(_rows(model, probe, limits), progress)


def count_rows(probe: Probe) -> int:
    """How many comparisons :func:`check` makes."""
    return sum(1 + _count_graphs(image) for image in probe.images) + 2 * len(probe.walk_types) + 2


def check_held_out(
    model: Model, held_out: Probe, limits: Limits, progress: Callable[[], None] = lambda: None
) -> tuple[ParityRow, ...]:
    """Run the graphs of ``model`` on inputs that no choice was made on, in one comparison per bucket and walk type.

    Args:
        model: a loaded bundle.
        held_out: inputs, and what the proven fp32 graphs make of them; neither patches, tokens nor logits are read.
        limits: what to demand.
        progress: called after each comparison.
    """
    return _collect(_held_out_rows(model, held_out, limits), progress)


def count_held_out_rows(model: Model, held_out: Probe) -> int:
    """How many comparisons :func:`check_held_out` makes."""
    buckets = _by_bucket(model, held_out)
    return sum(_count_graphs(images[0]) for images in buckets.values()) + len(held_out.walk_types)


def _collect(rows: Iterable[ParityRow], progress: Callable[[], None]) -> tuple[ParityRow, ...]:
    collected = []
    for row in rows:
        progress()
        collected.append(row)
    return tuple(collected)


def _rows(model: Model, probe: Probe, limits: Limits) -> Iterator[ParityRow]:
    for image in probe.images:
        case = _image_case(image)
        yield compare_exactly(model.preparation(_pillow(image)).pixels, image.patches, "preparation", case)
        yield from _image_rows(model, probe, [image], limits, case)
    embeds = _all_at_once(model, probe)
    to_texts = _to_texts(model, probe, "short")
    yield compare(embeds, _image_features(probe.images), limits, "vision", "mixed batch", to_texts)

    short = embeds[:0]
    for walk_type, texts in probe.walk_types.items():
        tokens = model.tokenizer(texts.texts, walk_type)
        recorded = np.concatenate([texts.input_ids, texts.attention_mask], axis=1)
        yield compare_exactly(
            np.concatenate([tokens.input_ids, tokens.attention_mask], axis=1), recorded, "tokens", walk_type
        )
        vectors = model.embed_texts(texts.texts, walk_type, normalize=False)
        yield compare(vectors, texts.features, limits, "text", walk_type, _to_images(model, probe, walk_type))
        if walk_type == "short":
            short = vectors
    # Logits are their own logits: the shift is their largest difference, a flip an image with another best text.
    logits = model.logits(embeds, short)
    yield compare(logits, probe.logits, limits, "logits", "images × short", lambda rows: rows)


def _held_out_rows(model: Model, probe: Probe, limits: Limits) -> Iterator[ParityRow]:
    for bucket, images in _by_bucket(model, probe).items():
        yield from _image_rows(model, probe, images, limits, f"held out, bucket {bucket}")
    for walk_type, texts in probe.walk_types.items():
        vectors = model.embed_texts(texts.texts, walk_type, normalize=False)
        to_images = _to_images(model, probe, walk_type)
        yield compare(vectors, texts.features, limits, "text", f"held out, {walk_type}", to_images)


def _image_rows(
    model: Model, probe: Probe, images: Sequence[ProbeImage], limits: Limits, case: str
) -> Iterator[ParityRow]:
    """One comparison per graph that sees images, over the vectors of all ``images`` of ``probe`` together.

    Every image runs alone, so that the memory needed is that of one; batches are for other tests.
    """
    to_captions, to_names = _to_texts(model, probe, "short"), _to_texts(model, probe, "box")
    features = np.concatenate([model.embed_images([image.rgb], normalize=False) for image in images])
    yield compare(features, _image_features(images), limits, "vision", case, to_captions)
    found = [image_parts(model, _pillow(image), image.boxes, image.masks) for image in images]
    expected = [_reference(image) for image in images]
    for graph in filter(model.graphs.has, PARTS):
        # What a model has and its probe lacks has not been proven.
        if any(graph not in parts for parts in (*found, *expected)):
            yield _incomparable(graph, case, len(images), judged=to_names is not None)
            continue
        actual, reference = (np.concatenate([parts[graph] for parts in every]) for every in (found, expected))
        yield compare(actual, reference, limits, graph, case, to_names)


def _reference(image: ProbeImage) -> dict[str, Array]:
    """The reference's vectors of parts of an image, by the graph that makes them."""
    vectors = {"dense": image.dense, "region": image.regions, "mask": image.mask_features}
    return {graph: found for graph, found in vectors.items() if found is not None}


def _count_graphs(image: ProbeImage) -> int:
    return 1 + len(_reference(image))


def image_parts(model: Model, image: ImageSource, boxes: Array | None, masks: Array | None) -> dict[str, Array]:
    """The vectors of the parts of an image, by graph, from one run of the dense graph; none if the model has none.

    Args:
        model: a loaded bundle.
        image: the image.
        boxes: [r, 4], xyxy in pixels of the image, for a model that has regions.
        masks: [m, h, w], on the image's grid, for a model that has masks.

    Returns:
        Features, not normalised: ``dense`` [h·w, D], and ``region`` [r, D] and ``mask`` [m, D] if there are any.
    """
    if not model.graphs.has("dense"):
        return {}
    dense = model.dense(image)
    found: dict[str, Array] = {"dense": dense.features(normalize=False).reshape(-1, model.dim)}
    if model.graphs.has("region") and boxes is not None:
        found["region"] = dense.regions(boxes, normalize=False)
    if model.graphs.has("mask") and masks is not None:
        found["mask"] = dense.masks(masks, normalize=False)
    return found


def _by_bucket(model: Model, probe: Probe) -> dict[int, list[ProbeImage]]:
    """The probe's images by the bucket that each takes, the smallest first."""
    buckets: dict[int, list[ProbeImage]] = {}
    for image in probe.images:
        height, width = image.rgb.shape[:2]
        buckets.setdefault(model.preparation.bucket(width, height), []).append(image)
    return dict(sorted(buckets.items()))


def _to_texts(model: Model, probe: Probe, walk_type: str) -> Logits | None:
    """Logits against the reference's features of the texts of ``walk_type``."""
    texts = probe.walk_types.get(walk_type)
    return None if texts is None else _against(model, texts.features)


def _to_images(model: Model, probe: Probe, walk_type: str) -> Logits | None:
    """Logits against the reference's features of what texts of ``walk_type`` describe: regions, or whole images."""
    if not probe.images:
        return None
    regions = [image.regions for image in probe.images if image.regions is not None]
    described = np.concatenate(regions) if walk_type == "box" and regions else _image_features(probe.images)
    return _against(model, described)


def _against(model: Model, others: Array) -> Logits | None:
    """Logits against ``others`` [m, D]; None where they can tell nothing."""
    if not len(others) or not _finite(others):
        return None
    return lambda vectors: model.logits(vectors, others)


def _image_features(images: Sequence[ProbeImage]) -> Array:
    return np.stack([image.features for image in images])


def _shift_and_flips(actual: Array, expected: Array) -> tuple[float, int]:
    """Largest difference of two arrays of logits [n, m], and how many rows have another largest column."""
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
        passed=False,
    )


def _finite(*arrays: Array) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _all_at_once(model: Model, probe: Probe) -> Array:
    """All images in one run of the graph: every grid beside every other, as a server may batch them."""
    batch = [model.preparation(_pillow(image)) for image in probe.images]
    return model.graphs.vision(ImageInputs.of(batch), normalize=False).result()


def _pillow(image: ProbeImage) -> Image.Image:
    return Image.fromarray(image.rgb)


def _image_case(image: ProbeImage) -> str:
    height, width = image.rgb.shape[:2]
    rows, columns = image.grid.tolist()
    return f"{width}×{height}, {rows}×{columns} patches"
