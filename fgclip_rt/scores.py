"""Vectors to scores, by the formulas in a manifest."""

from __future__ import annotations

import numpy as np

from .arrays import FloatArray
from .manifest import Score


def l2_normalize(vectors: FloatArray) -> FloatArray:
    """Vectors of length one along the last axis; a zero vector stays zero."""
    lengths: FloatArray = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-12))
    normalized: FloatArray = vectors / lengths
    return normalized


def cosines(images: FloatArray, texts: FloatArray) -> FloatArray:
    """Cosines float32 [n, m] of vectors [n, D] with [m, D], of any lengths."""
    return l2_normalize(images) @ l2_normalize(texts).T


def logits(images: FloatArray, texts: FloatArray, score: Score) -> FloatArray:
    """exp(logit_scale) · cosine + logit_bias, float32 [n, m], of vectors [n, D] and [m, D] of any lengths."""
    scaled: FloatArray = (cosines(images, texts) * np.exp(score.logit_scale) + score.logit_bias).astype(np.float32)
    return scaled


def probabilities(logits: FloatArray, score: Score) -> FloatArray:
    """Probabilities float32 [n, m] of logits: a sigmoid of each, or a softmax over the m texts of an image."""
    result: FloatArray
    if score.activation == "softmax":
        weights: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        result = weights / weights.sum(axis=-1, keepdims=True)
    else:
        # exp of negative numbers only, so that it cannot overflow.
        decay = np.exp(-np.abs(logits))
        result = np.where(logits >= 0, np.float32(1), decay) / (1 + decay)
    return result


def similarity_maps(dense: FloatArray, text_embeds: FloatArray) -> FloatArray:
    """Cosines float32 [m, h, w] of dense features [h, w, D] with texts [m, D], both of length one."""
    return np.ascontiguousarray(np.moveaxis(dense @ text_embeds.T, -1, 0))


def largest_at(values: FloatArray, size: tuple[int, int]) -> tuple[float, float]:
    """Centre (x, y) of the patch where a map [h, w] is largest, in pixels of an image of ``size`` (width, height)."""
    rows, columns = values.shape
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return (float(column) + 0.5) / columns * size[0], (float(row) + 0.5) / rows * size[1]


def box_around_largest(values: FloatArray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Box around the place where a map [h, w] is largest, xyxy in pixels of an image of ``size`` (width, height).

    The place is all patches that hang together with the largest, by their sides, and whose cosines are at least halfway
    from the map's median to the largest.
    """
    rows, columns = values.shape
    least = (np.median(values) + values.max()) / 2
    belongs = values >= least
    first = divmod(int(values.argmax()), columns)
    place, border = {first}, [first]
    while border:
        row, column = border.pop()
        for beside in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= beside[0] < rows and 0 <= beside[1] < columns
            if inside and beside not in place and belongs[beside]:
                place.add(beside)
                border.append(beside)
    top, bottom = min(row for row, _ in place), max(row for row, _ in place) + 1
    left, right = min(column for _, column in place), max(column for _, column in place) + 1
    width, height = size[0] / columns, size[1] / rows
    return left * width, top * height, right * width, bottom * height
