"""Batching: what runs together, when a batch is closed, and that failures keep their places."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.batching import Batch, Failure, Item, batches, budget, full
from fgclip_rt.errors import ImageError

COSTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=60)


def items(costs: list[tuple[int, int]]) -> list[Item[str]]:
    return [Item(index, key, cost, f"value {index}") for index, (key, cost) in enumerate(costs)]


@given(COSTS, st.integers(1, 5))
def test_every_item_is_in_one_batch_of_its_key_and_in_its_order(costs: list[tuple[int, int]], size: int) -> None:
    found = [batch for batch in batches(items(costs), full(lambda _: size)) if isinstance(batch, Batch)]
    assert sorted(item.index for batch in found for item in batch.items) == list(range(len(costs)))
    for batch in found:
        assert {item.key for item in batch.items} == {batch.key}
        assert [item.index for item in batch.items] == sorted(item.index for item in batch.items)
        assert batch.cost == sum(item.cost for item in batch.items)
        assert len(batch.items) <= size
        assert batch.values == [item.value for item in batch.items]
    # Only the last batch of each key may have room left.
    for key in {batch.key for batch in found}:
        *closed, _ = [batch for batch in found if batch.key == key]
        assert all(len(batch.items) == size for batch in closed)


@given(COSTS, st.integers(1, 120))
def test_a_budget_closes_a_batch_with_the_item_that_reaches_it(costs: list[tuple[int, int]], most: int) -> None:
    found = [batch for batch in batches(items(costs), budget(most)) if isinstance(batch, Batch)]
    assert sum(len(batch.items) for batch in found) == len(costs)
    for batch in found:
        assert batch.cost - batch.items[-1].cost < most
    for key in {batch.key for batch in found}:
        *closed, _ = [batch for batch in found if batch.key == key]
        assert all(batch.cost >= most for batch in closed)


def test_the_size_of_a_batch_may_depend_on_its_key() -> None:
    found = list(batches(items([(1, 1), (2, 1), (2, 1), (1, 1), (1, 1)]), full(lambda key: key)))
    assert [[item.index for item in batch.items] for batch in found if isinstance(batch, Batch)] == [
        [0],
        [1, 2],
        [3],
        [4],
    ]


def test_items_are_taken_only_as_the_next_batch_needs_them() -> None:
    taken = []

    def counted() -> Iterator[Item[str]]:
        for item in items([(1, 1)] * 10):
            taken.append(item.index)
            yield item

    next(batches(counted(), full(lambda _: 3)))
    assert taken == [0, 1, 2]


def test_a_failure_is_passed_on_at_once_with_its_index() -> None:
    failure = Failure(1, ImageError("b.jpg is damaged; restore it."))
    first, second, third = items([(1, 1), (1, 1), (1, 1)])
    found = list(batches([first, failure, third], full(lambda _: 2)))
    assert found[0] is failure
    assert isinstance(found[1], Batch)
    assert [item.index for item in found[1].items] == [first.index, third.index]
    assert second not in found[1].items


@pytest.mark.parametrize("rule", [full(lambda _: 4), budget(4)])
def test_nothing_gives_no_batch(rule: object) -> None:
    assert list(batches([], rule)) == []  # type: ignore[arg-type]
