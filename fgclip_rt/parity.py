"""Parity: whether a bundle, run on this machine, still gives the reference's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from .manifest import Limits, ParityRow
from .model import Model
from .probe import Probe, ProbeImage

#: What each precision must keep.
LIMITS = {"fp32": Limits(max_error=2e-5, min_cosine=0.999999)}

Array = np.ndarray[Any, Any]

#: The error of what cannot be compared: a value that is not finite, or another shape. JSON has no infinity.
_NO_NUMBER = float(np.finfo(np.float64).max)


def compare(actual: Array, expected: Array, limits: Limits, graph: str, case: str) -> ParityRow:
    """Compare vectors along the last axis with the reference's. Anything not finite fails."""
    if actual.shape != expected.shape:
        return ParityRow(graph, case, _NO_NUMBER, -1.0, passed=False)
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return ParityRow(graph, case, _NO_NUMBER, -1.0, passed=False)
    error = float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float64).tiny))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = float(((a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)).min())
    return ParityRow(graph, case, error, cosine, error <= limits.max_error and cosine >= limits.min_cosine)


def compare_exactly(actual: Array, expected: Array, graph: str, case: str) -> ParityRow:
    """Compare whole numbers: every one must be equal."""
    equal = actual.shape == expected.shape and bool(np.array_equal(actual, expected))
    share = 0.0 if equal else 1.0 if actual.shape != expected.shape else float(np.mean(actual != expected))
    return ParityRow(graph, case, share, 1.0 if equal else 0.0, equal)


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
    rows = []
    for row in _rows(model, probe, limits):
        progress()
        rows.append(row)
    return tuple(rows)


def count_rows(probe: Probe) -> int:
    """How many comparisons :func:`check` makes."""
    return 4 * len(probe.images) + 2 * len(probe.walk_types) + 2


def _rows(model: Model, probe: Probe, limits: Limits) -> Iterator[ParityRow]:
    features = []
    for image in probe.images:
        case = _image_case(image)
        patches = model.preparation(_pillow(image))
        yield compare_exactly(patches.pixels, image.patches, "preparation", case)
        features.append(model.embed_images([image.rgb], normalize=False)[0])
        yield compare(features[-1], image.features, limits, "vision", case)
        dense = model.dense_features([image.rgb], normalize=False)[0]
        yield compare(dense.reshape(-1, model.dim), image.dense, limits, "dense", case)
        regions = model.embed_regions(image.rgb, image.boxes, normalize=False)
        yield compare(regions, image.regions, limits, "region", case)
    yield compare(
        _all_at_once(model, probe), np.stack([i.features for i in probe.images]), limits, "vision", "mixed batch"
    )

    embeds = np.stack(features)
    short = embeds[:0]
    for walk_type, texts in probe.walk_types.items():
        tokens = model.tokenizer(probe.texts, walk_type)
        same = np.stack([tokens.input_ids, tokens.attention_mask])
        yield compare_exactly(same, np.stack([texts.input_ids, texts.attention_mask]), "tokens", walk_type)
        vectors = model.embed_texts(probe.texts, walk_type, normalize=False)
        yield compare(vectors, texts.features, limits, "text", walk_type)
        if walk_type == "short":
            short = vectors
    yield compare(model.logits(embeds, short), probe.logits, limits, "logits", "images × short")


def _all_at_once(model: Model, probe: Probe) -> Array:
    """All images in one run of the graph: every grid beside every other, as a server may batch them."""
    batch = [model.preparation(_pillow(image)) for image in probe.images]
    return model.run_vision("vision", batch, "image_features")


def _pillow(image: ProbeImage) -> Image.Image:
    return Image.fromarray(image.rgb)


def _image_case(image: ProbeImage) -> str:
    height, width = image.rgb.shape[:2]
    rows, columns = image.grid.tolist()
    return f"{width}×{height}, {rows}×{columns} patches"
