"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..progress import BeginStage, silent
from .output import make_console


@contextmanager
def progress_bars() -> Iterator[BeginStage]:
    """Progress bars with steps a second and the time left on a terminal, nothing elsewhere.

    Yields a function that begins a bar, given its label and number of steps, and returns a function that advances it
    by one.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        # When a stage has ended, the time that it took.
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[tense]}"),
    )
    with Progress(*columns, console=make_console(sys.stderr), expand=False) as progress:

        def begin(label: str, steps: int) -> Callable[[], None]:
            number = progress.add_task(label, total=steps, tense="left", rate="")
            task = progress.tasks[number]

            def done() -> None:
                progress.advance(number)
                speed = task.finished_speed or task.speed
                rate = "" if speed is None else f"{speed:,.1f}/s"
                progress.update(number, tense="" if task.finished else "left", rate=rate)

            return done

        yield begin
