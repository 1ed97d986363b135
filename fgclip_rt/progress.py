"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: Begins a stage, given its name and number of steps, and returns what to call after each step.
BeginStage: TypeAlias = Callable[[str, int], Callable[[], None]]


def silent(name: str, steps: int) -> Callable[[], None]:  # noqa: ARG001 (a BeginStage)
    """Say nothing."""
    return lambda: None
