"""The models that can be exported by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

import fgclip_rt
from fgclip_rt.errors import CheckpointError
from fgclip_rt.pocket.calibration import calibration_inputs


@dataclass(frozen=True)
class Traits:
    """Abilities of the models of a family.

    Attributes:
        texts: number of tokens by walk type.
        has: graphs besides ``vision`` and ``text``.
        score: the function that turns logits into probabilities.
    """

    texts: Mapping[str, int]
    has: tuple[str, ...]
    score: str


#: Traits by family, as its bundles will state them, for users who choose a model before they have its bundle.
TRAITS = {
    "fgclip2": Traits({"short": 64, "box": 64, "long": 196}, ("dense", "region"), "sigmoid"),
    "fgclip1": Traits({"short": 77, "box": 77, "long": 248}, ("dense", "region"), "softmax"),
    "fineclip": Traits({"short": 77, "box": 77}, ("dense", "region", "mask"), "softmax"),
    "siglip2": Traits({"short": 64}, (), "sigmoid"),
}


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        name: the name that users give.
        family: a key of :data:`fgclip_rt.export.families.table.FAMILIES`.
        config: its sizes as its family's configuration file states them, for random weights and for weights that come
            alone; a checkpoint's own file always wins.
        parameters: number of its weights.
        hub_id: its repository on the Hugging Face Hub; None if it has none.
        folder: its folder in this package; None if it is not shipped. With neither, its weights are a local file.
        calibration: makes images, and texts by walk type, to calibrate on; None if the user has to give them.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    parameters: int
    hub_id: str | None = None
    folder: Path | None = None
    calibration: Callable[[], tuple[list[Image.Image], dict[str, list[str]]]] | None = None

    @property
    def traits(self) -> Traits:
        """The traits of its family."""
        return TRAITS[self.family]

    @property
    def images(self) -> str:
        """The size of the images that it takes, in words."""
        tower = self.config["vision_cfg" if "vision_cfg" in self.config else "vision_config"]
        side = tower.get("image_size")
        return f"{side}×{side} px" if side else "any shape"


def _tower(width: int, layers: int, heads: int, mlp: int) -> dict[str, int]:
    """Sizes of a tower, as transformers' files name them."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
    }


def _naflex(hub_id: str, family: str, parameters: int, sizes: dict[str, int]) -> ModelSpec:
    """A model with the towers of SigLIP 2, both of the same sizes."""
    config = {"vision_config": sizes, "text_config": {**sizes, "vocab_size": 256_000}}
    return ModelSpec(hub_id.split("/")[1], family, MappingProxyType(config), parameters, hub_id)


def _fgclip1(
    hub_id: str, parameters: int, image_size: int, patch_size: int, vision: dict[str, int], text: dict[str, int]
) -> ModelSpec:
    config = {
        "vision_config": {**vision, "image_size": image_size, "patch_size": patch_size},
        "text_config": text,
        "projection_dim": text["hidden_size"],
    }
    return ModelSpec(hub_id.split("/")[1], "fgclip1", MappingProxyType(config), parameters, hub_id)


def _fineclip(
    name: str, parameters: int, image_size: int, patch_size: int, width: int, layers: int, text: dict[str, int]
) -> ModelSpec:
    """A model of EVA02-CLIP's towers, as the EVA-CLIP code writes its sizes."""
    vision = {
        "eva_model_name": "eva02-clip",
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "layers": layers,
        "head_width": 64,
        "mlp_ratio": 2.6667,
        "rope": True,
        "pt_hw_seq_len": 16,
        "intp_freq": True,
        "naiveswiglu": True,
        "subln": True,
    }
    config = {
        "embed_dim": text["width"],
        "vision_cfg": vision,
        "text_cfg": {"context_length": 77, "vocab_size": 49408, **text},
    }
    return ModelSpec(name, "fineclip", MappingProxyType(config), parameters)


def _pocket() -> ModelSpec:
    """A toy with the whole architecture, trained on drawn scenes (``tools/pocket``)."""
    name = "fg-clip2-pocket"
    vision = _tower(160, layers=6, heads=5, mlp=320)
    text = {**_tower(128, layers=4, heads=4, mlp=256), "projection_size": 160, "vocab_size": 1024}
    config = {"vision_config": vision, "text_config": text}
    folder = Path(fgclip_rt.__file__).parent / "models" / name
    return ModelSpec(
        name, "fgclip2", MappingProxyType(config), 2_598_018, folder=folder, calibration=calibration_inputs
    )


_BASE, _LARGE = _tower(768, layers=12, heads=12, mlp=3072), _tower(1024, layers=24, heads=16, mlp=4096)
_SO400M = _tower(1152, layers=27, heads=16, mlp=4304)

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _naflex("qihoo360/fg-clip2-base", "fgclip2", 383_803_394, _BASE),
        _naflex("qihoo360/fg-clip2-large", "fgclip2", 896_622_594, _LARGE),
        _naflex("qihoo360/fg-clip2-so400m", "fgclip2", 1_154_017_410, _SO400M),
        _pocket(),
        _fgclip1("qihoo360/fg-clip-base", 150_136_835, 224, 16, _BASE, _tower(512, layers=12, heads=8, mlp=2048)),
        _fgclip1("qihoo360/fg-clip-large", 428_914_947, 336, 14, _LARGE, _tower(768, layers=12, heads=12, mlp=3072)),
        _fineclip("fineclip-vitb16", 149_691_137, 224, 16, 768, 12, {"width": 512, "heads": 8, "layers": 12}),
        _fineclip("fineclip-vitl14-336", 428_083_137, 336, 14, 1024, 24, {"width": 768, "heads": 12, "layers": 12}),
        _naflex("google/siglip2-base-patch16-naflex", "siglip2", 375_234_050, _BASE),
        _naflex("google/siglip2-so400m-patch16-naflex", "siglip2", 1_135_670_962, _SO400M),
    )
}


def find_model(name: str) -> ModelSpec | None:
    """The model with this name or Hub id; None if there is none."""
    return MODELS.get(name) or next((spec for spec in MODELS.values() if spec.hub_id == name), None)


def unknown_model(name: str) -> CheckpointError:
    """The error for a name that is neither a model nor a checkpoint."""
    names = ", ".join(MODELS)
    return CheckpointError(
        f"{name!r} is neither a known model nor a checkpoint folder or a file of weights (.pt); "
        f"choose one of {names} (or its Hub id), or give the path of a local checkpoint.",
        code="checkpoint_missing",
    )
