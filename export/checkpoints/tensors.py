"""Loading a checkpoint's tensors, strictly by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from fgclip_rt.errors import CheckpointError

from .files import Checkpoint

_Module = TypeVar("_Module", bound=nn.Module)


#: Largest number of tensors that a message names for each fault.
_NAMES_SHOWN = 5


def load_module(build: Callable[[], _Module], checkpoint: Checkpoint, unused: tuple[str, ...] = ()) -> _Module:
    """The module that ``build`` makes, with the checkpoint's weights.

    Args:
        build: makes the reference; its own weights take no memory.
        checkpoint: holds the weights.
        unused: suffixes of the names of tensors that checkpoints may hold and no module reads.

    Raises:
        CheckpointError: as for :func:`load_weights`.
    """
    with torch.device("meta"):
        module = build()
    load_weights(module, checkpoint, unused)
    return module


def load_weights(module: nn.Module, checkpoint: Checkpoint, unused: tuple[str, ...] = ()) -> None:
    """Fill ``module``, built on the meta device, with float32 copies of the checkpoint's tensors.

    Args:
        module: the reference.
        checkpoint: holds the tensors.
        unused: suffixes of the names of tensors that checkpoints may hold and no module reads.

    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unexpected, duplicated, misshaped or not finite; one
            message names them all.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found: dict[str, Tensor] = {}
    misshaped: list[str] = []
    unexpected: list[str] = []
    not_finite: list[str] = []
    for name, tensor in checkpoint.tensors():
        if name.endswith(unused) and name not in expected:
            continue
        if name not in expected or name in found:
            unexpected.append(name)
        elif tuple(tensor.shape) != expected[name]:
            misshaped.append(f"{name} is {list(tensor.shape)} instead of {list(expected[name])}")
        elif not tensor.is_floating_point():
            misshaped.append(f"{name} is {tensor.dtype} instead of a float")
        elif tensor.layout != torch.strided or tensor.is_meta:
            misshaped.append(f"{name} is {tensor.layout} on {tensor.device} instead of an array")
        else:
            found[name] = tensor.to(torch.float32)
            if not found[name].isfinite().all():
                not_finite.append(name)
    refused = {entry.split(" ", 1)[0] for entry in misshaped}
    missing = [name for name in expected if name not in found and name not in refused]
    faults = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped, "not finite": not_finite}
    problems = [f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the model that {checkpoint.described_by} describes: tensors "
            f"{', '.join(problems)}; restore the checkpoint's files."
        )
    module.load_state_dict(found, strict=True, assign=True)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
