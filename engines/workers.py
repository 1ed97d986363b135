"""Worker processes: tasks in, plans on disk out, several side by side, and none of them left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgclip_rt.children import Child, ChildDiedError, share_out
from fgclip_rt.errors import EngineError

from .progress import each_percent
from .task import Answer, Done, Failed, Share, Task, Unwritable


def build_all(
    library: str,
    tasks: Sequence[Task],
    jobs: int,
    finished: Callable[[Task, Done], None],
    progress: Callable[[], None],
) -> None:
    """Build every task, ``jobs`` at a time; the first failure ends it, and so does an exception in this thread.

    Args:
        library: name of the library.
        tasks: what to build.
        jobs: number of processes.
        finished: is called with a task and what came of it, in another thread.
        progress: is called a hundred times for each task, in other threads.

    Raises:
        EngineError: the library refused a task, or its process died.
        OSError: a file cannot be written.
    """

    def build(worker: _Worker, task: Task) -> None:
        share = each_percent(progress)
        finished(task, worker.build(task, share))
        share(100)

    share_out(tasks, [_Worker(library) for _ in range(min(jobs, len(tasks)))], build)


class _Worker:
    """One process that builds."""

    def __init__(self, library: str) -> None:
        self._child: Child[Answer] = Child(f"{__package__}.worker", library, Answer)

    def build(self, task: Task, share: Callable[[int], None]) -> Done:
        """Have the process write a plan."""
        try:
            self._child.send(task)
            while isinstance(answer := self._child.receive(), Share):
                share(answer.percent)
        except ChildDiedError as death:
            raise _failure(death) from None
        match answer:
            case Done():
                return answer
            case Failed(message):
                raise EngineError(message)
            case Unwritable(reason):
                raise OSError(None, reason)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._child.stop()


def _failure(death: ChildDiedError) -> EngineError:
    if death.stopped:
        return EngineError("the build was stopped.")
    remedy = (
        "build with a smaller --batch or fewer --jobs"
        if death.killed
        else "try another version of the library, or report this"
    )
    return EngineError(f"the process that built {death}; {remedy}.")
