"""Taking turns: their order, the turns that count, and their end. The clock is moved by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fgclip_rt import turns
from fgclip_rt.turns import take_turns, timed


class Clock:
    """A clock that is moved by hand, and a log of the work done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def spend(self, name: str, seconds: float) -> Callable[[], float]:
        """Work that takes ``seconds`` and logs its ``name``."""

        def run() -> float:
            self.now += seconds
            self.log.append(name)
            return seconds

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(turns, "sleep", lambda seconds: clock.spend("rest", seconds)() if seconds else None)
    return clock


def test_a_time_is_the_mean_of_the_runs_that_count(clock: Clock) -> None:
    assert timed(clock.spend("a", 3.0)) == 3
    costs = iter([100.0, 50.0, 1.0, 2.0, 6.0])
    assert timed(lambda: clock.spend("b", next(costs))(), runs=3, warm_up=2) == 3
    assert clock.log == ["a", *"bbbbb"]


def test_everybody_has_a_turn_in_each_round(clock: Clock) -> None:
    rounds: list[int] = []
    measured = take_turns(
        {"a": clock.spend("a", 1.0), "b": clock.spend("b", 2.0)},
        3,
        progress=lambda: rounds.append(len(clock.log)),
    )
    assert measured == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert clock.log == list("ababab")
    assert rounds == [2, 4, 6]


def test_rounds_that_warm_up_do_not_count() -> None:
    costs = iter([9.0, 8.0, 1.0, 2.0])
    rounds: list[None] = []
    measured = take_turns({"a": lambda: next(costs)}, 2, warm_up=2, progress=lambda: rounds.append(None))
    assert measured == {"a": [1, 2]}
    assert len(rounds) == 2


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 1), (5.0, 2), (1000.0, 4)])
def test_no_round_begins_after_the_limit(clock: Clock, seconds: float, count: int) -> None:
    assert take_turns({"a": clock.spend("a", 3.0)}, 4, seconds=seconds) == {"a": [3] * count}


def test_the_limit_leaves_one_round_that_counts(clock: Clock) -> None:
    assert take_turns({"a": clock.spend("a", 3.0)}, 4, warm_up=1, seconds=1.0) == {"a": [3]}


def test_there_is_a_rest_before_each_turn(clock: Clock) -> None:
    take_turns({"a": clock.spend("a", 1.0), "b": clock.spend("b", 1.0)}, 1, pause=0.5)
    assert clock.log == ["rest", "a", "rest", "b"]
    assert clock.now == 3


def test_who_cannot_go_on_is_left_out(clock: Clock) -> None:
    answers = iter([1.0, None])
    measured = take_turns({"a": lambda: next(answers), "b": clock.spend("b", 2.0)}, 3)
    assert measured == {"b": [2, 2, 2]}
    assert clock.log == list("bbb")
