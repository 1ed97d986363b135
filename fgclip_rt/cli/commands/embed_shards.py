"""``fgclip-rt embed-shards``: millions of images to files of vectors, shard by shard."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import click
import msgspec
from PIL import Image

from ...answers import Problem, ShardsEmbedded, Skipped
from ...bundle import Bundle
from ...errors import ArgumentError, ShardError, check_positive
from ...machine import usable_cores
from ...packages import require
from ...shipped import is_shipped, locate
from .. import options
from ..options import Loading, Pixels
from ..output import say, say_json, warn
from ..status import Command, Failed

if TYPE_CHECKING:
    from ...shards.job import DType, Layout, Marker
    from ...shards.task import Failed as FailedShard

#: Seconds between lines of progress on a terminal, where each replaces the last, and elsewhere.
_ON_TERMINAL, _ELSEWHERE = 1.0, 30.0


@click.command(cls=Command)
@options.loading
@click.argument(
    "inputs",
    nargs=-1,
    required=True,
    metavar="IN...",
    help="Tars, Parquet files, lists of images, and folders; paths, or URLs that fsspec knows.",
)
@click.option("--output", required=True, metavar="OUT", help="Folder to write to, or its URL.")
@click.option("--shard-size", default=10_000, help="Images in a shard of a list or a folder.")
@click.option("--processes", default=1, help="Worker processes, which share the cores; or most of Ray's workers.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Have the workers be actors of a Ray cluster: of this address, or of RAY_ADDRESS, or begun here.  "
    "[default: processes here]",
)
@click.option("--num-gpus", type=float, help="GPUs of each of Ray's workers, such as 0.5.  [default: none]")
@click.option("--part", help="K/N does each N-th shard from the K-th on, on one of N machines.  [default: all]")
@click.option("--retry-errors", is_flag=True, help="Read items that could not be read once more.")
@click.option(
    "--layout",
    default="parquet",
    shell_complete=options.completed(("parquet", "clip-retrieval")),
    help="parquet, or clip-retrieval for its tools.",
)
@click.option(
    "--dtype",
    default="float32",
    shell_complete=options.completed(("float32", "float16")),
    help="Type of the vectors' numbers: float32 or float16.",
)
@click.option("--image-column", help="Column of images in Parquet files.  [default: image, jpg or bytes]")
@click.option("--id-column", help="Column of ids.  [default: id, key or __key__; else the number of the row]")
@click.option("--caption-column", help="Column of captions.  [default: caption, txt or text, if there is one]")
@options.pixels
@options.json
def run(
    loading: Loading,
    inputs: tuple[str, ...],
    output: str,
    shard_size: int,
    processes: int,
    ray: str | None,
    num_gpus: float | None,
    part: str | None,
    retry_errors: bool,
    layout: str,
    dtype: str,
    image_column: str | None,
    id_column: str | None,
    caption_column: str | None,
    pixels: Pixels,
    json: bool,
) -> None:
    """Write the vectors of millions of images, shard by shard.

    Each shard gives SHARD.parquet, its items that could not be read in SHARD.errors.parquet, and SHARD.json when it is
    done. The same command again does the shards that are not done. A shard that cannot be opened is left for the next
    run, and the command ends with status 1.
    """
    require("parquet", ["pyarrow"], "this command needs {}, which is not installed")
    from ...shards import Columns, find_shards, make_job, open_store
    from ...shards.inputs import part_of
    from ...shards.job import check_same_shard, is_restored
    from ...shards.pool import run_processes
    from ...shards.ray import run_ray
    from ...shards.task import Setup, Task

    check_positive("--processes", processes)
    if num_gpus is not None and (ray is None or not num_gpus > 0):
        raise ArgumentError(f"--num-gpus is {num_gpus:g}; give a positive number, together with --ray.")
    pixels.set_limit()
    bundle = Bundle.open(loading.bundle, check_hashes=False)
    options.warn_random(bundle)
    job = make_job(
        bundle,
        loading.precision,
        dtype=cast("DType", dtype),
        layout=cast("Layout", layout),
        max_num_patches=pixels.max_num_patches,
        exif_transpose=pixels.exif_transpose,
        columns=Columns(image_column, id_column, caption_column),
    )
    shards = part_of(find_shards(inputs, shard_size), part)
    store = open_store(output)
    store.claim(job)
    markers = store.markers()
    done: dict[str, Marker] = {}
    for shard in shards:
        marker = markers.get(shard.name)
        if marker is not None and not is_restored(marker, shard):
            check_same_shard(output, marker, shard)
            done[shard.name] = marker
    retried = {name for name, marker in done.items() if retry_errors and marker.errors}
    tasks = [Task(shard, done.get(shard.name)) for shard in shards if shard.name not in done or shard.name in retried]
    setup = Setup(
        output,
        job,
        # Ray's workers have another working folder.
        str(loading.bundle) if is_shipped(locate(loading.bundle)) else os.path.realpath(loading.bundle),
        loading.device,
        # Ray gives a worker the CPUs that it asks for.
        loading.threads or (max(1, usable_cores() // processes) if ray is None else 1),
        loading.backend,
        loading.preparation,
        Image.MAX_IMAGE_PIXELS,
    )
    progress = _Progress(len(tasks))
    before = len(done) - len(retried)
    try:
        with progress.shown():
            if not tasks:
                pass
            elif ray is None:
                run_processes(setup, tasks, processes, progress)
            else:
                run_ray(setup, tasks, progress, address=ray or None, actors=processes, num_gpus=num_gpus or 0.0)
    except KeyboardInterrupt:
        ended = f"{before + len(progress.done):,} of {len(shards):,} shards are done; the same command goes on"
        raise KeyboardInterrupt(ended) from None

    done.update(progress.done)
    failed = [Skipped(each.shard, each.error.code, str(each.error)) for each in progress.failed]
    error = _not_done(failed, len(shards))
    answer = ShardsEmbedded(
        output=output,
        shards=len(shards),
        before=before,
        rows=sum(marker.rows for marker in done.values()),
        errors=_by_code(done.values()),
        unrotated=sum(marker.unrotated for marker in done.values()),
        failed=failed,
        images_per_second=progress.rate if progress.items else None,
        error=msgspec.UNSET if error is None else Problem(error.code, str(error)),
    )
    pixels.warn_unrotated(answer.unrotated, answer.rows)
    for each in failed:
        warn(f"fgclip-rt: not done: {each.error}")
    if json:
        say_json(answer)
    else:
        letters = ", ".join(f"{count:,} {code}" for code, count in answer.errors.items()) or "none"
        say(f"{output}: {len(done):,} of {answer.shards:,} shards, {answer.rows:,} rows; items without: {letters}")
    if error is not None:
        raise Failed(error)


def _by_code(markers: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for marker in markers:
        total.update(marker.errors)
    return dict(sorted(total.items()))


def _not_done(failed: list[Skipped], count: int) -> ShardError | None:
    """The error of shards that are not done; None if there are none."""
    if not failed:
        return None
    return ShardError(
        f"{len(failed):,} of {count:,} shards could not be done; mend them, and repeat the command.",
        code=failed[0].code,
    )


class _Progress:
    """Counts the work, and prints a line of it.

    Attributes:
        done: markers of the shards that this run did, by their names.
        failed: shards that could not be done.
        items: number of items that were embedded or refused.
    """

    def __init__(self, count: int) -> None:
        self.done: dict[str, Marker] = {}
        self.failed: list[FailedShard] = []
        self.items = 0
        self._errors = 0
        self._count = count
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()

    @property
    def rate(self) -> float:
        """Items a second since the beginning."""
        return self.items / (time.monotonic() - self._begun)

    def step(self, rows: int, errors: int) -> None:
        """Count images that were embedded, and items that were refused."""
        with self._lock:
            self.items += rows + errors
            self._errors += errors

    def ended(self, outcome: Marker | FailedShard) -> None:
        """Count a shard."""
        from ...shards import Marker

        with self._lock:
            if isinstance(outcome, Marker):
                self.done[outcome.shard] = outcome
            else:
                self.failed.append(outcome)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Print lines within the block: on a terminal one that changes, elsewhere one every half minute."""
        thread = threading.Thread(target=self._print, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _print(self) -> None:
        terminal = sys.stderr.isatty()
        while not self._over.wait(_ON_TERMINAL if terminal else _ELSEWHERE):
            if terminal:
                sys.stderr.write(f"\r\x1b[K{self.line()}")
                sys.stderr.flush()
            else:
                warn(f"fgclip-rt: {self.line()}")
        if terminal:
            sys.stderr.write("\r\x1b[K")

    def line(self) -> str:
        """The work so far, its rate, and the time left by the shards that have ended."""
        seconds = time.monotonic() - self._begun
        ended = len(self.done) + len(self.failed)
        left = "unknown" if not ended else _clock(seconds / ended * (self._count - ended))
        return (
            f"{ended:,} of {self._count:,} shards, {self.items:,} images, {self.rate:.1f} a second, "
            f"{self._errors:,} errors; time left: {left}"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
