"""Work that threads do ahead of its consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
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


@cache
def preparing_threads() -> int:
    """Number of threads that decode and resize images.

    Cached, because finding it reads many small files and a service embeds images one by one.
    """
    return min(_MOST_THREADS, usable_cores())
