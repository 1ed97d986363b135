"""Checks of an export's arguments, before the imports of torch and ONNX, which take seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from fgclip_rt.errors import ArgumentError

from .checkpoints.registry import ModelSpec, find_model, unknown_model

#: Names of the precisions, in the order of a bundle, and of the precisions whose layers must be calibrated.
NAMES = ("fp32", "fp16", "bf16", "int8", "fp8")
QUANTISED = ("int8", "fp8")

#: Fewest different images, and fewest different texts of a walk type: fewer show little of a model's later inputs.
LEAST = 16

#: Least bytes of a weight in the file of each precision. A weight that the file of an earlier precision holds is not
#: stored again. The tables of tokens of 8-bit precisions are in float16, and may be in the file of fp16.
_WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 0.5, "fp8": 0.5}


def check(precisions: Sequence[str], floor: float | None, *, measured: bool, gated: bool = False) -> None:
    """Make sure that the arguments of an export can be used.

    Args:
        precisions: the precisions to write.
        floor: the smallest cosine to accept in lower precisions; None takes each precision's own.
        measured: whether there are inputs to calibrate on.
        gated: whether there are pairs to find.

    Raises:
        ArgumentError: an argument cannot be used or would be of no use.
    """
    names = ", ".join(NAMES)
    if not precisions:
        raise ArgumentError(f"no precision was asked for; choose from {names}.")
    for name in precisions:
        if name not in NAMES:
            raise ArgumentError(f"precision {name!r} cannot be exported; choose from {names}.")
    if floor is not None and not 0 < floor < 1:
        raise ArgumentError(f"the floor is {floor}; pass the smallest cosine to accept, between 0 and 1.")
    if set(precisions) == {"fp32"} and (measured or gated or floor is not None):
        raise ArgumentError(
            "calibration inputs, a floor and a gate are for lower precisions; ask for one, or leave them out."
        )


def check_calibrated(precisions: Collection[str], *, measured: bool) -> None:
    """Make sure that there are inputs to calibrate on if a precision needs them.

    Raises:
        ArgumentError: there are none.
    """
    quantised = [name for name in QUANTISED if name in precisions]
    if quantised and not measured:
        raise ArgumentError(
            f"{' and '.join(quantised)} must be calibrated; pass images and texts of the kind that the model will "
            "meet, with --calibration and --calibration-texts."
        )


def check_enough(images: int, texts: int) -> None:
    """Make sure that there are enough inputs to calibrate on.

    Args:
        images: number of different images.
        texts: number of different texts of the walk type that has the fewest.

    Raises:
        ArgumentError: there are fewer than :data:`LEAST` of either.
    """
    for kind, count in (("images", images), ("texts", texts)):
        if count < LEAST:
            raise ArgumentError(
                f"calibration was given {count} different {kind} and needs at least {LEAST}; "
                "give more of what the model will meet."
            )


def check_model(model: str, *, random: bool) -> ModelSpec | None:
    """The registered model of this name; None for a path that exists.

    Raises:
        CheckpointError: the name is neither; or it is a path, and random weights were asked for.
    """
    spec = find_model(model)
    if spec is None and (random or not model or not Path(model).exists()):
        raise unknown_model(model)
    return spec


def least_bytes(model: str, weights: Path | None, precisions: Sequence[str]) -> int:
    """Lower bound of the bundle's bytes; a looser bound if a file does not tell its number of weights.

    Args:
        model: a registered name, or a path.
        weights: the file of weights that was named besides; None if there is none.
        precisions: the precisions to write. fp32 always counts, because the others are held to it.
    """
    spec = find_model(model)
    if spec is not None:
        count = spec.parameters
    elif Path(model).is_dir():
        count = sum(map(_count, Path(model).glob("*.safetensors")))
    else:
        # A weight has four bytes at most, and an optimizer keeps up to three more numbers of each.
        count = _size(weights or Path(model)) // 16
    written = {"fp32", *precisions}
    # The file of fp16 already holds the tables of the 8-bit precisions.
    shared = {"int8": 0.25, "fp8": 0.25} if "fp16" in written else {}
    weight_bytes = {**_WEIGHT_BYTES, **shared}
    return int(count * sum(weight_bytes[name] for name in written))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _count(path: Path) -> int:
    """Number of weights in a safetensors file, from its header; zero if it cannot be read, which loading reports."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return 0
