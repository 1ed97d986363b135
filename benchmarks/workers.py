"""Contenders in processes of their own: the parent's side."""

from __future__ import annotations

from typing import Self

import msgspec

from fgclip_rt.children import Child, ChildDiedError

from .task import Again, Answer, Case, Contender, Prepare, Prepared, Problem, Ran, Request

#: Environment variables from which libraries read their number of threads.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """The process of one contender, which ends with the block."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        argument = msgspec.json.encode(contender).decode()
        threads = {name: str(contender.threads) for name in _THREADS}
        self._child: Child[Answer] = Child(f"{__package__}.worker", argument, Answer, threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def prepare(self, case: Case) -> Prepared | Problem:
        """Have it compute ``case`` for the first time."""
        answer = self._ask(Prepare(case))
        assert isinstance(answer, Prepared | Problem)
        return answer

    def again(self, runs: int, *, warm_up: bool) -> Ran | Problem:
        """Have it compute the same again, ``runs`` times."""
        answer = self._ask(Again(runs, warm_up))
        assert isinstance(answer, Ran | Problem)
        return answer

    def _ask(self, request: Request) -> Answer:
        try:
            self._child.send(request)
            return self._child.receive()
        except ChildDiedError as death:
            return Problem(f"its process {death}")
