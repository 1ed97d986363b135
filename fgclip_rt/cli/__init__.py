"""The command line. One module per command; this one gathers them."""

from __future__ import annotations

import importlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from typer.core import TyperGroup

from .. import __version__
from .console import command

#: In the order of the help. Each is a module of this package with a function ``run``.
_COMMANDS = (
    "export",
    "build",
    "verify",
    "inspect",
    "embed",
    "score",
    "regions",
    "heatmap",
    "evaluate",
    "scene",
    "bench",
    "doctor",
)


class _Commands(TyperGroup):
    """Commands that are imported when they are asked for: importing all takes as long as a first vector."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (typer gives it)
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(command(module.run))
        return typer.main.get_command(single)


app = typer.Typer(
    name="fgclip-rt",
    cls=_Commands,
    help="FG-CLIP in production: export a checkpoint once, then embed images, regions and texts without PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"fgclip-rt {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``fgclip-rt`` command."""
    # Images over the limit are refused with a sentence of our own; Pillow's warning before it says nothing more.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (it stays open like any other)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
