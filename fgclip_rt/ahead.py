"""Work that threads do ahead of the one that needs its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from .machine import usable_cores

_T = TypeVar("_T")
_R = TypeVar("_R")

#: More threads than this decode faster than any model takes images, and hold more of them in memory.
_MOST_THREADS = 8


def map_ahead(function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """``function`` of each item, in order, computed by threads while the caller does something else.

    Items are taken in the caller's thread, and no more of them than the threads can begin; a result that is an error is
    raised in its place. What is left undone when the caller stops is dropped.
    """
    threads = _threads()
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
def _threads() -> int:
    """How many; asked once, for the answer is in many small files and a service embeds images one by one."""
    return min(_MOST_THREADS, usable_cores())
