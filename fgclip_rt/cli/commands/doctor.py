"""``fgclip-rt doctor``: a look at this machine, and the speed of a bundle's precisions on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import click

from ...answers import Answer
from ...bundle import Bundle
from ...choice import fit_engines
from ...doctor import Check, examine
from ...errors import ArgumentError
from ...model import RandomWeightsWarning
from ...timing import NOT_FASTER, ROUNDS, TIMED_GRAPHS, Timing, time_precisions
from .. import options
from ..output import numbers, say, say_json, say_table, words
from ..progress import progress_bars
from ..status import Command


class EngineHere(Answer, frozen=True):
    """An engine of a bundle, and why it cannot run here, if it cannot."""

    engine: str
    problem: str | None


class Diagnosed(Answer, frozen=True):
    """Checks of this machine, and the timings and engines of a bundle on it."""

    bundle: str
    checks: list[Check]
    timings: list[Timing]
    engines: list[EngineHere]


@click.command(cls=Command)
@click.argument(
    "bundle",
    type=options.PATH,
    required=False,
    metavar="[BUNDLE]",
    help="Bundle folder whose precisions to time here.",
)
@options.device
@options.threads
@options.json
def run(bundle: Path | None, device: str, threads: int | None, json: bool) -> None:
    """Show what this machine can run, and why not for the rest.

    With BUNDLE, also time its precisions side by side, as a quick look, and say which of its engines fit; --device and
    --threads are for the timing.
    """
    if bundle is None:
        if device != "auto" or threads is not None:
            raise ArgumentError(
                "--device and --threads are for timing a bundle; name its folder too, or leave them out."
            )
        checks = examine()
        if json:
            say_json(checks)
        else:
            _say_checks(checks)
        return
    answer = Diagnosed(
        bundle=str(bundle),
        timings=_timings(bundle, device, threads),
        checks=examine(),
        engines=[
            EngineHere(fit.engine.path.name, fit.problem)
            for fit in fit_engines(Bundle.open(bundle, check_hashes=False))
        ],
    )
    if json:
        say_json(answer)
        return
    _say_checks(answer.checks)
    _say_timings(answer)
    if answer.engines:
        say_table(
            "",
            (words("engine"), words("here")),
            [(each.engine, f"does not fit: {each.problem}" if each.problem else "fits") for each in answer.engines],
        )


def verdict(timing: Timing) -> str:
    """The meaning of a time for its precision; empty for the baseline."""
    precision, baseline = timing.precision, timing.baseline
    if timing.ratio is None:
        return timing.problem
    if precision == baseline:
        return ""
    if timing.ratio < NOT_FASTER:
        return f"{precision}: {timing.ratio:.2f} of {baseline}'s time"
    # Between two lower precisions nothing here tells which is nearer.
    reason = ", which is nearer to the reference" if baseline == "fp32" else ""
    return (
        f"{precision} is not faster than {baseline} on this machine ({timing.ratio:.2f} of its time): "
        f"use {baseline} here{reason}."
    )


def _timings(bundle: Path, device: str, threads: int | None) -> list[Timing]:
    # Random weights take as long as others.
    with warnings.catch_warnings(), progress_bars() as begin:
        warnings.simplefilter("ignore", RandomWeightsWarning)
        return time_precisions(bundle, device, threads, begin("time precisions", len(TIMED_GRAPHS) * ROUNDS))


def _say_checks(checks: Iterable[Check]) -> None:
    say_table(
        "",
        (words(""), words("check"), words("found"), words("remedy")),
        [("ok" if check.ok else "no", check.name, check.detail, check.remedy) for check in checks],
    )


def _say_timings(answer: Diagnosed) -> None:
    backends = ", ".join(dict.fromkeys(timing.backend for timing in answer.timings))
    say(f"{answer.bundle}, timed on {backends}")
    say("A quick look: medians of the runs counted below, of one image or one text; other work here makes them noisy.")
    compared = any(map(verdict, answer.timings))
    say_table(
        "",
        (
            words("graph"),
            words("of"),
            words("precision"),
            numbers("runs"),
            numbers("ms"),
            *([words("verdict")] if compared else []),
        ),
        [
            (
                timing.graph,
                timing.case,
                timing.precision,
                str(timing.runs),
                "-" if timing.milliseconds is None else f"{timing.milliseconds:.2f}",
                *([verdict(timing)] if compared else []),
            )
            for timing in answer.timings
        ],
    )
