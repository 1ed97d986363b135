"""SigLIP 2's NaFlex towers in plain PyTorch: the arithmetic that every graph and engine is measured against.

Written for reading, not for speed: it follows the published computation step by step, one image at a time if the source
does. It shares no rewrite with :mod:`fgclip_rt.export.families.siglip2.graphs`, so that agreement between the two means
something. Parameters have the checkpoint's names, which makes loading strict by key.

Source: ``models/siglip2/modeling_siglip2.py`` in transformers; SigLIP 2 is https://arxiv.org/abs/2502.14786.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.blocks import Encoder, Mlp, TextEmbeddings, WalkType, key_mask
from .config import Config, TextConfig, VisionConfig


class PoolingHead(nn.Module):
    """Attention pooling with one learned query; the dense head uses the same layers with every patch as a query."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def attend(self, queries: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Attend from ``queries`` [B, Q, D] to ``x`` [B, N, D] under the additive ``mask`` [B, 1, 1, N]."""
        heads = self.attention.num_heads
        per_head = mask.expand(-1, heads, queries.shape[1], -1).reshape(-1, queries.shape[1], x.shape[1])
        y = self.attention(queries, x, x, attn_mask=per_head, need_weights=False)[0]
        return y + self.mlp(self.layernorm(y))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attend(self.probe.expand(x.shape[0], -1, -1), x, mask)[:, 0]


class VisionEmbeddings(nn.Module):
    """Patch projection plus the position table resized to each image's own grid."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid = config.position_grid
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor, spatial_shapes: Tensor) -> Tensor:
        x = self.patch_embedding(pixel_values)
        table = self.position_embedding.weight.view(self.grid, self.grid, -1).permute(2, 0, 1)[None]
        for i, (height, width) in enumerate(spatial_shapes.tolist()):
            positions = resize_positions(table, height, width)[0].flatten(1).T
            x[i, : height * width] += positions
            x[i, height * width :] += positions[0]
        return x


def resize_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize of ``table`` [1, D, g, g] to [1, D, height, width]."""
    if width == 1 < height:
        # PyTorch 2.13 on a CPU repeats the first row when the result is one column wide; transposed, it is right.
        return resize_positions(table.mT, width, height).mT
    return F.interpolate(table, (height, width), mode="bilinear", align_corners=False, antialias=True)


class VisionModel(nn.Module):
    """SigLIP 2's NaFlex vision tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = PoolingHead(config)

    def forward(self, pixel_values: Tensor, mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Last hidden state [B, N, D] of ``pixel_values`` [B, N, P·P·3] under the additive ``mask`` [B, 1, 1, N]."""
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values, spatial_shapes), mask))


class TextModel(nn.Module):
    """SigLIP 2's text tower: bidirectional, pooled at the last position, padding included."""

    def __init__(self, config: TextConfig, embeddings: TextEmbeddings) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.output_size)

    def forward(self, input_ids: Tensor, walk_type: WalkType, mask: Tensor | None) -> Tensor:
        """Pooled state [B, D], before any head."""
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids, walk_type), mask))[:, -1]


class Siglip2(nn.Module):
    """The whole model, with the released method names.

    Attributes:
        walk_types: the kinds of text that it knows.
    """

    walk_types: tuple[WalkType, ...] = ("short",)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision_config)
        self.text_model = TextModel(config.text_config, self.text_embeddings())
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))

    def text_embeddings(self) -> TextEmbeddings:
        """The text tower's tables, without weights yet."""
        return TextEmbeddings(self.config.text_config)

    def head(self, walk_type: WalkType) -> nn.Linear:  # noqa: ARG002 (SigLIP 2 has but one)
        """The layer that turns the pooled state of a text of this kind into features."""
        return self.text_model.head

    def get_image_features(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Image features, not normalised.

        Args:
            pixel_values: float [B, N, P·P·3], normalised patches, rows first, channel last.
            pixel_attention_mask: [B, N], non-zero on real patches.
            spatial_shapes: integer [B, 2], each image's grid as (rows, columns).

        Returns:
            float [B, D].
        """
        mask = key_mask(pixel_attention_mask, pixel_values.dtype)
        return self.vision_model.head(self.vision_model(pixel_values, mask, spatial_shapes), mask)

    def get_text_features(
        self, input_ids: Tensor, walk_type: WalkType = "short", attention_mask: Tensor | None = None
    ) -> Tensor:
        """Text features, not normalised.

        Args:
            input_ids: integer [B, L], padded to the walk type's full length.
            walk_type: one of :attr:`walk_types`.
            attention_mask: [B, L], non-zero on real tokens; only for checkpoints whose tokenizer makes one.

        Returns:
            float [B, D].
        """
        dtype = self.text_model.head.weight.dtype
        mask = None if attention_mask is None else key_mask(attention_mask, dtype)
        pooled = self.text_model(input_ids, walk_type, mask)
        return self.head(walk_type)(pooled)

    def logits_per_image(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Sigmoid logits [n, m] of features [n, D] and [m, D]."""
        image_embeds = image_features / image_features.norm(dim=-1, keepdim=True)
        text_embeds = text_features / text_features.norm(dim=-1, keepdim=True)
        return image_embeds @ text_embeds.T * self.logit_scale.exp() + self.logit_bias
