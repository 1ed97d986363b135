"""What commands share: where output goes, how errors end a command, and progress."""

from __future__ import annotations

import errno
import functools
import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from PIL import Image

from ..errors import ArgumentError, FgclipError
from ..manifest import Calibration, Lowering, ParityRow
from ..model import Model, load

if TYPE_CHECKING:
    from rich.console import Console

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Wide enough that nothing is cut when the output is a file or a pipe.
_PIPE_WIDTH = 1000

#: What a comparison with the reference is shown as.
PARITY_COLUMNS = (
    "graph",
    "case",
    "count",
    "1 - min cosine",
    "1 - mean cosine",
    "within limit",
    "largest error",
    "largest difference",
    "logit shift",
    "top-1 flips",
    "result",
)


def _console(stderr: bool) -> Console:
    """Where tables and progress bars go. It is imported where it is needed, which takes as long as a first vector."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # What we print holds texts and paths of others: nothing in them is markup.
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line of the result."""
    typer.echo(printable(text))


def warn(text: str) -> None:
    """Print a line about the work to standard error."""
    typer.echo(printable(text), err=True)


def say_json(value: Any) -> None:
    """Print the result for a program."""
    typer.echo(printable(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))


def say_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, right: bool = True) -> None:
    """Print a table under ``title``, if any; columns after the first stand on the right if ``right``."""
    from rich.table import Table

    if title:
        say(title)
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if right and index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    _console(stderr=False).print(table)


def printable(text: str) -> str:
    """Text with the bytes of a file name that are not UTF-8 replaced."""
    return text.encode("utf-8", "replace").decode()


def say_parity(rows: Iterable[ParityRow], title: str = "") -> None:
    """Print comparisons with the reference."""
    say_table(title, PARITY_COLUMNS, map(parity_cells, rows))


def parity_cells(row: ParityRow) -> tuple[str, ...]:
    """A comparison as cells of a table with :data:`PARITY_COLUMNS`."""
    return (
        row.graph,
        row.case,
        f"{row.count:,}",
        _from_one(row.min_cosine),
        _from_one(row.mean_cosine),
        floored(row.within),
        f"{row.max_error:.1e}",
        f"{row.max_difference:.1e}",
        "-" if row.logit_shift is None else f"{row.logit_shift:.1e}",
        "-" if row.flips is None else f"{row.flips:,}",
        "ok" if row.passed else "FAILED",
    )


def floored(share: float) -> str:
    """A share in percent that says all only where it is all."""
    return f"{math.floor(1000 * share) / 1000:.1%}"


def _from_one(cosine: float) -> str:
    """How far a cosine is from one, which rounding may put it above."""
    return f"{max(0.0, 1 - cosine):.1e}"


def describe_lowering(lowering: Lowering) -> str:
    """What was done to the fp32 graphs, leaving out what was not."""
    parts = [f"linear layers {lowering.linear}, attention and token table {lowering.other}"]
    if moved := lowering.moved:
        names = ", ".join(f"{layer} to {kind}" for layer, kind in moved.items())
        parts.append(f"{len(moved)} layer{'s' if len(moved) > 1 else ''} moved back ({names})")
    if lowering.smoothed:
        parts.append(f"{lowering.smoothed} smoothed")
    if lowering.calibration is not None:
        parts.append(_calibration(lowering.calibration))
    return "; ".join(parts)


def _calibration(used: Calibration) -> str:
    return (
        f"calibrated ({used.method}) on {used.images} images and {used.texts} texts, "
        f"{used.held_out_images} and {used.held_out_texts} held out"
    )


def command(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn the errors that we raise into one line and a status: 1, or 130 for Ctrl-C."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        # A service manager stops a process by SIGTERM; as an exception it cleans up like Ctrl-C.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return function(*args, **kwargs)
        except FgclipError as error:
            warn(f"fgclip-rt: {error}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            warn(f"fgclip-rt: interrupted; {stop}." if str(stop) else "fgclip-rt: interrupted; nothing was written.")
            raise typer.Exit(130) from None
        except OSError as error:
            # A reader of our output that has gone away is the affair of the shell.
            if error.errno == errno.EPIPE:
                raise
            warn(f"fgclip-rt: {error.filename or 'input or output'} failed ({error.strerror or error}); try again.")
            raise typer.Exit(1) from None
        except MemoryError:
            warn("fgclip-rt: memory ran out; use fewer patches or smaller batches.")
            raise typer.Exit(1) from None

    return wrapped


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Progress bars on a terminal, nothing elsewhere.

    Yields a function that begins a bar, given its label and number of steps, and returns a function that advances it
    by one.
    """
    if not sys.stderr.isatty():
        yield lambda label, steps: lambda: None  # noqa: ARG005 (nothing is shown of either)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(stderr=True)) as progress:

        def begin(label: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(label, total=steps)
            return lambda: progress.advance(task)

        yield begin


def open_model(bundle: Path, device: str, precision: str | None, threads: int | None, backend: str | None) -> Model:
    """Load a bundle for a command, and say so when its weights are random."""
    model = load(bundle, device, precision, threads, backend=backend)
    if model.manifest.model.weights == "random":
        warn("fgclip-rt: this bundle has RANDOM WEIGHTS: its numbers mean nothing and serve benchmarks only.")
    return model


def set_max_image_pixels(limit: int | None) -> None:
    """Raise or lower Pillow's limit on the size of an image for this process."""
    if limit is not None:
        if limit < 1:
            raise ArgumentError(f"--max-image-pixels is {limit}; give a positive number of pixels.")
        Image.MAX_IMAGE_PIXELS = limit
