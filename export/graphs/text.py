"""The text graph that all families share: a tower, tables of positions and heads by the kind of text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgclip_rt.interface import ATTENTION_MASK, INPUT_IDS, TEXT_EMBEDS, TEXT_FEATURES, WALK_TYPE
from fgclip_rt.manifest import Axis

from .blocks import Linear
from .trace import GraphSource


class Positions(nn.Module):
    """One table of positions for each kind of text; a graph of one kind has no input ``walk_type``."""

    def __init__(self, tables: Sequence[Tensor]) -> None:
        """Take tables [L, D] of any lengths; the rows past a shorter table are never read."""
        super().__init__()
        length = max(map(len, tables))
        padded = [F.pad(table.detach(), (0, 0, 0, length - len(table))) for table in tables]
        self.tables = nn.Parameter(torch.stack(padded), requires_grad=False)

    def forward(self, length: int, walk_type: Tensor | None) -> Tensor:
        """The first ``length`` positions of each text: [B, length, D], or [1, length, D] without kinds."""
        table = self.tables if walk_type is None else torch.index_select(self.tables, 0, walk_type)
        return table[:, :length]


class TextGraph(nn.Module):
    """``text.onnx``: input_ids int32 [B, L] → features and embeds [B, D].

    A graph of several kinds of text has an input ``walk_type`` int32 [B]. If the checkpoint's tokenizer makes a mask,
    there is an input ``attention_mask`` int32 [B, L].
    """

    def __init__(self, tower: nn.Module, heads: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """Join a tower, which gives the pooled state, and its heads.

        Args:
            tower: ``(input_ids, walk_type, attention_mask)`` to the pooled state [B, width].
            heads: for each kind of text, a weight [D, width] and a bias [D] or None.
        """
        super().__init__()
        self.text = tower
        self.count = len(heads)
        weights = torch.cat([weight for weight, _ in heads])
        biases = [bias for _, bias in heads if bias is not None]
        # All heads run and one output is kept. They cost little next to the tower, and their weights stay constants.
        self.text_heads = Linear(weights, torch.cat(biases) if biases else None)

    def forward(
        self, input_ids: Tensor, walk_type: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        features = self.text_heads(self.text(input_ids, walk_type, attention_mask))
        if walk_type is not None:
            by_kind = features.unflatten(1, (self.count, -1))
            chosen = walk_type.long()[:, None, None].expand(-1, 1, by_kind.shape[-1])
            features = torch.gather(by_kind, 1, chosen)[:, 0]
        return features, F.normalize(features, dim=-1)


def text_source(graph: TextGraph, length: int, width: int, *, masked: bool = False) -> GraphSource:
    """A text graph, ready to trace.

    Args:
        graph: the module.
        length: tokens of an example.
        width: width of the vectors.
        masked: whether the tower takes an attention mask.
    """
    inputs = {INPUT_IDS: torch.zeros(2, length, dtype=torch.int32)}
    axes = {INPUT_IDS: {0: Axis.BATCH, 1: Axis.TOKENS}}
    if graph.count > 1:
        inputs[WALK_TYPE] = torch.zeros(2, dtype=torch.int32)
        axes[WALK_TYPE] = {0: Axis.BATCH}
    if masked:
        inputs[ATTENTION_MASK] = torch.ones_like(inputs[INPUT_IDS])
        axes[ATTENTION_MASK] = axes[INPUT_IDS]
    outputs = {TEXT_FEATURES: (Axis.BATCH, width), TEXT_EMBEDS: (Axis.BATCH, width)}
    return GraphSource(graph, inputs, axes, outputs, sensitive=("text_heads",))
