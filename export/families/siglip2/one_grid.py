"""The reference for images of one grid, for a plain export; the full reference reads the grids as numbers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...reference.blocks import key_mask
from .reference import resize_positions


class OneGrid(nn.Module):
    """The reference step by step, with the table of positions resized in advance."""

    def __init__(self, module: Any, graph: Literal["vision", "dense"], grid: tuple[int, int]) -> None:
        """Take ``module``, a SigLIP 2, for images of ``grid``; if it has a dense head, for dense features too."""
        super().__init__()
        self.module = module
        self._graph = graph
        embeddings = module.vision_model.embeddings
        table = embeddings.position_embedding.weight.view(embeddings.grid, embeddings.grid, -1).permute(2, 0, 1)
        positions = resize_positions(table[None], *grid)[0].flatten(1).T
        self.register_buffer("positions", positions.detach().contiguous())

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Any:
        """Features float32 [B, D], or dense features [B, N, D]; not normalised.

        Args:
            pixel_values: float32 [B, N, P·P·3].
            mask: float32 [B, N], one on real patches and zero on padding.
        """
        vision = self.module.vision_model
        hidden = vision.embeddings.patch_embedding(pixel_values) + self.positions
        bias = key_mask(mask, torch.float32)
        hidden = vision.post_layernorm(vision.encoder(hidden, bias))
        if self._graph == "vision":
            return vision.head(hidden, bias)
        return self.module.dense_feature_head.attend(hidden, hidden, bias)
