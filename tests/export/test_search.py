"""The search for the smallest set of layers that must go back to a higher type."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.export.precision.search import smallest_set

Counted = tuple[Callable[[Sequence[int]], bool], list[tuple[int, ...]]]


def counted(passes: Callable[[set[int]], bool]) -> Counted:
    """A trial, and the sets that it is given."""
    tried: list[tuple[int, ...]] = []

    def trial(items: Sequence[int]) -> bool:
        tried.append(tuple(items))
        return passes(set(items))

    return trial, tried


def logarithm(count: int) -> int:
    """The number of halvings that bring ``count`` to one."""
    return max(count, 1).bit_length() - 1


@given(st.integers(0, 300), st.data())
def test_the_shortest_beginning_that_passes_is_found_in_few_trials(count: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, count + 1))
    trial, tried = counted(lambda items: items.issuperset(range(needed)))
    found = smallest_set(range(count), trial)
    assert (None if found is None else list(found)) == (None if needed > count else list(range(needed)))
    assert len(tried) <= 3 * (logarithm(max(count, 1)) + 2)
    assert len(set(tried)) == len(tried)


@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 100))
def test_what_is_found_passes_and_holds_no_more_than_the_shortest_beginning(needed: set[int], count: int) -> None:
    trial, tried = counted(lambda items: items >= needed)
    found = smallest_set(range(count), trial)
    if max(needed) >= count:
        assert found is None
        return
    assert found is not None
    assert needed <= set(found) <= set(range(max(needed) + 1))
    assert list(found) == sorted(found)
    assert len(tried) <= 3 * (logarithm(count) + 2)


@given(st.integers(0, 40), st.randoms(use_true_random=False))
def test_a_trial_without_order_still_ends_with_a_set_that_passed(count: int, random: object) -> None:
    trial, tried = counted(lambda _: random.random() < 0.5)  # type: ignore[attr-defined]
    answers: dict[tuple[int, ...], bool] = {}

    def remembered(items: Sequence[int]) -> bool:
        answers[tuple(items)] = trial(items)
        return answers[tuple(items)]

    found = smallest_set(range(count), remembered)
    assert found is None or answers[tuple(found)]
    assert len(tried) <= 3 * (logarithm(count) + 2)


def test_an_item_that_costs_much_and_helps_nothing_is_spared() -> None:
    trial, _ = counted(lambda items: items >= {0, 5})
    found = smallest_set(range(16), trial)
    assert found is not None
    assert list(found) == [0, 5]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_nothing_is_found_if_all_items_fail(count: int) -> None:
    trial, tried = counted(lambda _: False)
    assert smallest_set(range(count), trial) is None
    assert (tuple(range(count)) in tried) == (count > 0)
