"""Items that wait for their batch: one lane for each key. It has no threads and no clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from fgclip_rt.batching import Batch, Item, Rule

_T = TypeVar("_T")


class Waiting(msgspec.Struct, Generic[_T], frozen=True):
    """An item in a lane, and since when it waits there, in seconds of any clock."""

    item: Item[_T]
    since: float


class Lanes(Generic[_T]):
    """Batches of items of one key. A batch is due when it is full, or its oldest item has waited long enough.

    If several are due, the one whose oldest item came first is next, so that no key starves another.
    """

    def __init__(self, full: Rule, max_wait: float) -> None:
        """Make empty lanes.

        Args:
            full: closes a batch, as in :mod:`fgclip_rt.batching`.
            max_wait: seconds that an item waits for others at most, while the device is idle.
        """
        self._full = full
        self._max_wait = max_wait
        self._lanes: dict[Hashable, deque[Waiting[_T]]] = {}

    def __len__(self) -> int:
        """Number of items that wait."""
        return sum(map(len, self._lanes.values()))

    def add(self, waiting: Waiting[_T]) -> None:
        """Put an item at the end of its lane."""
        self._lanes.setdefault(waiting.item.key, deque()).append(waiting)

    def next(self, now: float, *, more_to_come: bool) -> list[Waiting[_T]] | None:
        """Take the batch that is due; None if there is none.

        Args:
            now: the time.
            more_to_come: whether other items are on their way. If none are, nothing is worth waiting for, and every
                batch is due.
        """
        due = [
            lane
            for lane in self._lanes.values()
            if not more_to_come or lane[0].since + self._max_wait <= now or self._first_batch(lane)[1]
        ]
        if not due:
            return None
        lane = min(due, key=lambda lane: lane[0].since)
        taken = self._first_batch(lane)[0]
        for _ in taken:
            lane.popleft()
        if not lane:
            del self._lanes[taken[0].item.key]
        return taken

    def due_in(self, now: float) -> float | None:
        """Seconds until the oldest item has waited long enough; None if none waits."""
        oldest = min((lane[0].since for lane in self._lanes.values()), default=None)
        return None if oldest is None else max(0.0, oldest + self._max_wait - now)

    def drop(self, unwanted: Callable[[Waiting[_T]], bool]) -> list[Waiting[_T]]:
        """Take out the items that nobody waits for any more."""
        dropped: list[Waiting[_T]] = []
        for key, lane in list(self._lanes.items()):
            kept: deque[Waiting[_T]] = deque()
            for waiting in lane:
                (dropped if unwanted(waiting) else kept).append(waiting)
            if kept:
                self._lanes[key] = kept
            else:
                del self._lanes[key]
        return dropped

    def _first_batch(self, lane: deque[Waiting[_T]]) -> tuple[list[Waiting[_T]], bool]:
        """The items at the head of a lane that run together, and whether they are as many as may."""
        batch: Batch[_T] = Batch(lane[0].item.key)
        for number, waiting in enumerate(lane, 1):
            batch.add(waiting.item)
            if self._full(batch):
                return list(islice(lane, number)), True
        return list(lane), False
