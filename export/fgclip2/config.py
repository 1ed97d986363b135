"""The configuration of an FG-CLIP 2 checkpoint, read from its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from fgclip_rt.errors import CheckpointError

_T = TypeVar("_T")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower; the defaults are those of ``Siglip2VisionConfig``, which the released files omit."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    num_patches: int = 256
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def position_grid(self) -> int:
        """Side of the square grid that the position table covers."""
        return round(self.num_patches**0.5)


@dataclass(frozen=True)
class TextConfig:
    """The text tower; the defaults are those of ``Siglip2TextConfig`` and of FG-CLIP 2's long text."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    vocab_size: int = 32000
    max_position_embeddings: int = 64
    longtext_len: int = 196
    keep_len: int = 20
    projection_size: int | None = None
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def output_size(self) -> int:
        """Width of the text features."""
        return self.projection_size or self.hidden_size


@dataclass(frozen=True)
class Config:
    """Both towers of one checkpoint."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Config:
        """Read a parsed ``config.json``.

        Raises:
            CheckpointError: an option has a value that the model cannot be built with. Options that are not named here
                are passed over, as transformers does: they steer training, not the forward pass.
        """
        config = cls(
            vision=_section(VisionConfig, document, "vision_config"),
            text=_section(TextConfig, document, "text_config"),
        )
        config._check()
        return config

    def _check(self) -> None:
        for name, tower in (("vision_config", self.vision), ("text_config", self.text)):
            if tower.hidden_size % tower.num_attention_heads:
                raise CheckpointError(
                    f"config.json: {name}.hidden_size {tower.hidden_size} is not a multiple of "
                    f"num_attention_heads {tower.num_attention_heads}; the checkpoint's config is damaged."
                )
            if tower.hidden_act != "gelu_pytorch_tanh":
                raise CheckpointError(
                    f"config.json: {name}.hidden_act is {tower.hidden_act!r}, but FG-CLIP 2 is built with "
                    "'gelu_pytorch_tanh' only; export a checkpoint that uses it."
                )
        if self.vision.position_grid**2 != self.vision.num_patches:
            raise CheckpointError(
                f"config.json: vision_config.num_patches {self.vision.num_patches} is not a square, "
                "so its position table is not a grid; the checkpoint's config is damaged."
            )
        if self.text.output_size != self.vision.hidden_size:
            raise CheckpointError(
                f"config.json: text features would have {self.text.output_size} dimensions and image features "
                f"{self.vision.hidden_size}; both must be equal, so the checkpoint's config is damaged."
            )
        if not 0 < self.text.keep_len <= self.text.longtext_len:
            raise CheckpointError(
                f"config.json: text_config.keep_len {self.text.keep_len} must lie in 1…longtext_len "
                f"({self.text.longtext_len}); the checkpoint's config is damaged."
            )


def _section(kind: type[_T], document: Mapping[str, Any], key: str) -> _T:
    section = document.get(key, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json: {key} must be an object; use the file that came with the weights.")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in section.items():
        if name in known:
            _check_value(f"{key}.{name}", value, known[name].default)
            values[name] = value
    return kind(**values)


def _check_value(name: str, value: object, default: object) -> None:
    if isinstance(default, str):
        valid, expected = isinstance(value, str), "a string"
    elif isinstance(default, float):
        valid, expected = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0, "positive"
    else:
        valid, expected = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a positive integer"
    if not valid and not (value is None and default is None):
        raise CheckpointError(f"config.json: {name} is {value!r}, but must be {expected}; restore the original file.")
