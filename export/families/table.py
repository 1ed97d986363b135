"""The families of models, and the keys by which their checkpoints are recognised.

A family is a folder with a configuration, a reference, graphs and the model that joins them. The pipeline reaches it
through this table only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fgclip_rt.errors import CheckpointError

from ..checkpoints.files import Checkpoint
from .base import ReferenceModel
from .fgclip1 import model as fgclip1
from .fgclip2 import model as fgclip2
from .fineclip import model as fineclip
from .siglip2 import model as siglip2


class Family(Protocol):
    """The module ``model`` of a family."""

    def load(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> ReferenceModel:
        """Load a checkpoint whose parsed configuration file is ``config``.

        Raises:
            CheckpointError: a file is missing or damaged, tensors do not fit the configuration, or the preparation is
                not one that a bundle can express.
        """

    def random(self, config: Mapping[str, Any], seed: int) -> ReferenceModel:
        """A model of the sizes in ``config`` with seeded random weights."""


@dataclass(frozen=True)
class FamilySpec:
    """One family, and the key by which its checkpoints are recognised.

    Attributes:
        family: loads its models.
        config_file: the file of a checkpoint that states its sizes.
        key: key in that file, with dots between levels.
        value: the key's value; None stands for any.
    """

    family: Family
    config_file: str
    key: str
    value: str | list[str] | None

    def found(self, config: Mapping[str, Any]) -> Any:
        """The value at the key of a parsed file; None if the file has no such key."""
        at: Any = config
        for part in self.key.split("."):
            at = at.get(part) if isinstance(at, Mapping) else None
        return at

    def made(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this parsed file is of the family."""
        actual = self.found(config)
        return actual is not None if self.value is None else bool(actual == self.value)


FAMILIES: dict[str, FamilySpec] = {
    "fgclip2": FamilySpec(fgclip2, "config.json", "model_type", "fgclip2"),
    "fgclip1": FamilySpec(fgclip1, "config.json", "architectures", ["FGCLIPModel"]),
    "fineclip": FamilySpec(fineclip, "model_config.json", "vision_cfg.eva_model_name", None),
    "siglip2": FamilySpec(siglip2, "config.json", "model_type", "siglip2"),
}


def load(checkpoint: Checkpoint) -> tuple[str, ReferenceModel]:
    """Load a checkpoint by the family that its configuration names.

    Returns:
        The family's name, a key of :data:`FAMILIES`, and the model.

    Raises:
        CheckpointError: the family is unknown, or the checkpoint is not what its configuration says.
    """
    config = checkpoint.json(checkpoint.config_file)
    specs = {name: spec for name, spec in FAMILIES.items() if spec.config_file == checkpoint.config_file}
    for name, spec in specs.items():
        if spec.made(config):
            return name, spec.family.load(checkpoint, config)
    values = {spec.key: spec.found(config) for spec in specs.values()}
    raise CheckpointError(
        f"{checkpoint.where(checkpoint.config_file)} is of a model that cannot be exported "
        f"({', '.join(f'{key} {value!r}' for key, value in values.items())}); supported: {', '.join(specs)}.",
        code="checkpoint_unsupported",
    )


def random(family: str, config: Mapping[str, Any], seed: int = 0) -> ReferenceModel:
    """A model of a family, of the sizes in ``config``, with seeded random weights."""
    return FAMILIES[family].family.random(config, seed)
