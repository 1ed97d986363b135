"""The configuration of a SigLIP 2 checkpoint, read from its ``config.json`` and its settings of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

import msgspec

from fgclip_rt.errors import CheckpointError

from ...checkpoints.files import PREPROCESSOR
from ...checkpoints.options import PixelOptions, read_options
from ...reference.blocks import Positive, Side, TextTowerConfig, TowerConfig

#: The largest patch count in the released models' examples (dense maps of FG-CLIP 2).
MAX_NUM_PATCHES = 16_384


@dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The vision tower."""

    num_channels: Positive = 3
    num_patches: Positive = 256
    patch_size: Side = 16

    @property
    def position_grid(self) -> int:
        """Side of the square grid that the position table covers."""
        return round(self.num_patches**0.5)


@dataclass(frozen=True)
class TextConfig(TextTowerConfig):
    """The text tower."""

    projection_size: Positive | None = None

    @property
    def output_size(self) -> int:
        """Width of the text features."""
        return self.projection_size or self.hidden_size


@dataclass(frozen=True)
class Config:
    """Both towers of one checkpoint."""

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    text_config: TextConfig = field(default_factory=TextConfig)

    @property
    def blocks(self) -> int:
        """Number of transformer blocks in both towers."""
        return self.vision_config.num_hidden_layers + self.text_config.num_hidden_layers

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read a parsed ``config.json``.

        Raises:
            CheckpointError: an option has a value that the model cannot be built with. Options that are not named here
                are ignored, as in transformers: they steer training, not the forward pass.
        """
        config = read_options(document, cls, "config.json")
        config.check()
        return config

    def check(self) -> None:
        """Raise CheckpointError if two options contradict each other."""
        self.vision_config.check("vision_config")
        self.text_config.check("text_config")
        if self.vision_config.num_channels != 3:
            raise CheckpointError(
                f"config.json: vision_config.num_channels is {self.vision_config.num_channels}, and images are RGB; "
                "the checkpoint's config is damaged."
            )
        if self.vision_config.position_grid**2 != self.vision_config.num_patches:
            raise CheckpointError(
                f"config.json: vision_config.num_patches {self.vision_config.num_patches} is not a square, "
                "so its position table is not a grid; the checkpoint's config is damaged."
            )
        if self.text_config.output_size != self.vision_config.hidden_size:
            raise CheckpointError(
                f"config.json: text features would have {self.text_config.output_size} dimensions and image features "
                f"{self.vision_config.hidden_size}; both must be equal, so the checkpoint's config is damaged."
            )


@dataclass(frozen=True)
class PreprocessorConfig(PixelOptions):
    """The preparation of images; the defaults are those of the released processor."""

    processors: ClassVar[tuple[str, ...]] = ("Siglip2ImageProcessor",)

    patch_size: int = 16
    max_num_patches: Annotated[int, msgspec.Meta(gt=0, le=MAX_NUM_PATCHES)] = 256
    resample: int = 2  # Pillow's number of the bilinear filter
    do_resize: bool = True

    @property
    def buckets(self) -> tuple[int, ...]:
        """Patch counts that an image may have; it takes the first that holds its own number of whole patches."""
        return (self.max_num_patches,)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], vision: VisionConfig, file: str = PREPROCESSOR) -> Self:
        """Read parsed settings of images; ``file`` is their place, for messages.

        Raises:
            CheckpointError: they ask for another preparation than SigLIP 2's.
        """
        config = read_options(document, cls, file)
        expected = {"patch_size": vision.patch_size, "resample": cls.resample, "do_resize": cls.do_resize}
        for name, value in expected.items():
            if getattr(config, name) != value:
                raise CheckpointError(
                    f"{file}: {name} is {getattr(config, name)!r}, and this model is prepared with {value!r}; "
                    "restore the original file."
                )
        config.check_pixels(vision.num_channels, file)
        return config
