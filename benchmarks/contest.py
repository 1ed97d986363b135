"""Contenders on one case, taking turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from fgclip_rt.turns import take_turns

from .results import Row
from .task import Case, Contender, Problem, Ran
from .workers import Worker

#: A turn lasts at least so many seconds. One that is shorter than the second number begins with as many untimed runs,
#: which bring back into the caches what the others drove out.
_TURN, _SHORT = 0.25, 1.0

#: From so many seconds on, a first run is not repeated before the turns begin.
_LONG = 60.0

#: Seconds between turns, after which the threads of the one before no longer wait by spinning.
_PAUSE = 0.1


class Contest:
    """The processes of several contenders, which stay for one case after another."""

    def __init__(self, contenders: Sequence[Contender], rounds: int = 9, seconds: float = 60.0) -> None:
        """Make ready to start them.

        Args:
            contenders: the first is what the others are compared with.
            rounds: turns of each.
            seconds: after so many a case has no further round, though always one.
        """
        self._contenders = contenders
        self._rounds, self._seconds = rounds, seconds
        self._stack = ExitStack()
        self._workers: list[Worker] = []

    def __enter__(self) -> Contest:
        for contender in self._contenders:
            self._workers.append(self._stack.enter_context(Worker(contender)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, case: Case, progress: Callable[[], None] = lambda: None) -> list[Row]:
        """Every contender on ``case``, in turns; those that cannot say why."""
        rows: dict[str, Row] = {}
        turns: dict[str, Callable[[], float | None]] = {}
        peaks: dict[str, int] = {}
        reference: list[float] | None = None
        for worker in self._workers:
            name, answer = worker.contender.name, worker.prepare(case)
            if isinstance(answer, Problem):
                rows[name] = Row(name, problem=answer.reason)
                continue
            # The first run of something short may have compiled for long; the second tells how long a turn takes.
            again = worker.again(1, warm_up=False) if answer.seconds < _LONG else None
            usual = again.seconds if isinstance(again, Ran) else answer.seconds
            if reference is None:
                reference = answer.vector
            rows[name] = Row(name, first=answer.seconds, cosine=_cosine(answer.vector, reference), loaded=answer.loaded)
            turns[name] = partial(_turn, worker, usual, rows, peaks)
        measured = take_turns(turns, self._rounds, seconds=self._seconds, pause=_PAUSE, progress=progress)
        for name, seconds in measured.items():
            known = rows[name]
            rows[name] = Row(name, tuple(seconds), known.first, known.cosine, known.loaded, peaks[name])
        return [rows[contender.name] for contender in self._contenders]


def _turn(worker: Worker, usual: float, rows: dict[str, Row], peaks: dict[str, int]) -> float | None:
    """Take one turn, in which a run takes ``usual`` seconds or so; if it fails, the contender's row says why."""
    name = worker.contender.name
    ran = worker.again(math.ceil(_TURN / usual), warm_up=usual < _SHORT)
    if isinstance(ran, Problem):
        rows[name] = Row(name, problem=ran.reason)
        return None
    peaks[name] = ran.peak
    return ran.seconds


def _cosine(vector: Sequence[float], other: Sequence[float]) -> float | None:
    """Their cosine; None for vectors that are of no kind that could be compared."""
    a, b = np.asarray(vector), np.asarray(other)
    if a.shape != b.shape:
        return None
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
