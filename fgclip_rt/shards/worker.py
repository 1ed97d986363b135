"""A process that does shards: a :class:`Start`, then one :class:`Do` after another."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from ..children import serve
from ..machine import keep_to_share
from .task import Done, Refused, Setup, Task, Worker


class Start(msgspec.Struct, frozen=True, tag=True):
    """Makes a worker, which is the ``number``-th of ``count`` on this machine."""

    setup: Setup
    number: int
    count: int


class Do(msgspec.Struct, frozen=True, tag=True):
    """Has it do a task."""

    task: Task


class Step(msgspec.Struct, frozen=True, tag=True):
    """Images that were embedded, and dead letters, since the last one."""

    rows: int
    errors: int


Request: TypeAlias = Start | Do
Answer: TypeAlias = Step | Done | Refused


def main() -> None:
    """Do tasks until there are no more."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    worker: Worker | None = None

    def handle(request: Request, answer: Callable[[Answer], None]) -> None:
        nonlocal worker
        if isinstance(request, Start):
            keep_to_share(request.number, request.count)
            worker = Worker(request.setup)
        else:
            assert worker is not None
            answer(worker.do(request.task, lambda rows, errors: answer(Step(rows, errors))))

    serve(Request, handle)


def _end_with_parent(parent: int) -> None:
    """End this process once its parent is gone: nobody would read what it says, and a new run does its shard anew."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
