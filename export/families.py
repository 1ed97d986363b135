"""What the pipeline asks of a model family, and the families there are.

A family is a package with a reference model, graph modules and a preparation specification; nothing outside it knows
its name.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgclip_rt.errors import CheckpointError
from fgclip_rt.manifest import ImageSpec, Score, TextSpec
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Tokens

from .checkpoint import Checkpoint
from .onnx_writer import GraphSource

FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class ImageFeatures:
    """What a reference makes of one image; None for what its model does not have.

    Attributes:
        features: of the whole image, [D].
        dense: of its patches, [h·w, D].
        regions: of boxes, [r, D].
        masks: of masks, [m, D].
    """

    features: FloatArray
    dense: FloatArray | None = None
    regions: FloatArray | None = None
    masks: FloatArray | None = None


class ReferenceModel(ABC):
    """A loaded model: its specification, its graphs, and the reference that they are measured against.

    Attributes:
        module: the reference, a module with ``logits_per_image``, ``get_image_features``, which takes what
            :meth:`image_inputs` makes, and, if the model has dense features, ``get_image_dense_features`` of the same.
        tokenizer_json: the tokenizer, in the format of the ``tokenizers`` library.
    """

    module: Any
    tokenizer_json: str

    @property
    @abstractmethod
    def embedding_size(self) -> int:
        """Width of every vector."""

    @property
    @abstractmethod
    def image_spec(self) -> ImageSpec:
        """How images are prepared."""

    @property
    @abstractmethod
    def text_spec(self) -> TextSpec:
        """How texts are tokenised."""

    @property
    @abstractmethod
    def score(self) -> Score:
        """How vectors become scores."""

    @abstractmethod
    def graphs(self) -> dict[str, GraphSource]:
        """Modules to trace, by the name of the graph."""

    @abstractmethod
    def image(self, patches: Patches, boxes: FloatArray, masks: FloatArray) -> ImageFeatures:
        """The reference's features of an image, of ``boxes`` [r, 4] in its pixels and of ``masks`` [m, h, w] on its
        grid."""

    @abstractmethod
    def image_inputs(self, pixels: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        """What the reference takes for patches uint8 [B, N, P·P·3] and grids integer [B, 2], on their device."""

    @abstractmethod
    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:
        """The reference's features float [B, D] of tokens integer [B, L]; some models read the mask [B, L] too."""

    @torch.inference_mode()
    def text(self, tokens: Tokens, walk_type: str) -> FloatArray:
        """The reference's text features [m, D]."""
        input_ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
        features: FloatArray = self.text_features(input_ids, mask, walk_type).numpy()
        return features

    @torch.inference_mode()
    def logits(self, image_features: FloatArray, text_features: FloatArray) -> FloatArray:
        """The reference's logits [n, m]."""
        logits: FloatArray = self.module.logits_per_image(
            torch.from_numpy(image_features), torch.from_numpy(text_features)
        ).numpy()
        return logits

    def inputs_of(self, patches: Patches) -> tuple[Tensor, ...]:
        """:meth:`image_inputs` of one image."""
        return self.image_inputs(torch.tensor(patches.pixels)[None], torch.tensor([patches.grid]))


class Family(Protocol):
    """A package of :data:`FAMILIES`."""

    def load(self, checkpoint: Checkpoint) -> ReferenceModel:
        """Load a checkpoint of this family."""

    def random(self, config: Mapping[str, Any], seed: int) -> ReferenceModel:
        """A model of the sizes in a ``config.json`` with seeded random weights."""


@dataclass(frozen=True)
class FamilySpec:
    """One family, and how its checkpoints are known.

    Attributes:
        package: holds it; a :class:`Family`.
        config_file: the file of a checkpoint that states its sizes.
        key: of that file, with dots between levels.
        value: what is there; None stands for anything.
    """

    package: str
    config_file: str
    key: str
    value: str | list[str] | None

    def found(self, config: Mapping[str, Any]) -> Any:
        """What a parsed file holds at the key; None where it has none."""
        at: Any = config
        for part in self.key.split("."):
            at = at.get(part) if isinstance(at, Mapping) else None
        return at

    def made(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this parsed file is of the family."""
        found = self.found(config)
        return found is not None if self.value is None else bool(found == self.value)


FAMILIES = {
    "fgclip2": FamilySpec("fgclip_rt.export.fgclip2", "config.json", "model_type", "fgclip2"),
    "fgclip1": FamilySpec("fgclip_rt.export.fgclip1", "config.json", "architectures", ["FGCLIPModel"]),
    "fineclip": FamilySpec("fgclip_rt.export.fineclip", "model_config.json", "vision_cfg.eva_model_name", None),
    "siglip2": FamilySpec("fgclip_rt.export.siglip2", "config.json", "model_type", "siglip2"),
}


def family(name: str) -> Family:
    """The family with this name."""
    return cast(Family, importlib.import_module(FAMILIES[name].package))


def load(checkpoint: Checkpoint) -> ReferenceModel:
    """Load a checkpoint by the family that its configuration names.

    Raises:
        CheckpointError: the family is unknown, or the checkpoint is not what its configuration says.
    """
    return family(family_name(checkpoint)).load(checkpoint)


def family_name(checkpoint: Checkpoint) -> str:
    """The family of a checkpoint, by the file that states its sizes.

    Raises:
        CheckpointError: it is not one of the families.
    """
    config = checkpoint.json(checkpoint.config_file)
    specs = {name: spec for name, spec in FAMILIES.items() if spec.config_file == checkpoint.config_file}
    for name, spec in specs.items():
        if spec.made(config):
            return name
    found = {spec.key: spec.found(config) for spec in specs.values()}
    raise CheckpointError(
        f"{checkpoint.where(checkpoint.config_file)} is of a model that cannot be exported "
        f"({', '.join(f'{key} {value!r}' for key, value in found.items())}); supported: {', '.join(specs)}."
    )
