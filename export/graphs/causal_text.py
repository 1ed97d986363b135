"""CLIP's text tower as a graph: causal, and pooled at the first end token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import HIDDEN
from .blocks import Block
from .text import Positions


class CausalTextTower(nn.Module):
    """Tokens to the pooled state [B, D].

    Only the end token's state is needed after the last block, so only this state goes through that block.
    """

    def __init__(
        self, tokens: Tensor, positions: Positions, blocks: Sequence[Block], post_norm: nn.Module, end_token: int
    ) -> None:
        """Take the token table [vocabulary, D]; ``end_token`` is the id that every text ends with."""
        super().__init__()
        self.tokens = nn.Parameter(tokens.detach(), requires_grad=False)
        self.positions = positions
        self.blocks = nn.ModuleList(blocks)
        self.post_norm = post_norm
        self.end_token = end_token

    def forward(self, input_ids: Tensor, walk_type: Tensor | None, attention_mask: None = None) -> Tensor:  # noqa: ARG002
        # Only padding follows the end token, and no token before it attends there, so no other mask is needed.
        index = torch.arange(input_ids.shape[1], dtype=torch.float32, device=input_ids.device)
        causal = _hidden_after(index, index[:, None])[None, None]
        x = F.embedding(input_ids, self.tokens) + self.positions(input_ids.shape[1], walk_type)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, score_bias=causal)

        assert isinstance(last, Block)
        end = torch.where(input_ids == self.end_token, index, index[-1:]).amin(dim=1, keepdim=True)
        at_end = (index == end).to(torch.float32)[:, None]  # [B, 1, L], one at the end token
        normed = last.norm1(x)
        seen = _hidden_after(index, end)[:, None, None]
        mixed = last.attention(torch.matmul(at_end, normed), normed, score_bias=seen)
        return self.post_norm(last.finish(torch.matmul(at_end, x), mixed)[:, 0])


def _hidden_after(index: Tensor, last: Tensor) -> Tensor:
    """Bias [n, L]: zero for positions [L] up to ``last`` [n, 1], and a value that hides the later ones."""
    return torch.where(index <= last, 0.0, HIDDEN)
