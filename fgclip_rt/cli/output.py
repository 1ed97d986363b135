"""Results to standard output, as text, tables or JSON; everything else to standard error.

Everything that is printed passes through here, where no character of a file name, a text or another library's message
can act on the terminal.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click
import msgspec

from ..names import UNSAFE, make_visible

if TYPE_CHECKING:
    from rich.console import Console

#: Wide enough that nothing is cut when the output is a file or a pipe.
_PIPE_WIDTH = 1000

_UNSAFE_IN_JSON = re.compile(f"(?!\n)[{UNSAFE}]")

#: Fewest characters in a line of a cell whose text may wrap, and blanks between two columns.
_LEAST, _GAP = 6, 2


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: its header.
        wraps: whether its cells may take several lines, where the terminal is narrow.
        right: whether they stand on the right.
    """

    name: str
    wraps: bool
    right: bool


def words(name: str) -> Column:
    """A column of texts."""
    return Column(name, wraps=True, right=False)


def names(name: str) -> Column:
    """A column of names that users copy, each of which stays in one piece."""
    return Column(name, wraps=False, right=False)


def numbers(name: str) -> Column:
    """A column of numbers, each of which stays in one piece."""
    return Column(name, wraps=False, right=True)


def say(text: str) -> None:
    """Print a line of the result."""
    click.echo(make_visible(text))


def warn(text: str) -> None:
    """Print a line about the work to standard error."""
    click.echo(make_visible(text), err=True)


@contextmanager
def saying_what_is_kept(said: Callable[[], str | None]) -> Iterator[None]:
    """Say what is kept if the block does not end well; ``said`` gives the sentence, or None if nothing is."""
    try:
        yield
    except BaseException as error:
        kept = said()
        if kept is None:
            raise
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(kept) from None
        warn(f"fgclip-rt: {kept}.")
        raise


def say_json(answer: Any) -> None:
    """Print the result for a program: a struct of :mod:`fgclip_rt.answers`, or several."""
    value = msgspec.to_builtins(answer)
    document = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    click.echo(_UNSAFE_IN_JSON.sub(_escaped_in_json, document))


def say_error(code: str, message: str) -> None:
    """Print for a program why there is no result."""
    say_json({"error": {"code": code, "message": message}})


def say_usage_error(error: click.ClickException) -> None:
    """Print to standard error how a command is used, and what is wrong with its arguments."""
    shown = io.StringIO()
    error.show(shown)
    click.echo(_visible_lines(shown.getvalue()), err=True, nl=False)


def say_table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table under ``title``, if any, as wide as the terminal or as its numbers need."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table

    if title:
        say(title)
    cells = [[_visible_lines(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False)
    least = -_GAP
    for index, column in enumerate(columns):
        lines = [line for row in cells for line in row[index].split("\n")]
        widest = max(map(cell_len, [column.name, *lines]))
        width = min(_LEAST, widest) if column.wraps else widest
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            min_width=width,
            overflow="fold",
        )
        least += width + _GAP
    for row in cells:
        table.add_row(*row)
    console = make_console(sys.stdout)
    console.width = max(console.width, least)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def make_console(stream: TextIO) -> Console:
    """The console for tables and progress bars. Importing rich takes as long as a first vector, so it is done here."""
    from rich.console import Console

    # Output holds texts and paths of others: nothing in them is markup.
    return Console(file=stream, width=_width(stream), highlight=False, markup=False, emoji=False)


def _width(stream: TextIO) -> int:
    return shutil.get_terminal_size().columns if stream.isatty() else _PIPE_WIDTH


def _visible_lines(text: str) -> str:
    return "\n".join(map(make_visible, text.split("\n")))


def _escaped_in_json(unsafe: re.Match[str]) -> str:
    """The character as JSON escapes it; a byte that is not UTF-8 as it is spelled in names."""
    character = unsafe[0]
    if "\ud800" <= character <= "\udfff":
        return make_visible(character).replace("\\", "\\\\")
    return f"\\u{ord(character):04x}"
