"""Contenders in processes of their own, from the side of the one who asks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from typing import Self

import msgspec

from .task import Again, Answer, Case, Contender, Prepare, Prepared, Problem, Ran, Request

#: What the libraries read their number of threads from.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """The process of one contender. It is ended when the block does."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
        self._process = subprocess.Popen(
            # -P: a folder beside the caller that is called like one of our modules must not matter.
            [sys.executable, "-P", "-m", f"{__package__}.worker", msgspec.json.encode(contender).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env=os.environ | {name: str(contender.threads) for name in _THREADS},
            # Ctrl-C in a terminal reaches every process of its session; this one is stopped by us.
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # What the dead process has not read is of no use to anybody.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._noise.close()

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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._death()
        line = self._process.stdout.readline()
        return msgspec.json.decode(line, type=Answer) if line else self._death()

    def _death(self) -> Problem:
        status = self._process.wait()
        if status == -9:
            return Problem("its process was killed, as systems do when memory runs out")
        self._noise.seek(0)
        last = self._noise.read().decode(errors="replace").strip().splitlines()[-1:]
        return Problem(f"its process ended with status {status} ({''.join(last) or 'and said nothing'})")
