"""The recorded probe: inputs and the reference's results, so that parity can be checked without PyTorch.

Everything lies in one safetensors file. Per image ``i``: ``image.i.rgb`` uint8 [H, W, 3], ``image.i.patches`` uint8
[n, P·P·3], ``image.i.grid`` int32 [2], and the reference's ``image.i.features`` [D]. If the model has them,
``image.i.dense`` [h·w, D]; ``image.i.boxes`` float64 [r, 4] and ``image.i.regions`` [r, D]; ``image.i.masks`` float32
[m, h, w] and ``image.i.mask_features`` [m, D]. Per walk type ``w``: ``text.w.input_ids`` int32 [m, L],
``text.w.attention_mask`` and ``text.w.features`` [m, D]. ``logits`` float32 [n, m] compare the images with the short
texts. The texts themselves are in the file's metadata: ``texts`` is JSON that holds a list for each walk type.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .arrays import Array
from .errors import BundleError


@dataclass(frozen=True)
class ProbeImage:
    """An image, its preparation, and the reference's results; None for each part that the model lacks."""

    rgb: Array
    patches: Array
    grid: Array
    features: Array
    dense: Array | None = None
    boxes: Array | None = None
    regions: Array | None = None
    masks: Array | None = None
    mask_features: Array | None = None


@dataclass(frozen=True)
class ProbeTexts:
    """The texts of one walk type, their tokens, and the reference's features."""

    texts: tuple[str, ...]
    input_ids: Array
    attention_mask: Array
    features: Array


@dataclass(frozen=True)
class Probe:
    """Recorded images, texts by walk type, and logits."""

    images: tuple[ProbeImage, ...]
    walk_types: dict[str, ProbeTexts]
    logits: Array

    def save(self, path: Path) -> None:
        """Write the file."""
        tensors = {"logits": self.logits}
        for index, image in enumerate(self.images):
            present = {name: value for name, value in vars(image).items() if value is not None}
            tensors |= {f"image.{index}.{name}": value for name, value in present.items()}
        for walk_type, part in self.walk_types.items():
            tensors |= {f"text.{walk_type}.{name}": value for name, value in vars(part).items() if name != "texts"}
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        texts = {walk_type: part.texts for walk_type, part in self.walk_types.items()}
        save_file(contiguous, path, metadata={"texts": json.dumps(texts, ensure_ascii=False)})

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read the file.

        Raises:
            BundleError: it is damaged or not a probe.
        """
        try:
            with safe_open(path, "np") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                texts = dict(json.loads(file.metadata()["texts"]))
            count = len({name.split(".")[1] for name in tensors if name.startswith("image.")})
            return cls(
                images=tuple(_part(ProbeImage, tensors, f"image.{index}") for index in range(count)),
                walk_types={
                    walk_type: _part(ProbeTexts, tensors, f"text.{walk_type}", texts=tuple(entries))
                    for walk_type, entries in texts.items()
                },
                logits=tensors["logits"],
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path} is not a probe ({error}); export the bundle again.") from None


def _part(kind: Any, tensors: dict[str, Array], prefix: str, **given: Any) -> Any:
    """An object of ``kind`` whose fields are the tensors under ``prefix``, except for the given fields."""
    values = {}
    for field in fields(kind):
        name = f"{prefix}.{field.name}"
        # Only fields that a model may lack have a default.
        if field.name not in given and (name in tensors or field.default is MISSING):
            values[field.name] = tensors[name]
    return kind(**given, **values)
