"""The page of all commands, from the help that they print."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

import click

from fgclip_rt.cli.app import COMMANDS, program

_TITLE = """\
# Commands and their options

Every command, as `fgclip-rt COMMAND --help` states it. [The command line](command-line.md) tells what they have in
common. This page is generated from the commands by `make docs`.
"""


def load_command(name: str) -> click.Command:
    """The command called ``name``, imported."""
    command: click.Command = importlib.import_module(f"fgclip_rt.cli.commands.{name.replace('-', '_')}").run
    return command


def commands_page() -> str:
    """The page in Markdown: a section for each command, in the order of ``fgclip-rt --help``."""
    # As the program does it, so that its settings count: defaults are shown.
    with program.make_context("fgclip-rt", [], resilient_parsing=True) as parent:
        sections = ["\n".join(_section(name, load_command(name), parent)) for name in COMMANDS]
    return "\n".join([_TITLE, *sections])


def _section(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    yield f"## {name}\n"
    yield f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    yield from (_escaped(inspect.cleandoc(text)) + "\n" for text in (command.help, command.epilog) if text)
    records = [
        record
        for parameter in command.get_params(context)
        if (record := _record(parameter, context)) is not None and "--help" not in record[0]
    ]
    if records:
        yield "| argument or option | meaning |"
        yield "|---|---|"
        yield from (f"| `{names}` | {_escaped(meaning)} |" for names, meaning in records)
        yield ""


def _record(parameter: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    """How an argument or option is written and what it means, as in the help."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    names, meaning = record
    # Two spaces set the default apart in a terminal.
    return names.replace("|", "\\|"), re.sub(r"\s+", " ", meaning)


def _escaped(text: str) -> str:
    """Text of a help as Markdown: commands and options as code, and nothing that is taken for a tag or a column."""
    text = text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
    text = re.sub(r"\[(default: .*?|required)\]$", r"*\1*", text)
    return re.sub(
        r"'(?P<command>fgclip-rt [^']*)'|(?<![\w-])(?P<option>--?[a-z][a-z-]*)",
        lambda found: f"`{found['command'] or found['option']}`",
        text,
    )
