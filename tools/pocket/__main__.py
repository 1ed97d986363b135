"""``python -m tools.pocket``."""

from __future__ import annotations

from pathlib import Path

import click

from .train import train


@click.command(context_settings={"show_default": True})
@click.argument("output", type=click.Path(path_type=Path), help="Checkpoint folder to make.")
@click.option("--steps", default=3000, help="Steps of training.")
@click.option("--scale", default=1.0, help="Share of the training scenes to draw.")
@click.option("--threads", default=2, help="CPU threads.")
@click.option("--start", type=click.Path(path_type=Path), help="Checkpoint to go on from.  [default: random weights]")
def main(output: Path, steps: int, scale: float, threads: int, start: Path | None) -> None:
    """Train the pocket checkpoint on scenes that are drawn for it."""
    train(output, steps, scale, threads, start)


if __name__ == "__main__":
    main()
