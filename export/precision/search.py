"""Smallest sets by trial: the shortest beginning of a ranking that passes, and then without members that it can spare.

A trial runs a model for seconds or minutes, so their number grows with the logarithm of the set and not with the set.
Both searches expect that a larger set passes if a smaller one does. If that is not so, the result still passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")

#: Tries a set, given in the order of the ranking.
Passes: TypeAlias = Callable[[Sequence[_T]], bool]


def smallest_set(ranked: Sequence[_T], passes: Passes[_T]) -> Sequence[_T] | None:
    """A small set of the costliest items that passes, found in about three trials for each doubling of its size.

    Args:
        ranked: items that may be taken, the costliest first. The empty set is taken to fail.
        passes: tries a set.

    Returns:
        Items in their order; None if even all of them fail, or there are none.
    """
    count = _shortest_beginning(len(ranked), lambda count: passes(ranked[:count]))
    return None if count is None else _without_spare(ranked[:count], passes)


def _shortest_beginning(most: int, passes: Callable[[int], bool]) -> int | None:
    """The smallest number from one to ``most`` that passes: by doubling, then by bisection."""
    fails, count = 0, min(1, most)
    while count > fails and not passes(count):
        fails, count = count, min(2 * count, most)
    if count == fails:
        return None
    while count - fails > 1:
        middle = (fails + count) // 2
        fails, count = (fails, middle) if passes(middle) else (middle, count)
    return count


def _without_spare(chosen: Sequence[_T], passes: Passes[_T]) -> Sequence[_T]:
    """A set that passes, without items that it can spare: halves of those that are left, the cheapest first."""
    candidates = chosen[:-1]  # without the last, the beginning was too short
    while candidates:
        middle = len(candidates) // 2
        half = candidates[middle:]
        rest = [item for item in chosen if item not in half]
        if passes(rest):
            chosen, candidates = rest, candidates[:middle]
        else:
            candidates = half[(len(half) + 1) // 2 :]
    return chosen
