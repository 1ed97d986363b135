"""The clock of every comparison: contenders take turns, so that other work of the machine falls on all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter, sleep
from typing import TypeVar

Name = TypeVar("Name")


def timed(run: Callable[[], object], runs: int = 1, warm_up: int = 0) -> float:
    """Seconds that a run takes: the mean of ``runs``, after ``warm_up`` runs that are not timed."""
    for _ in range(warm_up):
        run()
    start = perf_counter()
    for _ in range(runs):
        run()
    return (perf_counter() - start) / runs


def take_turns(
    turns: Mapping[Name, Callable[[], float | None]],
    rounds: int,
    *,
    warm_up: int = 0,
    seconds: float = math.inf,
    pause: float = 0.0,
    progress: Callable[[], None] = lambda: None,
) -> dict[Name, list[float]]:
    """Give each contender its turn, round after round.

    Args:
        turns: by name, a function that takes one turn and returns its seconds, as :func:`timed` does. If it returns
            None, it failed and has no further turn.
        rounds: number of rounds that count.
        warm_up: number of rounds before them that do not count.
        seconds: limit after which no round begins, though one always counts.
        pause: seconds of rest before each turn.
        progress: is called after each round that counts.

    Returns:
        Seconds of each turn that counts, by name; without the names of turns that failed.
    """
    measured: dict[Name, list[float]] = {name: [] for name in turns}
    start = perf_counter()
    for number in range(1 - warm_up, rounds + 1):
        for name in tuple(measured):
            sleep(pause)
            elapsed = turns[name]()
            if elapsed is None:
                del measured[name]
            elif number > 0:
                measured[name].append(elapsed)
        if number > 0:
            progress()
            if perf_counter() - start > seconds:
                break
    return measured
