"""Worker processes on this machine: each does one shard after another, and one that dies costs its shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..children import Child, ChildDiedError, share_out
from ..errors import ShardError
from .task import Done, Refused, Report, Setup, Task, outcome
from .worker import Answer, Do, Start, Step

#: Times that a shard is begun if its worker dies.
_TRIES = 3


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
    count = min(processes, len(tasks))
    workers = [WorkerProcess(setup, number, count) for number in range(count)]
    share_out(tasks, workers, lambda worker, task: report.ended(outcome(task, worker.do(task, report.step))))


class WorkerProcess:
    """A worker in a process of its own; if that dies, another takes its place."""

    def __init__(self, setup: Setup, number: int = 0, count: int = 1) -> None:
        """Prepare for a worker, the ``number``-th of ``count`` that share the cores."""
        self._start = Start(setup, number, count)
        self._child: Child[Answer] | None = None
        self._stopped = False

    def do(self, task: Task, step: Callable[[int, int], None] = lambda *_: None) -> Done | Refused:
        """Do a shard, up to three times if the process dies; ``step`` is as for :func:`fgclip_rt.shards.embed_shard`.

        Raises:
            ChildDiedError: it was stopped.
        """
        death: ChildDiedError | None = None
        for _ in range(_TRIES):
            if self._stopped:
                raise ChildDiedError("was stopped", stopped=True)
            new = self._child is None
            child = self._child = self._child or Child(f"{__package__}.worker", "", Answer)
            try:
                if new:
                    child.send(self._start)
                child.send(Do(task))
                while isinstance(answer := child.receive(), Step):
                    step(answer.rows, answer.errors)
                return answer
            except ChildDiedError as error:
                if error.stopped:
                    raise
                child.stop()
                self._child, death = None, error
        given_up = ShardError(
            f"the worker of {task.shard.name} {death} {_TRIES} times; look for an image that crashes its decoder, or "
            "start fewer --processes.",
            code="worker_died",
        )
        return Refused.of(given_up)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._stopped = True
        if self._child is not None:
            self._child.stop()
