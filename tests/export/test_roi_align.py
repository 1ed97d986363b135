"""Regions against RoIAlign as torchvision's CPU kernel computes it, for boxes whose sides are whole patches.

The number of samples in a box is the ceiling of its extent in patches. Such boxes show every rounding on the way.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fgclip_rt.boxes import grid_boxes
from fgclip_rt.export.bundle.probe import IMAGE_SIZES, probe_boxes
from fgclip_rt.export.graphs.regions import RegionGraph
from fgclip_rt.export.reference.roi_align import grid_units, region_features
from fgclip_rt.manifest import BoxShares
from fgclip_rt.model import Model
from fgclip_rt.preparation import target_grid
from fgclip_rt.probe import Probe
from helpers import assert_parity, picture

F = np.float32
Array = np.ndarray[Any, Any]
Size = tuple[int, int]

#: (height, width) of images; the first is one in which float32 divides a box of 3 patches into 4.
SIZES = ((432, 576), (480, 640), (333, 500), (427, 640), (150, 200), (720, 1280), (97, 333), (1000, 31))


# Independent of the reference and of the runtime: plain numbers, one at a time.


def released_boxes(boxes: Array, image: Size, grid: Size, shares: BoxShares) -> Array:
    """Boxes on the grid as the released code makes them of Python's numbers, float32 [R, 4]."""
    (height, width), (rows, columns) = image, grid
    made = []
    for x1, y1, x2, y2 in boxes.tolist():
        if shares == "float64":
            made.append([x1 / width * columns, y1 / height * rows, x2 / width * columns, y2 / height * rows])
        else:
            normed = [F(x1 / width), F(y1 / height), F(x2 / width), F(y2 / height)]
            made.append([part * F(count) for part, count in zip(normed, (columns, rows) * 2, strict=True)])
    return np.array(made, np.float32)


def divided_in_float32(boxes: Array, image: Size, grid: Size) -> Array:
    """The same as a graph in float32 would make them of pixels."""
    (height, width), (rows, columns) = image, grid
    on_image = boxes.astype(F) / np.array([width, height] * 2, F)
    made: Array = on_image * np.array([columns, rows] * 2, F)
    return made


def extents(boxes: Array) -> Array:
    """Number of samples of each box on the grid along x and y, int [R, 2]."""
    edges = boxes - F(0.5)
    assert edges.dtype == np.float32
    return np.ceil(edges[:, 2:] - edges[:, :2]).astype(int)


def kernel(dense: Array, box: Array) -> Array:
    """``roi_align(dense, box, output_size=1, spatial_scale=1, sampling_ratio=-1, aligned=True)``, all in float32."""
    rows, columns, width = dense.shape
    x1, y1, x2, y2 = (F(edge) - F(0.5) for edge in box)
    roi_w, roi_h = x2 - x1, y2 - y1
    grid_w, grid_h = int(np.ceil(roi_w)), int(np.ceil(roi_h))
    total = np.zeros(width, np.float32)
    for iy in range(grid_h):
        y = y1 + (F(iy) + F(0.5)) * roi_h / F(grid_h)
        for ix in range(grid_w):
            x = x1 + (F(ix) + F(0.5)) * roi_w / F(grid_w)
            if y < -1 or y > rows or x < -1 or x > columns:
                continue
            (top, bottom, ly), (left, right, lx) = neighbours(y, rows), neighbours(x, columns)
            hy, hx = F(1) - ly, F(1) - lx
            total += hy * hx * dense[top, left] + hy * lx * dense[top, right]
            total += ly * hx * dense[bottom, left] + ly * lx * dense[bottom, right]
    return total / F(max(grid_w * grid_h, 1))


def neighbours(position: F, size: int) -> tuple[int, int, F]:
    """The cells below and above a position, and its distance from the lower one."""
    position = max(position, F(0))
    low = int(position)
    if low >= size - 1:
        return size - 1, size - 1, F(0)
    return low, low + 1, position - F(low)


def whole_boxes(image: Size, grid: Size, count: int = 60) -> Array:
    """Boxes float64 [R, 4] in pixels with sides of 1 to 4 patches; half of them begin on the border of a patch."""
    generator = np.random.default_rng(image)
    (height, width), (rows, columns) = image, grid
    corner = np.stack([generator.integers(0, columns, count), generator.integers(0, rows, count)], axis=1)
    # Eighths of a patch, which are whole pixels in many images.
    corner = corner + generator.integers(0, 8, (count, 2)) / 8 * (np.arange(count) % 2)[:, None]
    edges = np.concatenate([corner, corner + generator.integers(1, 5, (count, 2))], axis=1)
    boxes: Array = edges * [width, height, width, height] / [columns, rows, columns, rows]
    return boxes


@cache
def dense_features(grid: Size) -> Array:
    return np.random.default_rng(grid).normal(size=(*grid, 4)).astype(np.float32)


def of_graph(dense: Array, boxes: Array) -> Array:
    grid = dense.shape[:2]
    features, _ = RegionGraph()(
        torch.tensor(dense).flatten(0, 1)[None],
        torch.tensor([grid], dtype=torch.int32),
        torch.tensor(boxes),
        torch.zeros(len(boxes), dtype=torch.int32),
    )
    made: Array = features.numpy()
    return made


@pytest.mark.parametrize("shares", ["float64", "float32"])
@pytest.mark.parametrize("image", SIZES)
def test_boxes_of_whole_patches_are_the_kernels(image: Size, shares: BoxShares) -> None:
    grid = target_grid(*image, 16, 1024) if shares == "float64" else (14, 14)
    boxes, dense = whole_boxes(image, grid), dense_features(grid)
    released = released_boxes(boxes, image, grid, shares)
    on_grid = grid_boxes(boxes, image, grid, "xyxy", shares)
    of_reference = grid_units(boxes, image, grid, shares)
    np.testing.assert_array_equal(on_grid, released)
    np.testing.assert_array_equal(of_reference, released)

    expected = np.stack([kernel(dense, box) for box in released])
    np.testing.assert_allclose(of_graph(dense, on_grid), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(region_features(torch.tensor(dense), of_reference), expected, atol=1e-5)


def test_such_boxes_tell_a_division_in_float32() -> None:
    """Otherwise the test above would prove nothing."""
    differing = []
    for image in SIZES:
        grid = target_grid(*image, 16, 1024)
        boxes = whole_boxes(image, grid)
        one, other = released_boxes(boxes, image, grid, "float64"), divided_in_float32(boxes, image, grid)
        differing.append((extents(one) != extents(other)).any(axis=1).mean())
    assert np.mean(differing) > 0.05


def test_the_box_that_a_division_in_float32_samples_more_than_thrice() -> None:
    """Three patches wide and one tall: three samples, at x = 2.25, 3.25, 4.25 and y = 14.125."""
    image, grid, boxes = (432, 576), (27, 36), np.array([[36.0, 226, 84, 242]])
    dense = dense_features(grid)
    row = dense[14] * F(0.875) + dense[15] * F(0.125)
    expected = np.mean([row[x] * F(0.75) + row[x + 1] * F(0.25) for x in (2, 3, 4)], axis=0)
    on_grid = grid_boxes(boxes, image, grid)
    np.testing.assert_allclose(of_graph(dense, on_grid)[0], expected, rtol=0, atol=1e-6)
    in_float32 = divided_in_float32(boxes, image, grid)
    assert extents(on_grid).tolist() == [[3, 1]] != extents(in_float32).tolist()
    assert np.abs(kernel(dense, in_float32[0]) - expected).max() > 0.01


def test_the_proof_of_an_export_would_see_a_division_in_float32(
    bundle_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = [image for image in Probe.load(bundle_path / "probe.safetensors").images if image.regions is not None]
    assert len(recorded) == len(IMAGE_SIZES)

    def differing() -> int:
        count = 0
        for image in recorded:
            try:
                assert_parity(model.embed_regions(image.rgb, image.boxes, normalize=False), image.regions)
            except AssertionError:
                count += 1
        return count

    assert differing() == 0
    monkeypatch.setattr(
        "fgclip_rt.dense.grid_boxes", lambda boxes, image, grid, *_: divided_in_float32(boxes, image, grid)
    )
    assert differing() >= 1


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_the_boxes_of_the_probe_have_sides_of_whole_patches(model: Model, size: Size) -> None:
    patches = model.preparation(Image.fromarray(picture(*size)))
    boxes = probe_boxes(patches)
    assert boxes.dtype == np.float64
    middle, whole, sliver, _ = grid_boxes(boxes, size, patches.grid)
    np.testing.assert_array_equal(middle, np.rint(middle))
    np.testing.assert_array_equal(whole, [0, 0, *patches.grid[::-1]])
    sides = sliver[2:] - sliver[:2]
    np.testing.assert_allclose(sides, np.rint(sides), rtol=0, atol=1e-4)
    assert (sides > 0.5).all()
