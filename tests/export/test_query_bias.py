"""The bias of the queries, folded into the LayerNorm that feeds them: algebra, wherever it is done."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fgclip_rt.export.graphs.blocks import Attention, fold_query_bias

WIDTH, HEADS = 12, 3


def made(bias: float, seed: int = 0) -> tuple[nn.LayerNorm, Attention]:
    """A LayerNorm and an attention of well-conditioned weights, whose queries have a bias of this size."""
    random = torch.Generator().manual_seed(seed)

    def linear() -> nn.Linear:
        layer = nn.Linear(WIDTH, WIDTH)
        orthogonal, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=random))
        layer.weight = nn.Parameter(orthogonal, requires_grad=False)
        layer.bias = nn.Parameter(torch.randn(WIDTH, generator=random), requires_grad=False)
        return layer

    query, *others = (linear() for _ in range(4))
    query.bias = nn.Parameter(bias * torch.sign(query.bias), requires_grad=False)
    norm = nn.LayerNorm(WIDTH)
    return norm.requires_grad_(False), Attention.of(query, *others, HEADS)


@pytest.mark.parametrize("causal", [False, True])
def test_results_are_the_same(causal: bool) -> None:
    norm, attention = made(0.3)
    folded_norm, folded = fold_query_bias(norm, attention)
    assert folded.q.bias is None
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    bias = torch.triu(torch.full((5, 5), -1e4), 1)[None, None] if causal else None
    expected = attention(norm(x), norm(x), score_bias=bias)
    torch.testing.assert_close(
        folded(folded_norm(x), folded_norm(x), score_bias=bias), expected, rtol=0, atol=1e-5 * expected.abs().max()
    )


def test_the_models_own_layers_stay_as_they_are() -> None:
    norm, attention = made(0.3)
    before = norm.bias.clone(), attention.out.bias.clone()
    fold_query_bias(norm, attention)
    assert torch.equal(norm.bias, before[0])
    assert torch.equal(attention.out.bias, before[1])


def test_a_bias_that_would_shift_too_far_stays() -> None:
    norm, attention = made(10.0)
    assert fold_query_bias(norm, attention) == (norm, attention)


def test_a_bias_that_no_shift_gives_stays() -> None:
    norm, attention = made(0.3)
    attention.q.weight[:, 0] = 0
    assert fold_query_bias(norm, attention) == (norm, attention)
