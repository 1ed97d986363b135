"""The configuration of an FG-CLIP 2 checkpoint: SigLIP 2's, with long text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fgclip_rt.errors import CheckpointError

from ...reference.blocks import Length, Positive
from ..siglip2 import config as siglip2


@dataclass(frozen=True)
class TextConfig(siglip2.TextConfig):
    """The text tower."""

    longtext_len: Length = 196
    keep_len: Positive = 20


@dataclass(frozen=True)
class Config(siglip2.Config):
    """Both towers of one checkpoint."""

    text_config: TextConfig = field(default_factory=TextConfig)

    def check(self) -> None:
        """Raise CheckpointError if two options contradict each other."""
        super().check()
        if self.text_config.keep_len > self.text_config.longtext_len:
            raise CheckpointError(
                f"config.json: text_config.keep_len {self.text_config.keep_len} is over longtext_len "
                f"{self.text_config.longtext_len}; the checkpoint's config is damaged."
            )


#: FG-CLIP 2's choice of patch counts (``determine_max_value`` in its README).
_BUCKETS = (128, 256, 576, 784, 1024)


@dataclass(frozen=True)
class PreprocessorConfig(siglip2.PreprocessorConfig):
    """The preparation of images: SigLIP 2's, with a patch count for each image unless one is set for all."""

    processors = ("Fgclip2ImageProcessor", "Siglip2ImageProcessor")

    dynamic_max_patches: bool = True

    @property
    def buckets(self) -> tuple[int, ...]:
        return _BUCKETS if self.dynamic_max_patches else super().buckets

    def moot(self) -> dict[str, Any]:
        fixed = self.max_num_patches
        unused = self.dynamic_max_patches and fixed != PreprocessorConfig.max_num_patches
        return super().moot() | ({"max_num_patches": fixed} if unused else {})
