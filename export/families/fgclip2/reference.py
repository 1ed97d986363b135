"""FG-CLIP 2 in plain PyTorch: SigLIP 2's towers, with long text, names of boxes and dense features.

Like :mod:`fgclip_rt.export.families.siglip2.reference`, it follows the released computation step by step and shares no
rewrite with the graphs.

Source: 360CVGroup/FG-CLIP, ``fgclip2/model/strcs/fgclip2.py``; FG-CLIP 2 is https://arxiv.org/abs/2510.10921.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...reference.blocks import LongTextEmbeddings, WalkType, key_mask
from ..siglip2.reference import PoolingHead, Siglip2
from .config import Config


class Fgclip2(Siglip2):
    """The whole model, with the released method names."""

    walk_types = ("short", "box", "long")
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.longtext_head = nn.Linear(config.text_config.hidden_size, config.text_config.output_size)
        self.boxtext_head = nn.Linear(config.text_config.hidden_size, config.text_config.output_size)
        self.dense_feature_head = PoolingHead(config.vision_config)

    def text_embeddings(self) -> LongTextEmbeddings:
        """The text tower's tables, without weights yet."""
        config = self.config.text_config
        return LongTextEmbeddings(config, config.longtext_len, config.keep_len)

    def head(self, walk_type: WalkType) -> nn.Linear:
        """The layer that turns the pooled state of a text of this kind into features."""
        return {"short": self.text_model.head, "box": self.boxtext_head, "long": self.longtext_head}[walk_type]

    def get_image_dense_features(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor
    ) -> Tensor:
        """One feature per patch, not normalised: float [B, N, D]; rows past an image's grid mean nothing.

        Arguments are those of :meth:`get_image_features`.
        """
        mask = key_mask(pixel_attention_mask, pixel_values.dtype)
        hidden = self.vision_model(pixel_values, mask, spatial_shapes)
        return self.dense_feature_head.attend(hidden, hidden, mask)
