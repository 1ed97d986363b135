"""Items to batches: bookkeeping alone, with no model in sight.

Items of one key may run together. A rule decides when a batch is closed, so that a call, a server and a job over a
million files can share the bookkeeping and differ in when they run what they have. An item that failed before it could
join a batch travels with its index.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from .errors import FgclipError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Item(Generic[_T]):
    """One thing to run.

    Attributes:
        index: its place in the input.
        key: items of other keys do not run with it; a bucket of patches, or a length of texts.
        cost: its share of the work: patches or tokens.
        value: the thing.
    """

    index: int
    key: Hashable
    cost: int
    value: _T


@dataclass(frozen=True)
class Failure:
    """An item that cannot run.

    Attributes:
        index: its place in the input.
        error: why.
    """

    index: int
    error: FgclipError


@dataclass
class Batch(Generic[_T]):
    """Items of one key, in the order in which they came."""

    key: Hashable
    items: list[Item[_T]] = field(default_factory=list)
    cost: int = 0

    def add(self, item: Item[_T]) -> None:
        """Take one more."""
        self.items.append(item)
        self.cost += item.cost

    @property
    def values(self) -> list[_T]:
        """The things themselves."""
        return [item.value for item in self.items]


#: Whether a batch is to run as it is.
Rule: TypeAlias = Callable[[Batch[Any]], bool]


def full(size: Callable[[Any], int]) -> Rule:
    """Closes a batch when it has as many items as ``size`` says for its key."""
    return lambda batch: len(batch.items) >= size(batch.key)


def budget(most: int) -> Rule:
    """Closes a batch when its items cost ``most`` or more together."""
    return lambda batch: batch.cost >= most


def batches(items: Iterable[Item[_T] | Failure], closed: Rule) -> Iterator[Batch[_T] | Failure]:
    """Batches as the rule closes them, then those that are left, in the order of their first items.

    Items are taken one by one, and no more of them than the next batch needs. A failure is passed on at once.
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
