"""A step is reported once it is done, and a stage has as many as were planned."""

from __future__ import annotations

import pytest

from fgclip_rt.progress import silent, tracked
from helpers import Progress


def test_each_item_is_a_step_that_is_reported_when_it_is_done() -> None:
    progress = Progress()
    reported = [(item, progress.steps["work"]) for item in tracked(progress, "work", "abc")]
    assert reported == [("a", 0), ("b", 1), ("c", 2)]
    assert progress.finished() == {"work": 3}


def test_a_step_that_fails_is_not_reported() -> None:
    progress = Progress()
    with pytest.raises(ZeroDivisionError):
        [1 // item for item in tracked(progress, "work", [1, 0])]
    assert progress.steps["work"] == 1


def test_silence_passes_the_items_on() -> None:
    assert list(tracked(silent, "work", [])) == []
    assert list(tracked(silent, "work", [3, 1])) == [3, 1]
