"""Worker processes on this machine: each does one shard after another, and one that dies costs its shard."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Protocol

import msgspec

from .. import errors
from ..children import Child, ChildDiedError
from ..errors import FgclipError, ShardError
from .job import Marker
from .task import Setup, Task
from .worker import Answer, Do, Done, Start, Step

#: Times that a shard is begun if its workers die.
TRIES = 3


class Failed(msgspec.Struct, frozen=True):
    """A shard that is not done: its name, and the error."""

    shard: str
    error: FgclipError


class Report(Protocol):
    """Is told how the work goes, from several threads."""

    def step(self, rows: int, errors: int) -> None:
        """Images were embedded, and items refused."""

    def ended(self, outcome: Marker | Failed) -> None:
        """A shard is done, or cannot be."""


def run_processes(setup: Setup, tasks: Sequence[Task], processes: int, report: Report) -> None:
    """Do tasks in worker processes. None of them is left when this returns or raises.

    Args:
        setup: makes each worker.
        tasks: the shards to do.
        processes: number of workers.
        report: is told of progress, and of each shard that ends.

    Raises:
        FgclipError: no shard can be done: the model cannot be loaded, or the output cannot be written.
    """
    queue: SimpleQueue[tuple[Task, int]] = SimpleQueue()
    for task in tasks:
        queue.put((task, 1))
    count = min(processes, len(tasks))
    workers = [_Process(setup, number, count) for number in range(count)]

    def work(worker: _Process) -> None:
        while True:
            try:
                task, attempt = queue.get_nowait()
            except Empty:
                return
            try:
                report.ended(worker.do(task, report))
            except ShardError as error:
                report.ended(Failed(task.shard.name, error))
            except ChildDiedError as death:
                if death.stopped:
                    return
                if attempt < TRIES:
                    queue.put((task, attempt + 1))
                else:
                    given_up = ShardError(
                        f"the worker of {task.shard.name} {death} {TRIES} times; look for an image that crashes its "
                        "decoder, or start fewer --processes.",
                        code="worker_died",
                    )
                    report.ended(Failed(task.shard.name, given_up))

    with ThreadPoolExecutor(max(1, count)) as threads:
        try:
            done, _ = wait([threads.submit(work, worker) for worker in workers], return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            for worker in workers:
                worker.stop()


class _Process:
    """A place for a worker process; if it dies, the next task begins another."""

    def __init__(self, setup: Setup, number: int, count: int) -> None:
        self._start = Start(setup, number, count)
        self._child: Child[Answer] | None = None
        self._stopped = False

    def do(self, task: Task, report: Report) -> Marker:
        """Have the process do a shard.

        Raises:
            ChildDiedError: it died.
            FgclipError: it could not do the shard.
        """
        if self._child is None:
            self._child = Child(f"{__package__}.worker", "", Answer)
            self._child.send(self._start)
        child = self._child
        try:
            child.send(Do(task))
            while isinstance(answer := child.receive(), Step):
                report.step(answer.rows, answer.errors)
        except ChildDiedError as death:
            if not death.stopped:
                child.stop()
                self._child = None
            raise
        if isinstance(answer, Done):
            return answer.marker
        kind: type[FgclipError] = getattr(errors, answer.kind)
        raise kind(answer.message, code=answer.code)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._child is not None:
            self._child.stop()
