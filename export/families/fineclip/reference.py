"""FineCLIP in plain PyTorch: the arithmetic that every graph and engine is measured against.

Written for reading: it follows the released computation step by step and shares no rewrite with the graphs. Parameters
have the checkpoint's names.

Source: Timsty1/FineCLIP, ``open_clip/eva_clip/eva_vit_model.py`` and ``transformer.py``: the towers of EVA02-CLIP
(https://arxiv.org/abs/2303.15389), with dense features as CLIPSelf takes them (https://arxiv.org/abs/2310.01403).
FineCLIP is https://openreview.net/forum?id=nExI4FuKWD.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.blocks import ACTIVATIONS
from .config import Config, TextConfig, VisionConfig

_EPS, _TEXT_EPS = 1e-6, 1e-5
_THETA = 10_000.0


class Rotation:
    """Rotary positions along rows and columns (RoPE, https://arxiv.org/abs/2104.09864), on pairs of channels.

    The first half of a head's channels rotates with the row, the second with the column. Checkpoints hold the sines and
    cosines too; the released code ignores them and computes its own, and so does this class.
    """

    def __init__(self, config: VisionConfig) -> None:
        self._config = config

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate ``x`` [B, heads, N, c]."""
        angles = rotary_angles(self._config).to(x.device)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-second, first], dim=-1).flatten(-2)
        return x * angles.cos() + turned * angles.sin()


def rotary_angles(config: VisionConfig) -> Tensor:
    """Angles [N, c] of every patch and channel; both channels of a pair have the same."""
    pairs = config.head_width // 4
    frequencies = _THETA ** -(torch.arange(pairs, dtype=torch.float32) / pairs)
    positions = torch.arange(config.grid, dtype=torch.float32)
    if config.intp_freq:
        positions = positions / config.grid * config.pt_hw_seq_len
    along = (positions[:, None] * frequencies).repeat_interleave(2, dim=1)
    rows, columns = along[:, None].expand(-1, config.grid, -1), along[None].expand(config.grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention with rotary positions and a LayerNorm before the last projection; keys have no bias."""

    def __init__(self, config: VisionConfig, rope: Rotation) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.rope = rope
        self.inner_attn_ln = nn.LayerNorm(width, eps=_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.q_proj(x) + self.q_bias, self.k_proj(x), self.values(x))
        )
        q, k = (torch.cat([y[:, :, :1], self.rope(y[:, :, 1:])], dim=2) for y in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.project(mixed.transpose(1, 2).flatten(2))

    def values(self, x: Tensor) -> Tensor:
        """Values, which attention mixes."""
        return self.v_proj(x) + self.v_bias

    def project(self, mixed: Tensor) -> Tensor:
        """Output projection of the mixed values, after the LayerNorm."""
        return self.proj(self.inner_attn_ln(mixed))


class SwiGlu(nn.Module):
    """A gated linear unit (https://arxiv.org/abs/2002.05202) with a LayerNorm before its last layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden)
        self.w2 = nn.Linear(config.width, config.hidden)
        self.ffn_ln = nn.LayerNorm(config.hidden, eps=_EPS)
        self.w3 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig, rope: Rotation) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_EPS)
        self.attn = Attention(config, rope)
        self.norm2 = nn.LayerNorm(config.width, eps=_EPS)
        self.mlp = SwiGlu(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def forward_without_attn(self, x: Tensor) -> Tensor:
        """The block when every position attends to itself alone."""
        x = x + self.attn.project(self.attn.values(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Patches and their projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


class VisionTower(nn.Module):
    """EVA02-CLIP's vision tower."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid**2, config.width))
        self.patch_embed = PatchEmbedding(config)
        rope = Rotation(config)
        self.blocks = nn.ModuleList(Block(config, rope) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.head = nn.Linear(config.width, embed_dim)

    def before_last(self, pixel_values: Tensor) -> tuple[Tensor, Block]:
        """States [B, 1 + N, D] before the last block, and that block."""
        patches = self.patch_embed(pixel_values)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        assert isinstance(last, Block)
        return x, last


class TextMlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: TextConfig, activation: str) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.activation = ACTIVATIONS[activation]
        self.c_fc = nn.Linear(config.width, hidden)
        self.c_proj = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class TextBlock(nn.Module):
    """Pre-norm transformer block of the text tower."""

    def __init__(self, config: TextConfig, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=_TEXT_EPS)
        self.attn = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(config.width, eps=_TEXT_EPS)
        self.mlp = TextMlp(config, activation)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: TextConfig, activation: str) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(config, activation) for _ in range(config.layers))


class TextTower(nn.Module):
    """CLIP's text tower: causal, pooled at the token with the largest id, which is the first end token."""

    def __init__(self, config: TextConfig, embed_dim: int, activation: str) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = TextTransformer(config, activation)
        self.ln_final = nn.LayerNorm(config.width, eps=_TEXT_EPS)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Features [B, D], not normalised."""
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.positional_embedding[:length]
        causal = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, causal)
        return self.ln_final(x)[torch.arange(x.shape[0]), input_ids.argmax(dim=1)] @ self.text_projection


class FineClip(nn.Module):
    """The whole model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision_cfg, config.embed_dim)
        self.text = TextTower(config.text_cfg, config.embed_dim, "quick_gelu" if config.quick_gelu else "gelu")
        self.logit_scale = nn.Parameter(torch.empty(()))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Image features float [B, D], not normalised, of ``pixel_values`` float [B, 3, S, S]."""
        x, last = self.visual.before_last(pixel_values)
        return self.visual.head(self.visual.norm(last(x))[:, 0])

    def get_image_dense_features(self, pixel_values: Tensor) -> Tensor:
        """Features of the patches, float [B, N, D], of length one, from the last block without attention."""
        x, last = self.visual.before_last(pixel_values)
        x = self.visual.head(self.visual.norm(last.forward_without_attn(x)[:, 1:]))
        return F.normalize(x, dim=-1)

    def logits_per_image(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Softmax logits [n, m] of features [n, D] and [m, D]."""
        image_embeds, text_embeds = F.normalize(image_features, dim=-1), F.normalize(text_features, dim=-1)
        return image_embeds @ text_embeds.T * self.logit_scale.exp()


def mask_features(dense: Tensor, masks: Tensor) -> Tensor:
    """Means [m, D] of dense features [N, D], weighted by ``masks`` [m, N]."""
    return (dense * masks[:, :, None]).sum(dim=1) / (masks.sum(dim=1, keepdim=True) + 1e-12)
