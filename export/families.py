"""What the pipeline asks of a model family, and the families there are.

A family is a package with a reference model, graph modules and a preparation specification; nothing outside it knows
its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fgclip_rt.errors import CheckpointError
from fgclip_rt.images import Patches
from fgclip_rt.manifest import ImageSpec, Score, TextSpec
from fgclip_rt.text import Tokens

from .checkpoint import Checkpoint
from .onnx_writer import GraphSource

FloatArray = NDArray[np.float32]


class ReferenceModel(Protocol):
    """A loaded model: its specification, its graphs, and the reference that they are measured against."""

    @property
    def embedding_size(self) -> int:
        """Width of every vector."""

    @property
    def image_spec(self) -> ImageSpec:
        """How images are prepared."""

    @property
    def text_spec(self) -> TextSpec:
        """How texts are tokenised."""

    @property
    def score(self) -> Score:
        """How vectors become scores."""

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer, in the format of the ``tokenizers`` library."""

    def graphs(self) -> dict[str, GraphSource]:
        """Modules to trace, by the name of the graph."""

    def image(self, patches: Patches, boxes: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The reference's image features [D], dense features [h·w, D] and region features [r, D]."""

    def text(self, tokens: Tokens, walk_type: str) -> FloatArray:
        """The reference's text features [m, D]."""

    def logits(self, image_features: FloatArray, text_features: FloatArray) -> FloatArray:
        """The reference's logits [n, m]."""


class Family(Protocol):
    """A package of :data:`FAMILIES`."""

    def load(self, checkpoint: Checkpoint) -> ReferenceModel:
        """Load a checkpoint of this family."""

    def random(self, config: Mapping[str, Any], seed: int) -> ReferenceModel:
        """A model of the sizes in a ``config.json`` with seeded random weights."""


#: Packages by the ``model_type`` of a checkpoint's ``config.json``.
FAMILIES = {"fgclip2": "fgclip_rt.export.fgclip2"}


def family(model_type: str) -> Family:
    """The family of a ``model_type``."""
    return cast(Family, importlib.import_module(FAMILIES[model_type]))


def load(checkpoint: Checkpoint) -> ReferenceModel:
    """Load a checkpoint by the family that its ``config.json`` names.

    Raises:
        CheckpointError: the family is unknown, or the checkpoint is not what its configuration says.
    """
    return family(family_name(checkpoint)).load(checkpoint)


def family_name(checkpoint: Checkpoint) -> str:
    """The ``model_type`` of a checkpoint.

    Raises:
        CheckpointError: it is not one of the families.
    """
    model_type = checkpoint.json("config.json").get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} is of model_type {model_type!r}, which cannot be exported; "
            f"supported: {', '.join(FAMILIES)}."
        )
    return model_type
