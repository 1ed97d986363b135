"""The command line. One module per command; this one gathers them."""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from .. import __version__
from . import build, doctor, embed, evaluate, export, heatmap, inspect, regions, scene, score, verify
from .console import command

app = typer.Typer(
    name="fgclip-rt",
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


for _name, _module in (
    ("export", export),
    ("build", build),
    ("verify", verify),
    ("inspect", inspect),
    ("embed", embed),
    ("score", score),
    ("regions", regions),
    ("heatmap", heatmap),
    ("evaluate", evaluate),
    ("scene", scene),
    ("doctor", doctor),
):
    app.command(_name)(command(_module.run))


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
