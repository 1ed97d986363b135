"""Child processes that answer: JSON objects, one a line, over standard input and output.

A library that prints as it likes, holds memory, starts threads or crashes does so in a process of its own.
:class:`Child` is its parent's side, and :func:`serve` its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

Answer = TypeVar("Answer")


class ChildDiedError(Exception):
    """A child is gone. The message goes on after a name for it: ``ended with status 1 (…)``.

    Attributes:
        stopped: whether its parent stopped it.
        killed: whether the system killed it, as when memory runs out.
    """

    def __init__(self, message: str, *, stopped: bool = False, killed: bool = False) -> None:
        super().__init__(message)
        self.stopped = stopped
        self.killed = killed


class Child(Generic[Answer]):
    """A process that runs a module of ours. :meth:`stop` ends it, from any thread."""

    def __init__(self, module: str, argument: str, answers: Any, environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            module: name of the module that calls :func:`serve`.
            argument: for its command line.
            answers: type of its answers, a struct or a union of tagged structs.
            environment: variables beyond this process's own.
        """
        self._decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(answers)
        self._stopped = threading.Event()
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            # -P: a folder beside the caller that is called like one of our modules must not matter.
            [sys.executable, "-P", "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env={**os.environ, **(environment or {})},
            # Ctrl-C in a terminal reaches every process of its session; this one is stopped by us.
            start_new_session=True,
        )

    def send(self, request: object) -> None:
        """Give it a request.

        Raises:
            ChildDiedError: it is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def receive(self) -> Answer:
        """Wait for its next answer.

        Raises:
            ChildDiedError: it is gone.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        return self._decoder.decode(line)

    def stop(self) -> None:
        """End it, whatever it is doing."""
        self._stopped.set()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # Nobody misses what the dead process has not read.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._noise.close()

    def _death(self) -> ChildDiedError:
        if self._stopped.is_set():
            return ChildDiedError("was stopped", stopped=True)
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return ChildDiedError("was killed, as systems do when memory runs out", killed=True)
        self._noise.seek(0)
        last = self._noise.read().decode(errors="replace").strip().splitlines()[-1:]
        return ChildDiedError(f"ended with status {status} ({''.join(last) or 'and said nothing'})")


def serve(requests: Any, handle: Callable[[Any, Callable[[object], None]], None]) -> None:
    """Be the child: handle requests until the input ends.

    Args:
        requests: type of a request, a struct or a union of tagged structs.
        handle: is called with a request, and with a function that sends an answer.
    """
    # Libraries write to standard output as well; from here on their lines go to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    decoder = msgspec.json.Decoder(requests)

    def answer(value: object) -> None:
        answers.write(msgspec.json.encode(value) + b"\n")
        answers.flush()

    for line in sys.stdin.buffer:
        handle(decoder.decode(line), answer)
