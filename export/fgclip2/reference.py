"""FG-CLIP 2 in plain PyTorch: the arithmetic that every graph and engine is measured against.

Written for reading, not for speed: it follows the released computation step by step, one image at a time where the
released code does, and shares no rewrite with :mod:`fgclip_rt.export.fgclip2.graphs`, so that agreement between the
two means something. Parameter names are those of the checkpoint, which makes loading strict by key.

Source: 360CVGroup/FG-CLIP, ``fgclip2/model/strcs/fgclip2.py`` (heads, dense and region features); the towers are
SigLIP 2's (https://arxiv.org/abs/2502.14786), ``models/siglip2/modeling_siglip2.py`` in transformers; FG-CLIP 2 is
https://arxiv.org/abs/2510.10921.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config, TextConfig, TowerConfig, VisionConfig

WalkType = Literal["short", "box", "long"]


def key_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, 1, N] from a mask [B, N] that is non-zero where a key may be attended to."""
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return mask.masked_fill(valid == 0, torch.finfo(dtype).min)[:, None, None, :]


class Attention(nn.Module):
    """Multi-head self-attention with separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            projection(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class EncoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class PoolingHead(nn.Module):
    """Attention pooling with one learned query; the dense head uses the same layers with every patch as a query."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)

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
        # PyTorch 2.13 on a CPU repeats the first row when the result is one column wide; lying down, it is right.
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


class TextEmbeddings(nn.Module):
    """Token table and three position tables; long text takes ``ori`` for its first tokens and ``res`` after."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.keep_len = config.keep_len
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.position_embedding_ori = nn.Embedding(config.longtext_len, config.hidden_size)
        self.position_embedding_res = nn.Embedding(config.longtext_len, config.hidden_size)

    def forward(self, input_ids: Tensor, walk_type: WalkType) -> Tensor:
        length = input_ids.shape[1]
        if walk_type == "long":
            first = (torch.arange(length, device=input_ids.device) < self.keep_len)[:, None]
            ori, res = self.position_embedding_ori.weight, self.position_embedding_res.weight
            positions = torch.where(first, ori[:length], res[:length])
        else:
            positions = self.position_embedding.weight[:length]
        return self.token_embedding(input_ids) + positions


class TextModel(nn.Module):
    """SigLIP 2's text tower: bidirectional, pooled at the last position, padding included."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.output_size)

    def forward(self, input_ids: Tensor, walk_type: WalkType, mask: Tensor | None) -> Tensor:
        """Pooled state [B, D], before any head."""
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids, walk_type), mask))[:, -1]


class Fgclip2(nn.Module):
    """The whole model, with the released method names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision_config)
        self.text_model = TextModel(config.text_config)
        self.longtext_head = nn.Linear(config.text_config.hidden_size, config.text_config.output_size)
        self.boxtext_head = nn.Linear(config.text_config.hidden_size, config.text_config.output_size)
        self.dense_feature_head = PoolingHead(config.vision_config)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))

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

    def get_image_dense_features(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor
    ) -> Tensor:
        """One feature per patch, not normalised: float [B, N, D]; rows past an image's grid mean nothing.

        Arguments as for :meth:`get_image_features`.
        """
        mask = key_mask(pixel_attention_mask, pixel_values.dtype)
        hidden = self.vision_model(pixel_values, mask, spatial_shapes)
        return self.dense_feature_head.attend(hidden, hidden, mask)

    def get_text_features(
        self, input_ids: Tensor, walk_type: WalkType = "short", attention_mask: Tensor | None = None
    ) -> Tensor:
        """Text features, not normalised.

        Args:
            input_ids: integer [B, L], padded to the walk type's full length.
            walk_type: ``short`` and ``box`` (L = 64) or ``long`` (L = 196).
            attention_mask: [B, L], non-zero on real tokens; only for checkpoints whose tokenizer makes one.

        Returns:
            float [B, D].
        """
        dtype = self.text_model.head.weight.dtype
        mask = None if attention_mask is None else key_mask(attention_mask, dtype)
        pooled = self.text_model(input_ids, walk_type, mask)
        head = {"short": self.text_model.head, "box": self.boxtext_head, "long": self.longtext_head}[walk_type]
        return head(pooled)

    def logits_per_image(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Sigmoid logits [n, m] of features [n, D] and [m, D]."""
        image_embeds = image_features / image_features.norm(dim=-1, keepdim=True)
        text_embeds = text_features / text_features.norm(dim=-1, keepdim=True)
        return image_embeds @ text_embeds.T * self.logit_scale.exp() + self.logit_bias


def region_features(dense: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Features of boxes, not normalised, by RoIAlign to 1×1 (Mask R-CNN, https://arxiv.org/abs/1703.06870).

    As ``torchvision.ops.roi_align(..., output_size=1, sampling_ratio=-1, aligned=True)`` after the boxes have been
    divided by the image's size and multiplied by the grid's. All of it in float32 and in that order: the number of
    samples is the ceiling of a box's extent, so a rounding error can change it.

    Args:
        dense: float [h, w, D], the dense features of one image.
        boxes: float32 [R, 4], xyxy in pixels of the original image.
        image_size: (height, width) of the original image in pixels.

    Returns:
        float [R, D].
    """
    rows, columns, _ = dense.shape
    height, width = image_size
    on_grid = boxes / boxes.new_tensor([width, height] * 2) * boxes.new_tensor([columns, rows] * 2) - 0.5
    return torch.stack([_roi_mean(dense, *box) for box in on_grid])


def _roi_mean(dense: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    """Mean [D] of bilinear samples of ``dense`` [h, w, D]; samples over one cell outside the grid count as zero."""
    ys, xs = _samples(y1, y2), _samples(x1, x2)
    total = dense.new_zeros(dense.shape[-1])
    for y in ys.tolist():
        for x in xs.tolist():
            if -1.0 <= y <= dense.shape[0] and -1.0 <= x <= dense.shape[1]:
                total += _bilinear(dense, y, x)
    return total / max(len(ys) * len(xs), 1)


def _samples(start: Tensor, stop: Tensor) -> Tensor:
    count = max(int(torch.ceil(stop - start)), 0)
    return start + (torch.arange(count, dtype=start.dtype) + 0.5) * (stop - start) / count


def _bilinear(dense: Tensor, y: float, x: float) -> Tensor:
    rows, columns, _ = dense.shape
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    fy, fx = y - top, x - left
    upper = dense[top, left] * (1 - fx) + dense[top, right] * fx
    lower = dense[bottom, left] * (1 - fx) + dense[bottom, right] * fx
    return upper * (1 - fy) + lower * fy
