"""Backends run the graphs of a bundle: one module per library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from ..arrays import Array
from ..errors import DeviceError

#: Patches or tokens of a batch whose size is not given, on a GPU: fewer leave some of its processors idle.
GPU_TOKENS_PER_BATCH = 16_384

#: Patches or tokens of a batch whose size is not given, on a CPU, at most: activations stay in the caches.
CPU_TOKENS_PER_BATCH = 2048


class Result(Protocol):
    """Outputs that may not be ready yet."""

    def result(self) -> list[Array]:
        """Wait until the outputs are ready, and return them.

        Raises:
            DeviceError: the device failed.
        """


class Finished(msgspec.Struct, frozen=True):
    """Outputs that are ready."""

    outputs: list[Array]

    def result(self) -> list[Array]:
        """The outputs."""
        return self.outputs


class Backend(Protocol):
    """The graphs of one bundle in one precision, ready to run. Safe to use from several threads."""

    @property
    def precision(self) -> str:
        """The precision that runs, one of the bundle's."""

    @property
    def device(self) -> str:
        """The device of the graphs, such as ``cpu`` or ``cuda``."""

    def __str__(self) -> str:
        """The library, its device, and the reason for them."""

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """Run ``graph`` for ``outputs``, in their order; an asynchronous backend returns before they are ready.

        The inputs may be changed once this returns.

        Raises:
            ArgumentError: the bundle has no such graph.
            BundleError: the graph is not the one that the manifest describes, or was changed in place.
            DeviceError: memory ran out, or the precision cannot run here.
        """

    def batch_size(self, graph: str, length: int) -> int:
        """Batch size for images or texts of ``length`` patches or tokens, if the caller gives none."""


def lost_cuda() -> DeviceError:
    """The error of a forked child whose parent had used CUDA, which does not survive a fork."""
    return DeviceError(
        "the GPU was in use before this process was forked, and CUDA does not survive a fork; load the model in the "
        "child, or start it with multiprocessing's method 'spawn'."
    )
