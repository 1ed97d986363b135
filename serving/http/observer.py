"""Reports of a batcher, handed to all who want them."""

from __future__ import annotations

from typing import Protocol

from ..batcher import BatchRun
from ..items import Item


class Listener(Protocol):
    """Is told of batches and of items that were prepared, in the threads that did so."""

    def on_batch(self, run: BatchRun) -> None:
        """A batch ran."""

    def on_prepared(self, item: Item, seconds: float) -> None:
        """An item was prepared, which took some seconds."""


class Observer:
    """Hands on what it is told."""

    def __init__(self, *listeners: Listener) -> None:
        """Tell these, in their order."""
        self._listeners = listeners

    def on_batch(self, run: BatchRun) -> None:
        """A batch ran."""
        for listener in self._listeners:
            listener.on_batch(run)

    def on_prepared(self, item: Item, seconds: float) -> None:
        """An item was prepared, which took some seconds."""
        for listener in self._listeners:
            listener.on_prepared(item, seconds)
