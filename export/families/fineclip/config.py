"""The configuration of a FineCLIP model, read from its ``model_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from fgclip_rt.errors import CheckpointError

from ...checkpoints.options import read_options
from ...reference.blocks import Length, Positive, Side

FILE = "model_config.json"


@dataclass(frozen=True)
class VisionConfig:
    """EVA02-CLIP's vision tower; defaults are those of the EVA-CLIP code, which files may leave out."""

    image_size: Side = 224
    patch_size: Side = 16
    width: Positive = 768
    layers: Positive = 12
    head_width: Positive = 64
    mlp_ratio: Annotated[float, msgspec.Meta(gt=0, le=64)] = 4.0
    pt_hw_seq_len: Side = 16
    intp_freq: bool = False
    rope: bool = False
    naiveswiglu: bool = False
    subln: bool = False
    qkv_bias: bool = True
    postnorm: bool = False
    global_average_pool: bool = False
    ls_init_value: float | None = None

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.width // self.head_width

    @property
    def hidden(self) -> int:
        """Width between the layers of the SwiGLU."""
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text tower."""

    context_length: Length = 77
    vocab_size: Positive = 49408
    width: Positive = 512
    heads: Positive = 8
    layers: Positive = 12
    mlp_ratio: Annotated[float, msgspec.Meta(gt=0, le=64)] = 4.0
    ls_init_value: float | None = None


@dataclass(frozen=True)
class Config:
    """Both towers of one model."""

    embed_dim: Positive
    vision_cfg: VisionConfig = field(default_factory=VisionConfig)
    text_cfg: TextConfig = field(default_factory=TextConfig)
    quick_gelu: bool = False

    @property
    def blocks(self) -> int:
        """Number of transformer blocks in both towers."""
        return self.vision_cfg.layers + self.text_cfg.layers

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Config:
        """Read a parsed ``model_config.json``.

        Raises:
            CheckpointError: an option has a value that the model cannot be built with; options that are not named
                here are ignored.
        """
        config = read_options(document, cls, FILE)
        vision, text = config.vision_cfg, config.text_cfg
        expected = {
            "rope": True,
            "naiveswiglu": True,
            "subln": True,
            "qkv_bias": True,
            "postnorm": False,
            "global_average_pool": False,
            "ls_init_value": None,
        }
        for name, value in expected.items():
            if getattr(vision, name) != value:
                raise CheckpointError(
                    f"{FILE}: vision_cfg.{name} is {getattr(vision, name)!r}, and FineCLIP's towers are those of "
                    f"EVA02-CLIP, where it is {value!r}; give the file of such a model.",
                    code="checkpoint_unsupported",
                )
        if text.ls_init_value is not None:
            raise CheckpointError(
                f"{FILE}: text_cfg.ls_init_value is {text.ls_init_value!r}, and FineCLIP's text tower has no such "
                "scales; give the file of such a model.",
                code="checkpoint_unsupported",
            )
        for whole, part in (("image_size", "patch_size"), ("width", "head_width")):
            if getattr(vision, whole) % getattr(vision, part):
                raise CheckpointError(
                    f"{FILE}: vision_cfg.{whole} {getattr(vision, whole)} is not a multiple of {part} "
                    f"{getattr(vision, part)}; restore the file."
                )
        if vision.head_width % 4:
            raise CheckpointError(
                f"{FILE}: vision_cfg.head_width is {vision.head_width}, and rotary positions along two axes need a "
                "multiple of 4; restore the file."
            )
        if text.width % text.heads:
            raise CheckpointError(
                f"{FILE}: text_cfg.width {text.width} is not a multiple of heads {text.heads}; restore the file."
            )
        return config
