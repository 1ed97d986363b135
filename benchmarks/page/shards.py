"""``make bench-shards``: jobs over shards, measured on this machine, and what larger ones would take."""

from __future__ import annotations

import argparse
import importlib.util
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from string import Template
from typing import Literal

import msgspec
import numpy as np
from PIL import Image

import fgclip_rt
from fgclip_rt.images import load_image
from fgclip_rt.machine import this_machine, usable_cores
from fgclip_rt.manifest import Strict
from fgclip_rt.shards import embed_shard, find_shards, make_job, open_store
from fgclip_rt.shards.job import Job, Marker
from fgclip_rt.shards.pool import run_processes
from fgclip_rt.shards.ray import run_ray
from fgclip_rt.shards.task import Failed, Setup, Task
from fgclip_rt.turns import take_turns, timed

from .readme import table

_PAGE = Template((Path(__file__).parent / "shards.md").read_text("utf-8"))

_MODEL = "fg-clip2-pocket"

#: Prints the peak memory in bytes of a process that does the shard in the first argument.
_PEAK = """
import sys
from fgclip_rt import load
from fgclip_rt.benchmarks.memory import peak_memory
from fgclip_rt.shards import embed_shard, find_shards, make_job, open_store
model = load(sys.argv[3])
store, job = open_store(sys.argv[2]), make_job(model.bundle, max_num_patches=4)
store.claim(job)
embed_shard(model, job, find_shards([sys.argv[1]], 1)[0], store)
print(peak_memory())
"""

#: Of an assumed photo, bytes of its file, and width and height in pixels.
_PHOTO = (100_000, 1024, 768)

#: Images of 256 patches a second and core of fg-clip2-base in fp32: one in 289 ms on two cores.
_RATE = 1 / 0.289 / 2

#: Numbers of images of the table of costs, and width D of a vector of fg-clip2-base.
_COSTS, _WIDTH = (10**6, 10**8, 10**10), 768


class Measured(Strict, frozen=True):
    """All figures.

    Attributes:
        cpu: the machine's CPU.
        cores: number of cores.
        images: images of the first comparisons.
        plain: seconds of ``embed_images``.
        shard: seconds of a shard of the same images.
        one: seconds of the command with one process.
        two: seconds with two.
        markers: number of shards of a finished job.
        resumed: seconds of the command that finds them done.
        peaks: bytes of memory by number of images in a shard.
        decoded: photos a second that one core decodes.
        workers: seconds of a process that does eight shards, each of an eighth of the images, with its start; None if
            Ray is not there, beside which it is measured.
        ray: the same of an actor of a Ray cluster that is there; None as above.
        ray_start: seconds that beginning and ending a cluster on this machine takes; None as above.
    """

    cpu: str
    cores: int
    images: int
    plain: float
    shard: float
    one: float
    two: float
    markers: int
    resumed: float
    peaks: dict[int, int]
    decoded: float
    workers: float | None = None
    ray: float | None = None
    ray_start: float | None = None
    format: Literal["fgclip-rt-bench-shards"] = "fgclip-rt-bench-shards"


#: The results, below the folder of the page.
RESULTS = Path("results", "shards", "fg-clip2-pocket.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results and the page."""
    parser = argparse.ArgumentParser(prog="make bench-shards", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of shards.md and results/shards/")
    parser.add_argument("--images", type=int, default=400, help="images of the comparisons")
    parser.add_argument("--turns", type=int, default=5, help="turns of each contender")
    parser.add_argument("--peaks", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="sizes of shards")
    parser.add_argument("--markers", type=int, default=10_000, help="shards of a finished job")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), options.images, options.turns, options.peaks, options.markers)
    path: Path = options.folder / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n")
    write(options.folder)


def write(folder: Path) -> None:
    """Write the page from the results in ``folder``."""
    measured = msgspec.json.decode((folder / RESULTS).read_bytes(), type=Measured)
    (folder / "shards.md").write_text(text(measured), encoding="utf-8")


def measure(folder: Path, images: int, turns: int, peaks: Sequence[int], markers: int) -> Measured:
    """Measure everything; ``folder`` takes what is made on the way."""
    model = fgclip_rt.load(_MODEL, device="cpu")
    files = [_photo(seed, 320, 240) for seed in range(images)]
    tars = [_tar(folder / f"{half}.tar", files[half::2]) for half in range(2)]
    whole = _tar(folder / "whole.tar", files)
    job = make_job(model.bundle)
    (shard,) = find_shards([str(whole)], 1)
    store = open_store(str(folder / "whole"))
    store.claim(job)

    def command(*more: object) -> Callable[[], object]:
        def run() -> None:
            for path in (folder / "out").glob("?.json"):
                path.unlink()
            _run(["embed-shards", _MODEL, *tars, "--output", folder / "out", *more])

        return run

    calls = _medians(
        turns, plain=lambda: model.embed_images(files), shard=lambda: embed_shard(model, job, shard, store)
    )
    commands = _medians(turns, one=command(), two=command("--processes", 2))
    workers = _workers(folder, files, turns, job)
    machine = this_machine()
    return Measured(
        machine.cpu,
        usable_cores(),
        images,
        calls["plain"],
        calls["shard"],
        commands["one"],
        commands["two"],
        markers,
        _resume(folder, markers),
        {count: _peak(folder, count) for count in peaks},
        _decoding(),
        *workers,
    )


class _Unreported:
    """Is told how the work goes, and ends it at the first shard that cannot be done."""

    def step(self, rows: int, errors: int) -> None:
        pass

    def ended(self, outcome: Marker | Failed) -> None:
        if isinstance(outcome, Failed):
            raise outcome.error


def _workers(folder: Path, files: Sequence[bytes], turns: int, job: Job) -> tuple[float, float, float] | tuple[()]:
    """Seconds of a process and of an actor for the same shards, and of a cluster without work; nothing without Ray."""
    if importlib.util.find_spec("ray") is None:
        return ()
    import ray

    tars = [str(_tar(folder / f"eighth-{number}.tar", files[number::8])) for number in range(8)]
    tasks = [Task(shard) for shard in find_shards(tars, 1)]
    setup = Setup(str(folder / "workers"), job, _MODEL, "cpu", 1)
    open_store(setup.output).claim(job)

    def anew(run: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            for task in tasks:
                Path(setup.output, f"{task.shard.name}.json").unlink(missing_ok=True)
            run()

        return call

    process = anew(lambda: run_processes(setup, tasks, 1, _Unreported()))

    def begin() -> None:
        ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)

    def begin_and_end() -> None:
        begin()
        ray.shutdown()

    start = timed(begin_and_end)
    begin()
    try:
        found = _medians(turns, process=process, ray=anew(lambda: run_ray(setup, tasks, _Unreported())))
    finally:
        ray.shutdown()
    return found["process"], found["ray"], start


def text(measured: Measured) -> str:
    """The page."""
    figures = [
        ["rate of a shard, by that of `embed_images`", f"{measured.plain / measured.shard:.2f}"],
        ["rate of two processes, by that of one, with their starts", f"{measured.one / measured.two:.2f}"],
        [f"a finished job of {measured.markers:,} shards is found done in", f"{measured.resumed:.1f} s"],
    ]
    if measured.workers is not None and measured.ray is not None and measured.ray_start is not None:
        figures += [
            [
                "eight shards by one process, with its start",
                f"{measured.workers:.1f} s",
            ],
            ["the same by one actor of Ray, with its start in a cluster that is there", f"{measured.ray:.1f} s"],
            ["a cluster of Ray on this machine begins and ends in", f"{measured.ray_start:.1f} s"],
        ]
    peaks = [[f"{count:,}", f"{size / 2**20:,.0f} MiB"] for count, size in measured.peaks.items()]
    columns = ["images", "core-hours of the model", "core-hours of decoding", "read", "vectors"]
    return _PAGE.substitute(
        model=_MODEL,
        cpu=measured.cpu,
        cores=measured.cores,
        images=measured.images,
        figures="\n".join(table(["figure", "measured"], figures)),
        peaks="\n".join(table(["images", "peak"], peaks)),
        decoded=f"{measured.decoded:.0f}",
        rate=f"{_RATE:.1f}",
        times=f"{measured.decoded / _RATE:.0f}",
        costs="\n".join(table(columns, _costs(measured.decoded))),
    )


def _costs(decoded: float) -> list[list[str]]:
    rows = []
    for count in _COSTS:
        model, decoding = count / _RATE / 3600, count / decoded / 3600
        read, written = count * _PHOTO[0] / 1e12, count * _WIDTH * 2 / 1e9
        rows.append([f"{count:,}", f"{model:,.0f}", f"{decoding:,.1f}", f"{read:,.1f} TB", f"{written:,.1f} GB"])
    return rows


def _photo(seed: int, width: int, height: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _tar(path: Path, files: Sequence[bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(files):
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _medians(turns: int, **contenders: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each contender by name; they take turns."""
    measured = take_turns({name: partial(timed, run) for name, run in contenders.items()}, turns)
    return {name: median(seconds) for name, seconds in measured.items()}


def _run(words: Sequence[object]) -> str:
    command = [sys.executable, "-m", "fgclip_rt", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _resume(folder: Path, count: int) -> float:
    """Seconds to find a finished job of many shards done."""
    listed, output = folder / "list.txt", folder / "listed"
    listed.write_text("".join(f"{number}.jpg\n" for number in range(count)))
    model = fgclip_rt.load(_MODEL, device="cpu")
    open_store(str(output)).claim(make_job(model.bundle))
    for shard in find_shards([str(listed)], 1):
        marker = Marker(
            shard=shard.name,
            source=shard.source,
            stamp=shard.stamp,
            rows=1,
            errors={},
            unrotated=0,
            seconds=1.0,
            images_per_second=1.0,
            manifest_sha256=model.bundle.manifest_sha256,
            precision=model.precision,
            fgclip_rt=fgclip_rt.__version__,
        )
        (output / f"{shard.name}.json").write_bytes(msgspec.json.encode(marker))
    return timed(lambda: _run(["embed-shards", _MODEL, listed, "--output", output, "--shard-size", 1]))


def _peak(folder: Path, count: int) -> int:
    # They are as small as they can be, so that a hundred thousand take minutes and not hours.
    photos = [_photo(seed, 8, 8) for seed in range(100)]
    path = _tar(folder / f"{count}.tar", [photos[number % len(photos)] for number in range(count)])
    command = [sys.executable, "-c", _PEAK, str(path), str(folder / f"peak-{count}"), _MODEL]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _decoding() -> float:
    """Photos of the assumed size that one thread decodes a second."""
    photo = _photo(0, *_PHOTO[1:])
    return 1 / median(timed(lambda: load_image(photo)) for _ in range(20))


if __name__ == "__main__":
    main()
