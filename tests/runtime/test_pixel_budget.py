"""Images are decoded side by side within a bound on their pixels, and nothing waits for ever."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgclip_rt.pixel_budget import PixelBudget


@given(sizes=st.lists(st.integers(1, 150), max_size=30), threads=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_no_more_is_held_than_the_budget_and_a_larger_image_is_alone(sizes: list[int], threads: int) -> None:
    budget = PixelBudget(100)
    held: list[int] = []
    lock = threading.Lock()

    def decode(size: int) -> None:
        with budget.share() as take:
            take(size)
            with lock:
                held.append(size)
                assert sum(held) <= 100 or len(held) == 1
            with lock:
                held.remove(size)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, sizes))
    assert budget.held == 0


def test_what_fits_is_decoded_side_by_side() -> None:
    budget = PixelBudget(100)
    with ExitStack() as stack:
        for size in (50, 30, 20):
            stack.enter_context(budget.share())(size)
        assert budget.held == 100


def waiting(budget: PixelBudget, size: int, order: list[int], barrier: threading.Event) -> threading.Thread:
    """A thread that takes a share and records it."""

    def run() -> None:
        with budget.share() as take:
            take(size)
            order.append(size)
            barrier.wait(10)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def until(condition: object) -> None:
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come about in 10 s")


def test_a_large_image_is_not_overtaken_by_small_ones() -> None:
    budget, order, end = PixelBudget(100), list[int](), threading.Event()
    end.set()
    with budget.share() as take:
        take(10)
        threads = [waiting(budget, 1000, order, end)]
        until(lambda: len(budget._waiting) == 1)
        threads.append(waiting(budget, 5, order, end))
        until(lambda: len(budget._waiting) == 2)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == [1000, 5]


def test_a_share_is_taken_once() -> None:
    budget = PixelBudget(100)
    with budget.share() as take:
        take(60)
        take(60)
        assert budget.held == 60
    with budget.share():
        pass
    assert budget.held == 0


def test_an_error_gives_the_share_back_and_an_interrupted_wait_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = PixelBudget(100)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    def decode() -> None:
        with budget.share() as take:
            take(100)
            fail()

    with pytest.raises(KeyboardInterrupt):
        decode()
    with monkeypatch.context() as patch, budget.share() as take:
        take(1)
        patch.setattr(budget._changed, "wait_for", fail)
        with pytest.raises(KeyboardInterrupt):
            decode()
    with budget.share() as take:
        take(100)
        assert budget.held == 100


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="no plain fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_has_the_whole_budget() -> None:
    budget = PixelBudget(100)
    with budget.share() as take:
        take(100)
        child = os.fork()
        if child == 0:  # pragma: no cover (another process)
            os._exit(0 if budget.held == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert budget.held == 100
