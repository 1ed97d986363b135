"""Lanes: which batch is due, and when."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from fgclip_rt.batching import Item, full
from fgclip_rt.serving.lanes import Lanes, Waiting


def lanes(size: int = 2, max_wait: float = 1.0) -> Lanes[str]:
    return Lanes(full(lambda _: size), max_wait)


def waiting(key: str, value: str, since: float) -> Waiting[str]:
    return Waiting(Item(0, key, 1, value), since)


def values(taken: list[Waiting[str]] | None) -> list[str] | None:
    return None if taken is None else [each.item.value for each in taken]


def test_a_batch_waits_for_others_that_are_on_their_way_and_no_longer_than_it_may() -> None:
    some = lanes()
    some.add(waiting("a", "first", 10.0))
    assert some.next(10.5, more_to_come=True) is None
    assert some.due_in(10.25) == 0.75
    assert values(some.next(11.0, more_to_come=True)) == ["first"]
    assert len(some) == 0
    assert some.due_in(11.0) is None


def test_nothing_is_waited_for_if_nothing_is_on_its_way() -> None:
    some = lanes()
    some.add(waiting("a", "first", 10.0))
    assert values(some.next(10.0, more_to_come=False)) == ["first"]


def test_a_full_batch_is_due_at_once_and_takes_no_more_than_its_size() -> None:
    some = lanes(size=2)
    for value in ("first", "second", "third"):
        some.add(waiting("a", value, 10.0))
    assert values(some.next(10.0, more_to_come=True)) == ["first", "second"]
    assert some.next(10.0, more_to_come=True) is None


def test_the_lane_whose_head_came_first_is_next() -> None:
    some = lanes(size=2)
    some.add(waiting("b", "older", 1.0))
    for value in ("x", "y"):
        some.add(waiting("a", value, 2.0))
    assert values(some.next(5.0, more_to_come=True)) == ["older"]
    assert values(some.next(5.0, more_to_come=True)) == ["x", "y"]


def test_dropped_items_are_gone_and_the_rest_keep_their_order() -> None:
    some = lanes(size=9)
    for value in ("a", "b", "c"):
        some.add(waiting("k", value, 1.0))
    some.add(waiting("other", "b", 1.0))
    assert values(some.drop(lambda each: each.item.value == "b")) == ["b", "b"]
    assert values(some.next(1.0, more_to_come=False)) == ["a", "c"]
    assert some.next(1.0, more_to_come=False) is None


@hypothesis.given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10)), max_size=40), st.integers(1, 5), st.floats(0, 3)
)
def test_each_item_comes_once_in_order_and_with_its_own_kind(
    arrivals: list[tuple[str, float]], size: int, max_wait: float
) -> None:
    some = lanes(size, max_wait)
    for number, (key, since) in enumerate(sorted(arrivals, key=lambda each: each[1])):
        some.add(waiting(key, f"{key}{number}", since))
    seen = []
    while (taken := some.next(100.0, more_to_come=True)) is not None:
        assert 1 <= len(taken) <= size
        assert len({each.item.key for each in taken}) == 1
        seen += values(taken) or []
    assert sorted(seen) == sorted(
        f"{key}{number}" for number, (key, _) in enumerate(sorted(arrivals, key=lambda e: e[1]))
    )
    for key in "abc":
        of_key = [int(value[1:]) for value in seen if value[0] == key]
        assert of_key == sorted(of_key)
