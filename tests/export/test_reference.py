"""The PyTorch reference against the goldens, and each rewrite of the graphs against the reference."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fgclip_rt.export.checkpoints.locate import locate
from fgclip_rt.export.checkpoints.tensors import load_weights
from fgclip_rt.export.families.fgclip2 import reference
from fgclip_rt.export.families.fgclip2.config import Config
from fgclip_rt.export.families.siglip2.graphs import triangle_weights
from fgclip_rt.export.families.siglip2.reference import resize_positions
from fgclip_rt.export.graphs.regions import RegionGraph, roi_weights
from fgclip_rt.export.reference.blocks import WalkType
from fgclip_rt.export.reference.roi_align import grid_units, region_features
from fgclip_rt.images import load_image
from fgclip_rt.model import Model
from fgclip_rt.preparation import NaflexPreparation
from helpers import WALK_TYPES, Golden, assert_parity

MAIN = Golden("fgclip2")
#: Rows and columns of a position table's target grid.
SHAPES = [
    (1, 2),
    (1, 16),
    (1, 75),
    (1, 1024),
    (2, 3),
    (7, 7),
    (9, 12),
    (16, 16),
    (15, 17),
    (27, 29),
    (40, 3),
    (128, 128),
]
ONE_COLUMN = [(1, 1), (2, 1), (16, 1), (67, 1), (1024, 1)]


@pytest.fixture(scope="module")
def net(golden: Golden) -> reference.Fgclip2:
    config = Config.from_json(json.loads((golden.checkpoint / "config.json").read_text()))
    with torch.device("meta"):
        module = reference.Fgclip2(config)
    load_weights(module, locate(str(golden.checkpoint)))
    return module.eval().requires_grad_(False)


def padded(pixels: list[np.ndarray], grids: list[tuple[int, int]], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel values, mask and shapes of one batch, as the released processor hands them over."""
    values, mask = torch.zeros(len(grids), length, pixels[0].shape[1]), torch.zeros(len(grids), length)
    for i, (rows, grid) in enumerate(zip(pixels, grids, strict=True)):
        count = grid[0] * grid[1]
        values[i, :count] = (torch.tensor(rows[:count]) / 255 - 0.5) / 0.5
        mask[i, :count] = 1
    return values, mask, torch.tensor(grids)


@pytest.mark.parametrize("index", range(7))
def test_image_features(golden: Golden, net: reference.Fgclip2, index: int) -> None:
    grid = golden.grids[index]
    inputs = padded([golden.pixels[index]], [grid], golden.buckets[index])
    assert_parity(net.get_image_features(*inputs).numpy()[0], golden.expected[f"image{index}.image_features"])
    if f"image{index}.dense_features" in golden.expected:
        dense = net.get_image_dense_features(*inputs)[0, : grid[0] * grid[1]]
        assert_parity(dense.numpy(), golden.expected[f"image{index}.dense_features"])


@pytest.mark.parametrize("index", range(7))
def test_region_features(index: int) -> None:
    grid = MAIN.grids[index]
    dense = torch.tensor(MAIN.expected[f"image{index}.dense_features"]).view(*grid, -1)
    # The released code saw Python's numbers, such as 9.7, which the file holds as float32.
    boxes = np.round(MAIN.expected[f"image{index}.boxes"].astype(np.float64), 4)
    width, height = load_image(MAIN.images[index]).size
    regions = region_features(dense, grid_units(boxes, (height, width), grid, "float64"))
    assert_parity(regions.numpy(), MAIN.expected[f"image{index}.region_features"])


def test_one_batch_with_256_patches(golden: Golden, net: reference.Fgclip2, model: Model) -> None:
    preparation = NaflexPreparation(model.manifest.image)
    batch = [preparation(load_image(golden.images[i]), 256) for i in (1, 4, 5)]
    inputs = padded([patches.pixels for patches in batch], [patches.grid for patches in batch], 256)
    assert_parity(net.get_image_features(*inputs).numpy(), golden.expected["batch145_256.image_features"])


@pytest.mark.parametrize("walk_type", WALK_TYPES)
def test_text_features(golden: Golden, net: reference.Fgclip2, walk_type: WalkType) -> None:
    ids = torch.tensor(golden.expected[f"text.{walk_type}.input_ids"])
    mask = golden.expected.get(f"text.{walk_type}.attention_mask")
    features = net.get_text_features(ids, walk_type, None if mask is None else torch.tensor(mask))
    assert_parity(features.numpy(), golden.expected[f"text.{walk_type}.text_features"])


def test_logits(golden: Golden, net: reference.Fgclip2) -> None:
    images = torch.tensor(golden.expected["image1.image_features"])[None]
    texts = torch.tensor(golden.expected["text.short.text_features"])
    logits = net.logits_per_image(images, texts)
    assert_parity(logits.numpy(), golden.expected["forward.image1.logits_per_image"])


@cache
def table(side: int = 16) -> Tensor:
    """A position table [1, D, g, g]."""
    return torch.randn(1, 5, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_positions_are_interpolated_with_antialiasing(rows: int, columns: int) -> None:
    expected = F.interpolate(table(), (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(resize_positions(table(), rows, columns), expected)


@pytest.mark.parametrize(("rows", "columns"), ONE_COLUMN)
def test_one_column_of_positions_is_one_row_of_the_transposed_table(rows: int, columns: int) -> None:
    one_row = F.interpolate(table().mT, (columns, rows), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(resize_positions(table(), rows, columns), one_row.mT)


@pytest.mark.parametrize(("rows", "columns"), ONE_COLUMN)
def test_one_column_of_positions_is_the_weighted_mean_of_all_columns(rows: int, columns: int) -> None:
    full_width = F.interpolate(table(), (rows, 16), mode="bilinear", align_corners=False, antialias=True)
    weights = 1 - (torch.arange(16) + 0.5 - 8).abs() / 16
    expected = (full_width * weights).sum(-1, keepdim=True) / weights.sum()
    torch.testing.assert_close(resize_positions(table(), rows, columns), expected, rtol=1e-4, atol=1e-5)


def assert_weights_resize(rows: int, columns: int, side: int) -> None:
    by_row, by_column = (
        triangle_weights(torch.arange(size, dtype=torch.float32)[None], torch.tensor([[float(size)]]), side)[0]
        for size in (rows, columns)
    )
    for weights in (by_row, by_column):
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
        assert (weights >= 0).all()
    product = torch.einsum("rg,bdgh,ch->bdrc", by_row, table(side), by_column)
    torch.testing.assert_close(product, resize_positions(table(side), rows, columns), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, *ONE_COLUMN, (3, 5461), (16_384, 1)])
def test_triangle_weights_resize_positions(rows: int, columns: int) -> None:
    assert_weights_resize(rows, columns, side=16)


@given(rows=st.integers(1, 64), columns=st.integers(1, 64), side=st.integers(1, 20))
def test_triangle_weights_resize_any_table(rows: int, columns: int, side: int) -> None:
    assert_weights_resize(rows, columns, side)


def random_boxes(
    kind: str, image: tuple[int, int], grid: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    """Boxes [12, 2, 2] as (corner, axis) with x first, some of which may be empty."""
    size, cells = np.array(image[::-1]), np.array(grid[::-1])

    def between(low: float, high: float) -> np.ndarray:
        return np.sort(generator.uniform(low, high, (12, 2, 2)), axis=1)

    if kind == "inside":
        return between(0, 1) * size
    if kind == "over the border":
        return between(-0.4, 1.4) * size
    if kind == "huge":
        return between(-3, 4) * size
    if kind == "aligned with cells":
        return np.sort(generator.integers(-2, cells.max() + 3, (12, 2, 2)), axis=1) * size / cells
    if kind == "aligned with half cells":
        return (np.sort(generator.integers(-2, cells.max() + 3, (12, 2, 2)), axis=1) + 0.5) * size / cells
    assert kind == "tiny"
    corner = generator.uniform(0, 1, (12, 1, 2)) * size
    return np.concatenate([corner, corner + 10.0 ** generator.uniform(-7, 0, (12, 1, 2))], axis=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "kind", ["inside", "over the border", "huge", "aligned with cells", "aligned with half cells", "tiny"]
)
def test_region_graph_is_roi_align_on_mixed_grids(kind: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    grids = [(1, 1), (1, 17), (13, 1), *(tuple(generator.integers(1, 21, 2).tolist()) for _ in range(2))]
    images = [tuple(size) for size in generator.integers(1, 700, (5, 2)).tolist()]
    images[3] = (grids[3][0] * 16, grids[3][1] * 16)
    dense = torch.tensor(generator.normal(size=(5, max(h * w for h, w in grids) + 3, 8)).astype(np.float32))

    owners, boxes = [], []
    for owner, (image, grid) in enumerate(zip(images, grids, strict=True)):
        corners = random_boxes(kind, image, grid, generator)
        valid = corners[(corners[:, 0] < corners[:, 1]).all(-1)].reshape(-1, 4)
        owners += [owner] * len(valid)
        boxes.append(grid_units(valid, image, grid, "float64"))
    order = generator.permutation(len(owners))
    all_boxes, box_images = np.concatenate(boxes)[order], np.array(owners, np.int32)[order]
    assert len(all_boxes) >= 20

    features, embeds = RegionGraph()(
        dense,
        torch.tensor(grids, dtype=torch.int32),
        torch.tensor(all_boxes),
        torch.tensor(box_images),
    )
    for owner, (rows, columns) in enumerate(grids):
        on_grid = dense[owner, : rows * columns].view(rows, columns, -1)
        mine = box_images == owner
        expected = region_features(on_grid, all_boxes[mine])
        torch.testing.assert_close(features[torch.tensor(mine)], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeds, F.normalize(features, dim=-1))


@given(start=st.floats(0, 0.999), extent=st.floats(0.001, 4), cells=st.integers(1, 200))
def test_weights_of_a_box_inside_the_image_sum_to_one(start: float, extent: float, cells: int) -> None:
    low, high = np.float32(start * cells), np.float32(min(start + extent, 1) * cells)
    bin_start, bin_stop = (torch.tensor([[float(edge)]]) - 0.5 for edge in (low, high))
    cell = torch.arange(cells, dtype=torch.float32)[None]
    weights = roi_weights(cell, bin_start, bin_stop, torch.tensor([[float(cells)]]))
    expected = 1.0 if bin_start < bin_stop else 0.0
    torch.testing.assert_close(weights.sum(), torch.tensor(expected), rtol=0, atol=1e-4)
    assert weights.min() >= -1e-5
