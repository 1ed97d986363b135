"""A backend that runs nothing and says why: it stands behind engines when no other library can."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from ..arrays import Array
from ..errors import DeviceError


class Refuse(msgspec.Struct, frozen=True):
    """Refuses every input, which no engine takes.

    Attributes:
        bundle: folder of the bundle.
        precision: the precision of the engines.
        library: name of the library that runs them, and that builds others.
        reason: why nothing else runs the graphs, as part of a sentence.
    """

    bundle: Path
    precision: str
    library: str
    reason: str

    device = "cuda"

    def __str__(self) -> str:
        return self.reason

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> NoReturn:  # noqa: ARG002 (none exist)
        """Refuse.

        Raises:
            DeviceError: always.
        """
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        command = ["fgclip-rt", "build", str(self.bundle), "--backend", self.library, "--graph", graph]
        raise DeviceError(
            f"no engine takes the {graph} graph with {shapes}, and {self.reason}; build one with "
            f"'{shlex.join(command)}', or use device 'cpu'."
        )

    def batch_size(self, graph: str, length: int) -> int:  # noqa: ARG002 (none runs)
        """One, so that the first input is refused before others are prepared."""
        return 1
