"""The configuration of an FG-CLIP checkpoint, read from its ``config.json`` and its settings of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import msgspec

from fgclip_rt.errors import CheckpointError

from ...checkpoints.files import PREPROCESSOR
from ...checkpoints.options import Level, PixelOptions, Spread, read_options
from ...reference.blocks import LARGEST, Epsilon, Positive, Side, TextTowerConfig, TowerConfig

#: Number of first tokens that keep their positions in long text (LongCLIP, https://arxiv.org/abs/2403.15378), and the
#: factor by which the other positions are stretched.
_KEEP_LEN, _STRETCH = 20, 4


@dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The vision tower; defaults are those of transformers, which released files may leave out."""

    layer_norm_eps: Epsilon = 1e-5
    hidden_act: str = "quick_gelu"
    num_channels: Positive = 3
    image_size: Side = 224
    patch_size: Side = 32

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig(TextTowerConfig):
    """The text tower."""

    hidden_size: Positive = 512
    intermediate_size: Positive = 2048
    num_attention_heads: Positive = 8
    layer_norm_eps: Epsilon = 1e-5
    hidden_act: str = "quick_gelu"
    vocab_size: Positive = 49408
    max_position_embeddings: Annotated[int, msgspec.Meta(gt=_KEEP_LEN, le=LARGEST)] = 77

    @property
    def keep_len(self) -> int:
        """Number of tokens that keep their positions in a long text."""
        return _KEEP_LEN

    @property
    def longtext_len(self) -> int:
        """Number of tokens of a long text."""
        return _STRETCH * self.max_position_embeddings - (_STRETCH - 1) * _KEEP_LEN


@dataclass(frozen=True)
class Config:
    """Both towers of one checkpoint."""

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    text_config: TextConfig = field(default_factory=TextConfig)
    projection_dim: Positive = 512

    @property
    def blocks(self) -> int:
        """Number of transformer blocks in both towers."""
        return self.vision_config.num_hidden_layers + self.text_config.num_hidden_layers

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Config:
        """Read a parsed ``config.json``.

        Raises:
            CheckpointError: an option has a value that the model cannot be built with; options that are not named
                here are ignored.
        """
        config = read_options(document, cls, "config.json")
        config.vision_config.check("vision_config")
        config.text_config.check("text_config")
        vision = config.vision_config
        if vision.num_channels != 3:
            raise CheckpointError(
                f"config.json: vision_config.num_channels is {vision.num_channels}, and images are RGB; "
                "the checkpoint's config is damaged."
            )
        if vision.image_size % vision.patch_size:
            raise CheckpointError(
                f"config.json: vision_config.image_size {vision.image_size} is not a multiple of patch_size "
                f"{vision.patch_size}; the checkpoint's config is damaged."
            )
        return config


@dataclass(frozen=True)
class PreprocessorConfig(PixelOptions):
    """The preparation of square images; the defaults are CLIP's."""

    processors = ("CLIPImageProcessor", "CLIPFeatureExtractor")

    image_mean: tuple[Level, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[Spread, ...] = (0.26862954, 0.26130258, 0.27577711)
    do_resize: bool = True
    size: int | dict[str, int] = 224
    resample: int = 3  # Pillow's number of the bicubic filter
    do_center_crop: bool = True
    crop_size: int | dict[str, int] = 224

    @classmethod
    def from_json(cls, document: Mapping[str, Any], vision: VisionConfig, file: str = PREPROCESSOR) -> Self:
        """Read parsed settings of images; ``file`` is their place, for messages.

        Raises:
            CheckpointError: they ask for another preparation than FG-CLIP's.
        """
        config = read_options(document, cls, file)
        # Images are resized to squares first, so resizing and cropping to the same size do nothing.
        for name, applies in (("size", config.do_resize), ("crop_size", config.do_center_crop)):
            value = getattr(config, name)
            sides = set(value.values()) if isinstance(value, dict) else {value}
            if applies and sides != {vision.image_size}:
                raise CheckpointError(
                    f"{file}: {name} is {value!r}, and this model takes images of {vision.image_size} pixels; "
                    "restore the original file."
                )
        config.check_pixels(vision.num_channels, file)
        return config

    def moot(self) -> dict[str, Any]:
        own = {name: getattr(PreprocessorConfig, name) for name in ("do_resize", "resample", "do_center_crop")}
        changed = {name: getattr(self, name) for name, value in own.items() if getattr(self, name) != value}
        return super().moot() | changed
