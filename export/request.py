"""What is asked of an export, checked before torch and ONNX are imported, which takes seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from fgclip_rt.errors import ArgumentError

from .checkpoints.registry import ModelSpec, find_model, unknown_model

#: Names of the precisions, in the order of a bundle, and of those whose layers must be calibrated.
NAMES = ("fp32", "fp16", "bf16", "int8", "fp8")
QUANTISED = ("int8", "fp8")

#: Fewest different images, and fewest different texts of a walk type: less says little about what a model meets.
LEAST = 16

#: Bytes of a weight in the files of each precision, at least: what is in the file of an earlier one is not stored
#: again, and of 8 bits tables of tokens, in float16, may be.
_WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 0.5, "fp8": 0.5}


def check(precisions: Sequence[str], floor: float | None, *, measured: bool) -> None:
    """Make sure that an export can be asked for this.

    Args:
        precisions: which to write.
        floor: the smallest cosine to accept in lower precisions.
        measured: whether there are inputs to calibrate on.

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
    if set(precisions) == {"fp32"} and (measured or floor is not None):
        raise ArgumentError("calibration inputs and a floor are for lower precisions; ask for one, or leave them out.")


def check_calibrated(precisions: Collection[str], *, measured: bool) -> None:
    """Make sure that there is something to calibrate on for those precisions that need it.

    Raises:
        ArgumentError: there is not.
    """
    quantised = [name for name in QUANTISED if name in precisions]
    if quantised and not measured:
        raise ArgumentError(
            f"{' and '.join(quantised)} must be calibrated; pass images and texts of the kind that the model will "
            "meet, with --calibration and --calibration-texts."
        )


def check_enough(images: int, texts: int) -> None:
    """Make sure that there is enough to calibrate on.

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
    """The registered model of this name; None for a path that is there.

    Raises:
        CheckpointError: it is neither; or it is a path, and random weights were asked for.
    """
    spec = find_model(model)
    if spec is None and (random or not model or not Path(model).exists()):
        raise unknown_model(model)
    return spec


def least_bytes(model: str, weights: Path | None, precisions: Sequence[str]) -> int:
    """Bytes that the bundle will take at the least; a part of them, where a file does not tell how many weights it has.

    Args:
        model: a registered name, or a path.
        weights: the file of weights, if one was named besides.
        precisions: which will be written; fp32 always is, for the others are held to it.
    """
    spec = find_model(model)
    if spec is not None:
        count = spec.parameters
    elif Path(model).is_dir():
        count = sum(map(_count, Path(model).glob("*.safetensors")))
    else:
        # In float32 at most.
        count = _size(weights or Path(model)) // 4
    written = {"fp32", *precisions}
    # Beside fp16, the tables of the 8-bit ones are there already.
    shared = {"int8": 0.25, "fp8": 0.25} if "fp16" in written else {}
    each = {**_WEIGHT_BYTES, **shared}
    return int(count * sum(each[name] for name in written))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _count(path: Path) -> int:
    """Number of weights in a safetensors file, by its header; zero if it cannot be read, which loading will tell."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return 0
