"""Child processes that answer requests: JSON objects, one a line, over standard input and output.

A library that prints, holds memory, starts threads or crashes does so in a process of its own. :class:`Child` is the
parent's side, and :func:`serve` is the child's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import msgspec

Answer = TypeVar("Answer")


class Stoppable(Protocol):
    """A worker in a process of its own."""

    def stop(self) -> None:
        """End the process, whatever it is doing."""


_Worker = TypeVar("_Worker", bound=Stoppable)
_Task = TypeVar("_Task")


class ChildDiedError(Exception):
    """A child process has ended. The message continues a sentence that names the child: ``ended with status 1 (…)``.

    Attributes:
        stopped: whether its parent stopped it.
        killed: whether the system killed it, as when memory runs out.
    """

    def __init__(self, message: str, *, stopped: bool = False, killed: bool = False) -> None:
        super().__init__(message)
        self.stopped = stopped
        self.killed = killed


class Child(Generic[Answer]):
    """A process that runs one of our modules. :meth:`stop` ends it, from any thread."""

    def __init__(self, module: str, argument: str, answers: Any, environment: Mapping[str, str] | None = None) -> None:
        """Start the process.

        Args:
            module: name of the module that calls :func:`serve`.
            argument: the argument of its command line.
            answers: type of its answers, a struct or a union of tagged structs.
            environment: variables beyond this process's own; None adds none.
        """
        self._decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(answers)
        self._stopped = threading.Event()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            # -P, because a folder in the working directory may have the name of one of our modules.
            [sys.executable, "-P", "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environment or {})},
            # Ctrl-C in a terminal reaches every process of its session; we stop this one ourselves.
            start_new_session=True,
        )

    def send(self, request: object) -> None:
        """Send a request.

        Raises:
            ChildDiedError: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def receive(self) -> Answer:
        """Wait for the next answer.

        Raises:
            ChildDiedError: the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        return self._decoder.decode(line)

    def stop(self) -> None:
        """End the process at once, whatever it is doing."""
        self._stopped.set()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # Nobody needs the requests that the dead process has not read.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._errors.close()

    def _death(self) -> ChildDiedError:
        if self._stopped.is_set():
            return ChildDiedError("was stopped", stopped=True)
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return ChildDiedError("was killed, as systems do when memory runs out", killed=True)
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return ChildDiedError(f"ended with status {status} ({''.join(last) or 'and said nothing'})")


def share_out(tasks: Sequence[_Task], workers: Sequence[_Worker], do: Callable[[_Worker, _Task], None]) -> None:
    """Have every worker do one task after another until none is left.

    The first exception ends it, and so does one in this thread. All workers are stopped when this returns or raises.

    Args:
        tasks: what to do.
        workers: the workers, each of which gets a thread.
        do: has a worker do a task.
    """
    queue: SimpleQueue[_Task] = SimpleQueue()
    for task in tasks:
        queue.put(task)

    def work(worker: _Worker) -> None:
        while True:
            try:
                task = queue.get_nowait()
            except Empty:
                return
            do(worker, task)

    with ThreadPoolExecutor(max(1, len(workers))) as threads:
        try:
            done, _ = wait([threads.submit(work, worker) for worker in workers], return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            # A killed process ends the thread that waits for its answer.
            for worker in workers:
                worker.stop()


def serve(requests: Any, handle: Callable[[Any, Callable[[object], None]], None]) -> None:
    """Handle requests in the child, until the input ends.

    Args:
        requests: type of a request, a struct or a union of tagged structs.
        handle: is called with a request, and with a function that sends an answer.
    """
    # Libraries write to standard output as well. From here on, their lines go to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    decoder = msgspec.json.Decoder(requests)

    def answer(value: object) -> None:
        answers.write(msgspec.json.encode(value) + b"\n")
        answers.flush()

    for line in sys.stdin.buffer:
        handle(decoder.decode(line), answer)
