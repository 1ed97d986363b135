"""Tracing: an axis that should vary varies, or there is no graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fgclip_rt.export.graphs.trace import GraphSource, trace


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class FixedBatch(nn.Module):
    """Reads its batch size as a number, as careless code does."""

    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) == 2 else x + 1


def source(module: nn.Module) -> GraphSource:
    return GraphSource(module, {"x": torch.zeros(2, 3)}, {"x": {0: "batch"}}, {"y": ("batch", 3)})


def test_an_axis_that_should_vary_varies() -> None:
    [x] = trace(source(Doubled())).graph.inputs
    assert x.shape is not None
    assert [str(axis) for axis in x.shape] == ["batch", "3"]


def test_an_axis_that_the_exporter_fixed_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"fixed axis 0 \(batch\) of x to 2"):
        trace(source(FixedBatch()))
