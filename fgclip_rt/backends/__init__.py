"""What runs the graphs of a bundle: one module per library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Backend(Protocol):
    """The graphs of one bundle in one precision, ready to run. Safe to use from several threads."""

    @property
    def precision(self) -> str:
        """Which of the bundle's precisions runs."""

    @property
    def device(self) -> str:
        """What the graphs run on, such as ``cpu`` or ``cuda``."""

    def __str__(self) -> str:
        """Which library runs on which device, and why."""

    def run(
        self, graph: str, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str]
    ) -> list[np.ndarray[Any, Any]]:
        """Run ``graph`` and return ``outputs`` in order.

        Raises:
            ArgumentError: the bundle has no such graph.
            DeviceError: memory ran out, or the precision cannot run here.
        """
