"""Objects in a forked child: its parent's threads are not in it, so locks may be taken for ever and pools are dead."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

#: Held while a library opens a graph. A fork waits for it, or its child would find the library's own locks taken.
opening = threading.RLock()

_renewals: set[weakref.WeakMethod[Any]] = set()


def call_in_children(renew: Callable[[], None]) -> None:
    """Call a method in every forked child, before anything else runs there, for as long as its object lives."""
    _renewals.add(weakref.WeakMethod(renew, _renewals.discard))


def leave_alone(each: object) -> None:
    """Keep an object of the parent, and all that it refers to, until the child's memory is given back as a whole.

    Its destructor would wait for threads that are not there. A list would not keep it, because the interpreter clears
    lists as it ends.
    """
    import ctypes  # 10 ms, which only a forked child takes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _renew_all() -> None:
    for reference in list(_renewals):
        if (renew := reference()) is not None:
            renew()
    opening.release()


if sys.platform != "win32":
    from os import register_at_fork

    register_at_fork(before=opening.acquire, after_in_parent=opening.release, after_in_child=_renew_all)
