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

#: Least seconds of a turn. A turn whose runs take less than the second number begins with as many untimed runs. They
#: refill the caches after the other contenders' turns.
_TURN, _SHORT = 0.25, 1.0

#: First runs of this many seconds or more are not repeated as warm-up before the turns.
_LONG = 60.0

#: Seconds between turns. By then the threads of the previous contender no longer wait by spinning.
_PAUSE = 0.1


class Contest:
    """The processes of several contenders, which stay alive from case to case."""

    def __init__(self, contenders: Sequence[Contender], rounds: int = 9, seconds: float = 60.0) -> None:
        """Prepare a contest, whose processes start when the block begins.

        Args:
            contenders: the contenders; the others are compared with the first.
            rounds: number of turns of each contender on each case.
            seconds: seconds after which a case has no further round. The first round always runs.
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
        """Measure every contender on ``case``, in turns. The row of a contender that cannot run says why."""
        rows: dict[str, Row] = {}
        turns: dict[str, Callable[[], float | None]] = {}
        peaks: dict[str, int] = {}
        reference: list[float] | None = None
        for worker in self._workers:
            name, answer = worker.contender.name, worker.prepare(case)
            if isinstance(answer, Problem):
                rows[name] = Row(name, problem=answer.reason)
                continue
            # The first run may include compiling; the second tells how long a run takes.
            second = worker.again(1, warm_up=False) if answer.seconds < _LONG else None
            run_seconds = second.seconds if isinstance(second, Ran) else answer.seconds
            if reference is None:
                reference = answer.vector
            rows[name] = Row(name, first=answer.seconds, cosine=_cosine(answer.vector, reference), loaded=answer.loaded)
            turns[name] = partial(_turn, worker, run_seconds, rows, peaks)
        measured = take_turns(turns, self._rounds, seconds=self._seconds, pause=_PAUSE, progress=progress)
        for name, seconds in measured.items():
            row = rows[name]
            rows[name] = Row(name, tuple(seconds), row.first, row.cosine, row.loaded, peaks[name])
        return [rows[contender.name] for contender in self._contenders]


def _turn(worker: Worker, run_seconds: float, rows: dict[str, Row], peaks: dict[str, int]) -> float | None:
    """Take one turn, in which a run takes about ``run_seconds``. If it fails, the contender's row says why."""
    name = worker.contender.name
    answer = worker.again(math.ceil(_TURN / run_seconds), warm_up=run_seconds < _SHORT)
    if isinstance(answer, Problem):
        rows[name] = Row(name, problem=answer.reason)
        return None
    peaks[name] = answer.peak
    return answer.seconds


def _cosine(vector: Sequence[float], other: Sequence[float]) -> float | None:
    """Cosine of two vectors; None if their lengths differ."""
    a, b = np.asarray(vector), np.asarray(other)
    if a.shape != b.shape:
        return None
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
