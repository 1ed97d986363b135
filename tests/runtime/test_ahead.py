"""Work that threads do ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt import ahead
from fgclip_rt.ahead import map_ahead
from fgclip_rt.recent import Recent


@given(items=st.lists(st.integers()))
def test_results_come_in_order(items: list[int]) -> None:
    assert list(map_ahead(lambda item: item + 1, items)) == [item + 1 for item in items]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_is_taken_than_threads_can_begin(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(ahead, "preparing_threads", lambda: threads)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    for count, result in enumerate(map_ahead(lambda item: item, items())):
        assert result == count
        assert len(taken) <= min(20, count + threads + 1)


def test_it_works_while_the_caller_does_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "preparing_threads", lambda: 2)
    begun = [threading.Event() for _ in range(4)]

    def begin(index: int) -> int:
        begun[index].set()
        return index

    results = map_ahead(begin, range(4))
    assert next(results) == 0
    assert begun[1].wait(10), "nothing begins before it is asked for"
    assert list(results) == [1, 2, 3]


def test_an_error_is_raised_in_its_place() -> None:
    def divide(item: int) -> float:
        return 1 / item

    results = map_ahead(divide, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_is_left_undone_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "preparing_threads", lambda: 1)
    done: list[int] = []
    results = map_ahead(done.append, range(100))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(done) <= 3
    assert not any(thread.name.startswith("fgclip-rt") for thread in threading.enumerate())


def test_what_was_used_last_is_kept() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
    recent.put("a", 4)
    assert recent.get("a") == 4
