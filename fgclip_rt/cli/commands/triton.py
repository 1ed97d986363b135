"""``fgclip-rt triton``: a bundle as a model repository of Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle import Bundle
from .. import options
from ..output import say
from ..status import Command


@click.command(cls=Command)
@options.bundle
@click.option("--output", type=options.PATH, required=True, help="Folder of the repository.")
@options.precision
@click.option("--gpu", is_flag=True, help="Run each instance on a GPU.")
@click.option("--instances", default=1, help="Processes that run the model, on the CPU or on each GPU.")
@options.threads
@click.option("--max-batch-size", default=32, help="Most items of a batch.")
@click.option("--max-wait", default=0.005, help="Seconds that a request waits for others at most.")
@click.option("--max-queue", default=256, help="Requests that may wait; more are rejected at once.")
@click.option(
    "--check", is_flag=True, help="Parse what was written by Triton's own definition, and hold it to the bundle."
)
@options.overwrite
def run(
    bundle: Path,
    output: Path,
    precision: str | None,
    gpu: bool,
    instances: int,
    threads: int | None,
    max_batch_size: int,
    max_wait: float,
    max_queue: int,
    check: bool,
    overwrite: bool,
) -> None:
    """Write a model repository for Triton Inference Server.

    The model decodes images, tokenises texts and runs the bundle in Triton's Python backend, which needs fgclip-rt. The
    README.md in the repository tells how to start a server, and has a client.
    """
    from fgclip_rt.serving.triton import Repository, check_repository, write_repository

    settings = Repository(
        precision=precision,
        gpu=gpu,
        instances=instances,
        threads=threads,
        max_batch_size=max_batch_size,
        delay=max_wait,
        max_queue=max_queue,
    )
    write_repository(Bundle.open(bundle), output, settings, overwrite=overwrite)
    if check:
        check_repository(output)
    say(f"{output}: a model repository; its README.md tells how to serve it{'; checked' if check else ''}")
