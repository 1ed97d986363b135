"""Work that threads do ahead of its consumer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from .machine import usable_cores

_T = TypeVar("_T")
_R = TypeVar("_R")

#: More threads would decode faster than any model takes images, and would hold more images in memory.
_MOST_THREADS = 8


def map_ahead(function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Yield ``function`` of each item, in order, computed by threads while the caller works.

    Items are taken in the caller's thread, no more than the threads can begin and one beyond. An error of ``function``
    is raised when its result is due. If the caller stops early, calls that have not begun are cancelled.
    """
    threads = preparing_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="fgclip-rt") as pool:
        begun: deque[Future[_R]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def read_ahead(items: Generator[_T], cost: Callable[[_T], int], most: int) -> Iterator[_T]:
    """Yield items in order, taken by one thread while the caller works, as long as those that wait cost less than most.

    So what waits costs ``most`` and an item more at most. An error of ``items`` is raised after the items before it. If
    the caller stops early, ``items`` is closed.
    """
    waiting: deque[tuple[_T, int]] = deque()
    changed = threading.Condition()
    held, stopped = 0, False
    ended: list[BaseException | None] = []

    def take() -> None:
        nonlocal held
        error: BaseException | None = None
        try:
            for item in items:
                price = cost(item)
                with changed:
                    while held >= most and not stopped:
                        changed.wait()
                    if stopped:
                        items.close()
                        break
                    waiting.append((item, price))
                    held += price
                    changed.notify_all()
        except BaseException as raised:
            error = raised
        with changed:
            ended.append(error)
            changed.notify_all()

    thread = threading.Thread(target=take, name="fgclip-rt-read", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                item, price = waiting.popleft()
                held -= price
                changed.notify_all()
            yield item
        if ended[0] is not None:
            raise ended[0]
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join()


@cache
def preparing_threads() -> int:
    """Number of threads that decode and resize images.

    Cached, because finding it reads many small files and a service embeds images one by one.
    """
    return min(_MOST_THREADS, usable_cores())
