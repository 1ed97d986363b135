"""The commands by name, and the program that runs them."""

from __future__ import annotations

import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from .. import __version__
from . import output

#: Summary of each command, in the order of the help. Each command is ``run`` in a module of ``commands``.
COMMANDS = {
    "models": "List the models that can be exported by name.",
    "export": "Turn an FG-CLIP checkpoint into a bundle that runs without PyTorch.",
    "build": "Build TensorRT engines of a bundle, in its folder engines/.",
    "verify": "Check that a bundle gives the reference's numbers on this machine.",
    "inspect": "Show what is inside a bundle.",
    "embed": "Write the vectors of images and texts to a file.",
    "embed-shards": "Write the vectors of millions of images, shard by shard.",
    "score": "Print how well each text describes each image.",
    "regions": "Print the cosine of each text with each box of an image.",
    "heatmap": "Draw where in an image each text is found.",
    "index": "Index the images of a folder, so that they can be searched.",
    "search": "Find images of an index by a text, an image, or a part of one.",
    "serve": "Serve a bundle by HTTP, to clients of OpenAI's embeddings and your own.",
    "triton": "Write a model repository for Triton Inference Server.",
    "mcp": "Give agents tools to look at images, by the Model Context Protocol.",
    "evaluate": "Count a bundle's right choices on drawn scenes, on a public benchmark or on pairs of your own.",
    "compare": "Tell whether old vectors may stay when the bundle changes.",
    "scene": "Draw a scene that fg-clip2-pocket understands, and print its captions.",
    "bench": "Measure how fast a bundle is on this machine, beside its peers.",
    "doctor": "Show what this machine can run, and why not for the rest.",
}


class _Deferred(click.Command):
    """A command that is imported when it is asked for: importing all takes as long as a first vector."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        found: click.Command = importlib.import_module(f".commands.{str(self.name).replace('-', '_')}", __package__).run
        return found.make_context(info_name, args, parent, **extra)


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click gives it)
        """The commands in the order of the work, not of the alphabet."""
        return list(self.commands)


@click.group(
    cls=_Program,
    commands={name: _Deferred(name, short_help=summary) for name, summary in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="fgclip-rt %(version)s")
def program() -> None:
    """FG-CLIP in production: export a checkpoint once, then embed images, regions and texts without PyTorch."""


def run() -> None:
    """Run the command that the arguments name, and end the process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (it stays open like any other)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = program.main(prog_name="fgclip-rt", standalone_mode=False)
    except click.ClickException as error:
        output.say_usage_error(error)
        if "--json" in sys.argv and isinstance(error, click.UsageError):
            output.say_error("usage_invalid", error.format_message())
        status = error.exit_code
    sys.exit(status or 0)
