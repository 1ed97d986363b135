"""``fgclip-rt triton``: a bundle as a model repository of Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ...bundle import Bundle
from .. import options
from ..output import say
from ..status import Command

if TYPE_CHECKING:
    from fgclip_rt.serving.triton import Mode


_MODES = ("in-process", "onnxruntime", "tensorrt")


@click.command(cls=Command)
@options.bundle
@click.option("--output", type=options.PATH, required=True, help="Folder of the repository.")
@click.option(
    "--mode",
    default="in-process",
    shell_complete=options.completed(_MODES),
    help="Runs the graphs: in-process, onnxruntime or tensorrt.",
)
@options.precision
@click.option("--gpu", is_flag=True, help="Run graphs on a GPU, as TensorRT always does.")
@click.option("--regions", is_flag=True, help="Answer boxes too.")
@click.option(
    "--instances",
    type=int,
    help="Processes that take requests; in-process on a GPU, of each.  [default: 1 in-process, else 2]",
)
@options.threads
@click.option("--max-batch-size", default=32, help="Most items of a batch.")
@click.option(
    "--bench",
    type=options.PATH,
    help="Result of 'bench --images', whose batches are taken.  [default: 2,048 patches or tokens; on a GPU 16,384]",
)
@click.option("--max-wait", default=0.005, help="Seconds that a request waits for others at most.")
@click.option("--max-queue", default=256, help="Requests that may wait; more are rejected at once.")
@click.option(
    "--check", is_flag=True, help="Parse what was written by Triton's own definition, and hold it to the graphs."
)
@options.overwrite
def run(
    bundle: Path,
    output: Path,
    mode: str,
    precision: str | None,
    gpu: bool,
    regions: bool,
    instances: int | None,
    threads: int | None,
    max_batch_size: int,
    bench: Path | None,
    max_wait: float,
    max_queue: int,
    check: bool,
    overwrite: bool,
) -> None:
    """Write a model repository for Triton Inference Server.

    A model in Triton's Python backend, which needs fgclip-rt, decodes images and tokenises texts. It runs the bundle
    itself, or calls a model for each bucket in Triton's ONNX Runtime or TensorRT backend. The README.md in the
    repository tells how to start a server, and has a client.
    """
    from fgclip_rt.serving.triton import Repository, check_repository, read_advice, write_repository

    settings = Repository(
        mode=cast("Mode", mode),
        precision=precision,
        gpu=gpu,
        regions=regions,
        instances=instances,
        threads=threads,
        max_batch_size=max_batch_size,
        advice=None if bench is None else read_advice(bench),
        delay=max_wait,
        max_queue=max_queue,
    )
    write_repository(Bundle.open(bundle), output, settings, overwrite=overwrite)
    if check:
        check_repository(output)
    say(f"{output}: a model repository; its README.md tells how to serve it{'; checked' if check else ''}")
