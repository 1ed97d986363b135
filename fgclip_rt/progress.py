"""Progress of long work, reported step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")

#: Begins a stage, given its name and number of steps, and returns the function to call after each step.
BeginStage: TypeAlias = Callable[[str, int], Callable[[], None]]


def silent(name: str, steps: int) -> Callable[[], None]:  # noqa: ARG001 (a BeginStage)
    """Report nothing."""
    return lambda: None


def tracked(begin: BeginStage, stage: str, items: Sequence[_T]) -> Iterator[_T]:
    """Iterate over ``items``, and report each as a step of ``stage`` once the caller is done with it."""
    done = begin(stage, len(items))
    for item in items:
        yield item
        done()
