"""Loading a checkpoint's tensors, strictly by name."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from fgclip_rt.errors import CheckpointError

from .files import Checkpoint

_Module = TypeVar("_Module", bound=nn.Module)
_Named: TypeAlias = list[tuple[str, Tensor]]

#: Largest number of tensors that a message names for each fault.
_NAMES_SHOWN = 5

#: Parts of names from PyTorch's wrappers for compilation, sharding and recomputation, wherever they stand in a name.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

#: Last parts of the names of tensors that training leaves and no result depends on: scales of training losses, the
#: numbers from 0, the causal mask, and the count of an average.
_LEFTOVERS = ("logit_scale_finegraind", "logit_scale_hardneg", "position_ids", "attn_mask", "n_averaged")


def load_module(
    build: Callable[[], _Module], checkpoint: Checkpoint, blocks: int, unused: tuple[str, ...] = ()
) -> _Module:
    """The module that ``build`` makes, with the checkpoint's weights.

    Args:
        build: makes the reference; its own weights take no memory.
        checkpoint: holds the weights.
        blocks: number of transformer blocks that it will make.
        unused: suffixes of the names of tensors that checkpoints may hold and no module reads.

    Raises:
        CheckpointError: as for :func:`load_weights`, or there are fewer tensors than blocks.
    """
    tensors = list(checkpoint.tensors())
    if blocks > len(tensors):
        # Said before the module is built, because 10^8 blocks take minutes and all memory.
        raise CheckpointError(
            f"{checkpoint.path} holds {len(tensors):,} tensors, and {checkpoint.described_by} describes {blocks:,} "
            "transformer blocks; restore the checkpoint's files."
        )
    with torch.device("meta"):
        module = build()
    _fill(module, checkpoint, tensors, unused)
    return module


def load_weights(module: nn.Module, checkpoint: Checkpoint, unused: tuple[str, ...] = ()) -> None:
    """Fill ``module``, built on the meta device, with float32 copies of the checkpoint's tensors.

    A prefix that all names have is removed, and so are the parts of names that PyTorch's wrappers add. Leftovers of
    training are passed over and noted.

    Args:
        module: the reference.
        checkpoint: holds the tensors.
        unused: suffixes of the names of tensors that checkpoints may hold and no module reads.

    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unexpected, duplicated, misshaped or not finite; one
            message names them all.
    """
    _fill(module, checkpoint, list(checkpoint.tensors()), unused)


def _fill(module: nn.Module, checkpoint: Checkpoint, tensors: _Named, unused: tuple[str, ...]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    kept = _without_leftovers(checkpoint, [(_unwrapped(name), tensor) for name, tensor in tensors], expected)
    names = [name for name, _ in kept]
    prefix = _prefix(names, expected)
    found: dict[str, Tensor] = {}
    misshaped: list[str] = []
    unexpected: list[str] = []
    not_finite: list[str] = []
    for full_name, tensor in kept:
        name = full_name.removeprefix(prefix)
        if name.endswith(unused) and name not in expected:
            continue
        if name not in expected or name in found:
            unexpected.append(name)
        elif not _fits(tuple(tensor.shape), expected[name]):
            misshaped.append(f"{name} is {list(tensor.shape)} instead of {list(expected[name])}")
        elif not tensor.is_floating_point():
            misshaped.append(f"{name} is {tensor.dtype} instead of a float")
        elif tensor.layout != torch.strided or tensor.is_meta:
            misshaped.append(f"{name} is {tensor.layout} on {tensor.device} instead of an array")
        else:
            found[name] = tensor.to(torch.float32).reshape(expected[name])
            if not found[name].isfinite().all():
                not_finite.append(name)
    refused = {entry.split(" ", 1)[0] for entry in misshaped}
    missing = [name for name in expected if name not in found and name not in refused]
    faults = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped, "not finite": not_finite}
    problems = [f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the model that {checkpoint.described_by} describes: tensors "
            f"{', '.join(problems)}{_beginnings(names, prefix, found)}; restore the checkpoint's files."
        )
    module.load_state_dict(found, strict=True, assign=True)


def _without_leftovers(checkpoint: Checkpoint, tensors: _Named, expected: Collection[str]) -> _Named:
    """The tensors without those that training leaves, which are noted."""
    read = {_last(name) for name in expected}
    leftovers = [name for name, _ in tensors if _last(name) in _LEFTOVERS and _last(name) not in read]
    if leftovers:
        checkpoint.note(
            f"{checkpoint.path} holds {len(leftovers)} of the tensors that training leaves and no result depends on "
            f"({_some(leftovers)}); they were passed over."
        )
    return [(name, tensor) for name, tensor in tensors if name not in leftovers]


def _prefix(names: Sequence[str], expected: Collection[str]) -> str:
    """The prefix, ending with a dot, that all names have and that leaves most names of the model; often none."""
    common = os.path.commonprefix(names)  # noqa: RUF071 (names of tensors, no paths)
    prefixes = ["", *accumulate(part + "." for part in common.split(".")[:-1])]
    return max(prefixes, key=lambda prefix: sum(name.removeprefix(prefix) in expected for name in names))


def _beginnings(names: Sequence[str], prefix: str, found: Collection[str]) -> str:
    """The beginnings of names, for a message: the prefix that was removed, or all of them if the model has no name."""
    if prefix:
        return f" (without {prefix!r}, with which all names begin)"
    first = sorted({name.split(".", 1)[0] + "." for name in names})
    if found or not all("." in name for name in names) or not 1 <= len(first) <= _NAMES_SHOWN:
        return ""
    return f" (all names begin with {' or '.join(map(repr, first))})"


def _unwrapped(name: str) -> str:
    for part in _WRAPPERS:
        name = name.replace(part, "")
    return name


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether shapes are equal; a scalar may be one number in a list, and the other way round."""
    scalars = ((), (1,))
    return shape == expected or (shape in scalars and expected in scalars)


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
