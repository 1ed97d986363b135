"""Items to batches, without a model.

Items of one key may run together, and a rule decides when a batch is closed. A call, a server and a job over a million
files share this code and differ only in their rule. An item that failed before it could join a batch is passed on with
its index.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from .errors import FgclipError

_T = TypeVar("_T")


class Item(msgspec.Struct, Generic[_T], frozen=True):
    """One input to run.

    Attributes:
        index: its position in the call.
        key: only items of one key run together; a bucket of patches or a walk type, for example.
        cost: its number of patches or tokens.
        value: the input itself.
    """

    index: int
    key: Hashable
    cost: int
    value: _T


class Failure(msgspec.Struct, frozen=True):
    """An item that cannot run.

    Attributes:
        index: its position in the call.
        error: the reason.
    """

    index: int
    error: FgclipError


class Batch(msgspec.Struct, Generic[_T]):
    """Items of one key, in the order of arrival."""

    key: Hashable
    items: list[Item[_T]] = []
    cost: int = 0

    def add(self, item: Item[_T]) -> None:
        """Append an item."""
        self.items.append(item)
        self.cost += item.cost

    @property
    def values(self) -> list[_T]:
        """The values of the items."""
        return [item.value for item in self.items]


#: Whether a batch is closed, that is, to be run as it is.
Rule: TypeAlias = Callable[[Batch[Any]], bool]


def full(size: Callable[[Any], int]) -> Rule:
    """A rule that closes a batch at ``size(key)`` items."""
    return lambda batch: len(batch.items) >= size(batch.key)


def budget(most: int) -> Rule:
    """A rule that closes a batch when the costs of its items reach ``most`` together."""
    return lambda batch: batch.cost >= most


def batches(items: Iterable[Item[_T] | Failure], closed: Rule) -> Iterator[Batch[_T] | Failure]:
    """Yield batches as the rule closes them, then the unfinished ones in the order of their first items.

    Items are taken one by one, no more than the next batch needs. A failure is passed on at once.
    """
    waiting: dict[Hashable, Batch[_T]] = {}
    for item in items:
        if isinstance(item, Failure):
            yield item
            continue
        batch = waiting.setdefault(item.key, Batch(item.key))
        batch.add(item)
        if closed(batch):
            yield waiting.pop(item.key)
    yield from waiting.values()
