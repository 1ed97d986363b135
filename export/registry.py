"""The models that can be exported by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fgclip_rt
from fgclip_rt.errors import CheckpointError


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        name: what users call it.
        family: ``model_type`` of its ``config.json``, a key of :data:`fgclip_rt.export.families.FAMILIES`.
        config: its sizes as a ``config.json`` states them, for random weights; a checkpoint's own file always wins.
        hub_id: its repository on the Hugging Face Hub; None for a model that comes with this package.
        folder: where that one lies.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    hub_id: str | None = None
    folder: Path | None = None


def _fgclip2(name: str, width: int, layers: int, heads: int, mlp: int) -> ModelSpec:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
    }
    config = {"vision_config": sizes, "text_config": {**sizes, "vocab_size": 256_000}}
    return ModelSpec(name, "fgclip2", MappingProxyType(config), hub_id=f"qihoo360/{name}")


def _pocket() -> ModelSpec:
    """A toy with the whole architecture, trained on drawn scenes (``tools/pocket``)."""
    name = "fg-clip2-pocket"
    vision = {"hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 6, "num_attention_heads": 5}
    text = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_size": 160,
        "vocab_size": 1024,
    }
    config = {"vision_config": vision, "text_config": text}
    return ModelSpec(
        name, "fgclip2", MappingProxyType(config), folder=Path(fgclip_rt.__file__).parent / "models" / name
    )


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _fgclip2("fg-clip2-base", width=768, layers=12, heads=12, mlp=3072),
        _fgclip2("fg-clip2-large", width=1024, layers=24, heads=16, mlp=4096),
        _fgclip2("fg-clip2-so400m", width=1152, layers=27, heads=16, mlp=4304),
        _pocket(),
    )
}


def find_model(name: str) -> ModelSpec | None:
    """The model with this name or Hub id, or None."""
    return MODELS.get(name) or next((spec for spec in MODELS.values() if spec.hub_id == name), None)


def unknown_model(name: str) -> CheckpointError:
    """The error for a name that is neither a model nor a folder."""
    names = ", ".join(MODELS)
    return CheckpointError(
        f"{name!r} is neither a known model nor a checkpoint folder; "
        f"choose one of {names} (or its Hub id), or give the path of a local checkpoint folder."
    )
