"""McNemar's test: whether two models' differences are more than chance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.evaluation.measures import Flips, flips


def pair(lost: int, gained: int, same: int = 3) -> tuple[list[bool], list[bool]]:
    first = [True] * lost + [False] * gained + [True] * same
    second = [False] * lost + [True] * gained + [True] * same
    return first, second


@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    # By hand: of ten coins, 2 · (1 + 10) / 1024 fall so unevenly.
    [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (9, 1, 22 / 1024), (1, 9, 22 / 1024), (10, 0, 2 / 1024)],
)
def test_flips_fall_like_coins(lost: int, gained: int, p_value: float) -> None:
    assert flips(*pair(lost, gained)) == Flips(lost, gained, p_value)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_the_shares_differ_by_the_flips(choices: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in choices], [b for _, b in choices]
    found = flips(first, second)
    assert sum(first) - sum(second) == found.lost - found.gained
    assert 0 < found.p_value <= 1
    assert flips(second, first) == Flips(found.gained, found.lost, found.p_value)


def test_a_thousand_flips_are_no_overflow() -> None:
    assert 0 < flips(*pair(1000, 900)).p_value < 0.03
