"""A bound on the pixels that are decoded at the same time."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PixelBudget:
    """Lets images be decoded side by side while they have at most ``most`` pixels together; a larger one is alone.

    Images take their share in the order in which they ask for it, so that small ones cannot keep a large one waiting.
    """

    def __init__(self, most: int) -> None:
        """Make a budget of ``most`` pixels. A forked child gets all of it back."""
        self.most = most
        self._reset()
        if hasattr(os, "register_at_fork"):  # not on Windows
            # The threads that hold shares in the parent are not in the child, and would never give them back.
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.held = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes a number of pixels, which are given back at the end.

        It waits until they are free. A share is taken once: whoever waited for more while holding some could wait for
        another who does the same, so later calls do nothing.
        """
        taken = 0

        def take(pixels: int) -> None:
            nonlocal taken
            if not taken:
                taken = self._take(min(pixels, self.most))

        try:
            yield take
        finally:
            with self._changed:
                self.held -= taken
                self._changed.notify_all()

    def _take(self, pixels: int) -> int:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self.held + pixels <= self.most)
                self.held += pixels
            finally:  # an interrupted wait must not block those behind it
                self._waiting.remove(ticket)
                self._changed.notify_all()
        return pixels
