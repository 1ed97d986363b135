"""Work that threads do ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt import ahead
from fgclip_rt.ahead import map_ahead, read_ahead
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


@given(items=st.lists(st.integers(0, 5)), most=st.integers(1, 9))
def test_what_is_read_ahead_comes_in_order(items: list[int], most: int) -> None:
    assert list(read_ahead((item for item in items), lambda item: item, most)) == items


def test_reading_goes_on_while_the_caller_works_and_stops_at_the_limit() -> None:
    taken: list[int] = []
    four = threading.Event()

    def items() -> Generator[int]:
        for item in range(100):
            taken.append(item)
            if len(taken) == 4:
                four.set()
            yield item

    ahead_of = read_ahead(items(), lambda _: 10, 25)
    assert next(ahead_of) == 0
    # 1, 2 and 3 wait and cost 30 together; 4 is in hand, and goes to them when one of them is taken.
    assert four.wait(10)
    time.sleep(0.05)
    assert len(taken) <= 5
    assert next(ahead_of) == 1
    ahead_of.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6


def test_an_error_of_reading_comes_after_what_was_read() -> None:
    def items() -> Generator[int]:
        yield 1
        yield 2
        raise OSError("gone")

    ahead_of = read_ahead(items(), lambda _: 1, 9)
    assert [next(ahead_of), next(ahead_of)] == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(ahead_of)


def test_what_is_read_is_closed_if_the_caller_stops() -> None:
    closed = []

    def items() -> Generator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    for item in read_ahead(items(), lambda _: 1, 3):
        if item == 2:
            break
    assert closed == ["fgclip-rt-read"]
