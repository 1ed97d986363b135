"""Worker processes: tasks in, plans on disk out, several side by side, and none of them left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue

import msgspec

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
    queue: SimpleQueue[Task] = SimpleQueue()
    for task in tasks:
        queue.put(task)
    workers = [_Worker(library) for _ in range(min(jobs, len(tasks)))]

    def work(worker: _Worker) -> None:
        while True:
            try:
                task = queue.get_nowait()
            except Empty:
                return
            share = each_percent(progress)
            finished(task, worker.build(task, share))
            share(100)

    with ThreadPoolExecutor(max(1, len(workers))) as threads:
        try:
            futures = [threads.submit(work, worker) for worker in workers]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            # A killed process ends the thread that waits for its answer.
            for worker in workers:
                worker.stop()


class _Worker:
    """One process that builds."""

    def __init__(self, library: str) -> None:
        self._stopped = threading.Event()
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            # -P: a folder beside the caller that is called like one of our modules must not matter.
            [sys.executable, "-P", "-m", f"{__package__}.worker", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            # Ctrl-C in a terminal reaches every process of its session; this one is stopped by us.
            start_new_session=True,
        )

    def build(self, task: Task, share: Callable[[int], None]) -> Done:
        """Have the process write a plan."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(task) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        for line in self._process.stdout:
            answer = msgspec.json.decode(line, type=Answer)
            match answer:
                case Share(percent):
                    share(percent)
                case Done():
                    return answer
                case Failed(message):
                    raise EngineError(message)
                case Unwritable(reason):
                    raise OSError(None, reason)
        raise self._death()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._stopped.set()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                # What the dead process has not read is of no use to anybody.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._noise.close()

    def _death(self) -> EngineError:
        if self._stopped.is_set():
            return EngineError("the build was stopped.")
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return EngineError(
                "the process that built was killed, as systems do when memory runs out; build with a smaller --batch "
                "or fewer --jobs."
            )
        self._noise.seek(0)
        last = self._noise.read().decode(errors="replace").strip().splitlines()[-1:]
        return EngineError(
            f"the process that built ended with status {status} ({''.join(last) or 'and said nothing'}); try another "
            "version of the library, or report this."
        )
