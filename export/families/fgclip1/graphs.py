"""FG-CLIP as the graphs of a bundle: the reference's weights in the towers of CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...graphs.blocks import Block, Linear, PatchEmbedding
from ...graphs.causal_text import CausalTextTower
from ...graphs.class_token import ClassTokenTower
from ...graphs.text import Positions, TextGraph
from ...reference.blocks import WalkType
from . import reference

#: Indices of the walk types in the text graph's input ``walk_type``; short and box texts are the same.
KINDS: dict[WalkType, int] = {"short": 0, "box": 0, "long": 1}


def vision_tower(model: reference.Fgclip1, mean: Sequence[float], std: Sequence[float]) -> ClassTokenTower:
    """The vision tower, with the pixels' normalisation in it."""
    vision = model.vision_model
    weight = vision.embeddings.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1)  # patch order: row, column, RGB
    return ClassTokenTower(
        PatchEmbedding(weight, None, mean, std),
        vision.embeddings.class_embedding,
        vision.embeddings.position_embedding.weight,
        vision.pre_layrnorm,
        [Block.of(layer) for layer in vision.encoder.layers],
        vision.post_layernorm,
        Linear.of(model.visual_projection),
    )


def text_graph(model: reference.Fgclip1) -> TextGraph:
    """The text tower and its two projections."""
    text = model.text_model
    tower = CausalTextTower(
        text.embeddings.token_embedding.weight,
        Positions([text.embeddings.positions(walk_type) for walk_type in ("short", "long")]),
        [Block.of(layer) for layer in text.encoder.layers],
        text.final_layer_norm,
        reference.END_TOKEN,
    )
    projections: list[nn.Linear] = [model.text_projection, model.text_filip_projection]
    heads: list[tuple[torch.Tensor, None]] = [(projection.weight, None) for projection in projections]
    return TextGraph(tower, heads)
