"""Progress of long work, reported step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: Begins a stage, given its name and number of steps, and returns the function to call after each step.
BeginStage: TypeAlias = Callable[[str, int], Callable[[], None]]


def silent(name: str, steps: int) -> Callable[[], None]:  # noqa: ARG001 (a BeginStage)
    """Report nothing."""
    return lambda: None
