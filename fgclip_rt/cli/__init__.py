"""The command line. One module per command; this one gathers them."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from PIL import Image

from .. import __version__
from . import doctor, embed, export, heatmap, inspect, regions, score, verify
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
    ("verify", verify),
    ("inspect", inspect),
    ("embed", embed),
    ("score", score),
    ("regions", regions),
    ("heatmap", heatmap),
    ("doctor", doctor),
):
    app.command(_name)(command(_module.run))


def main() -> None:
    """Entry point of the ``fgclip-rt`` command."""
    # Images over the limit are refused with a sentence of our own; Pillow's warning before it says nothing more.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    app()
