"""``fgclip-rt doctor``: what this machine can run, and how fast the precisions of a bundle are on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..bundle import Bundle
from ..choice import Fit, fit_engines
from ..doctor import Check, examine
from ..errors import ArgumentError
from ..timing import NOT_FASTER, ROUNDS, TIMED_GRAPHS, Timing, time_precisions
from . import options
from .console import progress_bars, say, say_json, say_table


def run(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle folder whose precisions to time here.", metavar="BUNDLE")
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Show what this machine can run, and why not for the rest.

    With BUNDLE, also time its precisions side by side, as a quick look, and say which of its engines fit; --device and
    --threads are for the timing.
    """
    if bundle is None and (device != "auto" or threads is not None):
        raise ArgumentError("--device and --threads are for timing a bundle; name its folder too, or leave them out.")
    timings = [] if bundle is None else _timings(bundle, device, threads)
    checks = examine()
    fits = [] if bundle is None else fit_engines(Bundle.open(bundle, check_hashes=False))
    if json:
        found = msgspec.to_builtins(checks)
        timed = {
            "bundle": str(bundle),
            "checks": found,
            "timings": msgspec.to_builtins(timings),
            "engines": [{"engine": fit.engine.path.name, "problem": fit.problem} for fit in fits],
        }
        say_json(found if bundle is None else timed)
        return
    _say_checks(checks)
    if bundle is not None:
        _say_timings(bundle, timings)
    if fits:
        say_table("", ("engine", "here"), _engine_rows(fits), right=False)


def verdict(timing: Timing) -> str:
    """What a time says about its precision; nothing for the baseline."""
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
    with progress_bars() as begin:
        return time_precisions(bundle, device, threads, begin("time precisions", len(TIMED_GRAPHS) * ROUNDS))


def _engine_rows(fits: Iterable[Fit]) -> list[tuple[str, str]]:
    return [(fit.engine.path.name, "fits" if fit.problem is None else f"does not fit: {fit.problem}") for fit in fits]


def _say_checks(checks: Iterable[Check]) -> None:
    say_table(
        "",
        ("", "check", "found", "remedy"),
        (("ok" if check.ok else "no", check.name, check.detail, check.remedy) for check in checks),
        right=False,
    )


def _say_timings(bundle: Path, timings: list[Timing]) -> None:
    backends = ", ".join(dict.fromkeys(timing.backend for timing in timings))
    say(f"{bundle}, timed on {backends}")
    say("A quick look: medians of the runs counted below, of one image or one text; other work here makes them noisy.")
    compared = any(map(verdict, timings))
    say_table(
        "",
        ("graph", "of", "precision", "runs", "milliseconds", *(["verdict"] if compared else [])),
        (
            (
                timing.graph,
                timing.case,
                timing.precision,
                str(timing.runs),
                "-" if timing.milliseconds is None else f"{timing.milliseconds:.2f}",
                *([verdict(timing)] if compared else []),
            )
            for timing in timings
        ),
        right=False,
    )
