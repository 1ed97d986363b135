"""Progress of a build: percent from the phases that a library tells of, and one step of the bar for each."""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """How much of one build is done, in percent that only go up, from phases within phases."""

    def __init__(self, report: Callable[[int], None]) -> None:
        """Call ``report`` with the percent whenever it is more than before."""
        self._report = report
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._reported = 0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, as a part of the present step of ``parent``."""
        self._phases[name] = (parent, max(1, steps), 0)

    def step(self, name: str, index: int) -> None:
        """Step ``index`` of a phase, counted from zero, is done."""
        if name not in self._phases:
            return
        parent, steps, _ = self._phases[name]
        self._phases[name] = (parent, steps, index + 1)
        share = 0.0
        at: str | None = name
        while at is not None and at in self._phases:
            at, steps, done = self._phases[at]
            share = min(1.0, (done + share) / steps)
        # A phase whose parent has ended, or that begins anew, would set it back.
        percent = int(100 * share)
        if at is None and percent > self._reported:
            self._reported = percent
            self._report(percent)

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._phases.pop(name, None)


def each_percent(advance: Callable[[], None]) -> Callable[[int], None]:
    """A listener for the percent of one build, which calls ``advance`` once for every percent that it hears of."""
    heard = 0

    def hear(percent: int) -> None:
        nonlocal heard
        while heard < percent:
            heard += 1
            advance()

    return hear
