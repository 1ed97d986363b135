"""``python -m tools.pocket``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .train import train


def main(
    output: Annotated[Path, typer.Argument(help="Checkpoint folder to make.")],
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 3000,
    scale: Annotated[float, typer.Option(help="Share of the training scenes to draw.")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    start: Annotated[Path | None, typer.Option(help="Checkpoint to go on from.  [default: random weights]")] = None,
) -> None:
    """Train the pocket checkpoint on scenes that are drawn for it."""
    train(output, steps, scale, threads, start)


if __name__ == "__main__":
    typer.run(main)
