"""FG-CLIP in plain PyTorch: the arithmetic that every graph and engine is measured against.

Written for reading: it follows the released computation step by step and shares no rewrite with the graphs. Parameters
have the checkpoint's names.

Source: 360CVGroup/FG-CLIP, branch ``v1.0``, ``fgclip/model/clip_strc/fgclip.py``; the towers are CLIP's
(``models/clip/modeling_clip.py`` in transformers), with the long text of LongCLIP. FG-CLIP is
https://arxiv.org/abs/2505.05071.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...reference.blocks import Encoder, EncoderLayer, LongTextEmbeddings, WalkType
from .config import Config, TextConfig, VisionConfig

#: Ids of the tokens around a text. The released code sets them, and pools at the first end token, whatever the
#: configuration says.
START_TOKEN, END_TOKEN = 49406, 49407


class VisionEmbeddings(nn.Module):
    """Class token, patch projection and positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + config.grid**2, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionModel(nn.Module):
    """CLIP's vision tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # spelt so in every checkpoint
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def before_last(self, pixel_values: Tensor) -> Tensor:
        """States [B, 1 + N, D] before the last block."""
        x = self.pre_layrnorm(self.embeddings(pixel_values))
        for layer in self.encoder.layers[:-1]:
            x = layer(x, None)
        return x

    @property
    def last(self) -> EncoderLayer:
        """The last block."""
        layer = self.encoder.layers[-1]
        assert isinstance(layer, EncoderLayer)
        return layer


class TextModel(nn.Module):
    """CLIP's text tower: causal, pooled at the first end token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = LongTextEmbeddings(config, config.longtext_len, config.keep_len)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, walk_type: WalkType) -> Tensor:
        """Pooled state [B, D]."""
        length = input_ids.shape[1]
        x = self.embeddings(input_ids, walk_type)
        causal = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        x = self.final_layer_norm(self.encoder(x, causal))
        return x[torch.arange(x.shape[0]), (input_ids == END_TOKEN).int().argmax(dim=1)]


class Fgclip1(nn.Module):
    """The whole model, with the released method names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision_config)
        self.text_model = TextModel(config.text_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.text_filip_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))
        # Scales of two training losses; nothing here uses them.
        self.logit_scale_finegraind = nn.Parameter(torch.empty(()))
        self.logit_scale_hardneg = nn.Parameter(torch.empty(()))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Image features float [B, D], not normalised, of ``pixel_values`` float [B, 3, S, S]."""
        vision = self.vision_model
        states = vision.last(vision.before_last(pixel_values), None)
        return self.visual_projection(vision.post_layernorm(states[:, 0]))

    def get_image_dense_features(self, pixel_values: Tensor) -> Tensor:
        """Features of the patches, float [B, N, D], not normalised, from the last block without attention."""
        vision = self.vision_model
        x, last = vision.before_last(pixel_values), vision.last
        x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
        x = x + last.mlp(last.layer_norm2(x))
        return self.visual_projection(vision.post_layernorm(x[:, 1:]))

    def get_text_features(self, input_ids: Tensor, walk_type: WalkType) -> Tensor:
        """Text features float [B, D], not normalised.

        Args:
            input_ids: integer [B, L], padded to the walk type's full length.
            walk_type: ``short`` and ``box``, which are the same (L = 77), or ``long`` (L = 248).
        """
        projection = self.text_filip_projection if walk_type == "long" else self.text_projection
        return projection(self.text_model(input_ids, walk_type))

    def logits_per_image(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Softmax logits [n, m] of features [n, D] and [m, D]."""
        image_embeds = image_features / image_features.norm(dim=-1, keepdim=True)
        text_embeds = text_features / text_features.norm(dim=-1, keepdim=True)
        return image_embeds @ text_embeds.T * self.logit_scale.exp()
