"""``fgclip-rt bench``: how fast a bundle is here, and what to expect of a folder of images."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from msgspec.structs import replace

from fgclip_rt.benchmarks import advise, bench
from fgclip_rt.benchmarks.advice import Advice
from fgclip_rt.benchmarks.bench import DEVICES, PEERS, available_peers, check_device, usual_cases
from fgclip_rt.benchmarks.pipeline import measure_pipeline
from fgclip_rt.benchmarks.report import cells, limit, milliseconds, problems, rate, unequal, verdicts
from fgclip_rt.benchmarks.results import Pipeline, Result
from fgclip_rt.benchmarks.task import Case, CheckpointName, Device

from ...answers import Answer
from ...bundle import Bundle
from ...errors import ArgumentError
from ...names import spell_path
from ...outputs import check_output, written_whole
from .. import options
from ..inputs import find_images
from ..options import Loading, WeightFiles
from ..output import numbers, say, say_json, say_table, warn, words
from ..progress import progress_bars
from ..status import Command

_GRAPHS = ("vision", "text", "dense", "region")

#: Of :func:`fgclip_rt.benchmarks.report.cells`, in fewer characters than on a page.
_COLUMNS = (
    words("case"),
    words("contender"),
    numbers("median"),
    numbers("a second"),
    numbers("of first's"),
    numbers("of rate"),
    numbers("memory"),
)

#: Turns of files to vectors.
_TURNS = 3


class Expected(Answer, frozen=True):
    """The rates to expect of a folder of images, and the time that files take to become vectors."""

    advice: Advice
    pipeline: Pipeline


@click.command(cls=Command)
@options.bundle
@click.option(
    "--images",
    multiple=True,
    type=options.PATH,
    help="Images, or folders of them, to advise on and to embed; repeatable.  [default: none]",
)
@click.option(
    "--graph",
    multiple=True,
    shell_complete=options.completed(_GRAPHS),
    help="vision, text, dense or region; repeatable.  [default: all]",
)
@click.option(
    "--length",
    multiple=True,
    type=int,
    help="Patches, or tokens of texts; repeatable.  [default: the model's buckets and lengths]",
)
@click.option(
    "--batch",
    multiple=True,
    type=int,
    help="Images, texts or boxes in a run; repeatable.  [default: 1, and 16 boxes; on cuda 1, 8 and 32]",
)
@click.option("--device", default="cpu", shell_complete=options.completed(DEVICES), help="cpu or cuda.")
@click.option(
    "--precision",
    multiple=True,
    shell_complete=options.completed(options.PRECISIONS),
    help="One of the bundle's precisions; repeatable.  [default: all]",
)
@click.option(
    "--peer",
    multiple=True,
    shell_complete=options.completed((*PEERS, "all")),
    help=f"Run beside it, with the same weights: {', '.join(PEERS)}, or all; repeatable.",
)
@click.option("--checkpoint", help="Where peers find the weights of a bundle whose weights are not random.")
@options.weight_files
@options.max_num_patches
@options.threads
@click.option("--rounds", default=9, help="How often each contender is timed on a case.")
@click.option("--no-end-to-end", is_flag=True, help="On cuda, leave out the cases from images to vectors.")
@click.option("--seconds", default=60.0, help="Stop adding rounds to a case after this many seconds.")
@options.max_image_pixels
@click.option("--output", type=options.PATH, help="JSON file to write everything to.")
@options.overwrite
@options.json
def run(
    bundle: Path,
    images: tuple[Path, ...],
    graph: tuple[str, ...],
    length: tuple[int, ...],
    batch: tuple[int, ...],
    device: str,
    precision: tuple[str, ...],
    peer: tuple[str, ...],
    checkpoint: str | None,
    files: WeightFiles,
    max_num_patches: int | None,
    threads: int | None,
    rounds: int,
    no_end_to_end: bool,
    seconds: float,
    max_image_pixels: int | None,
    output: Path | None,
    overwrite: bool,
    json: bool,
) -> None:
    """Measure how fast a bundle is on this machine, beside its peers.

    Every contender has a process of its own on the CPU, and they take turns; figures are medians, and beside each ratio
    stands between what half of the turns lie. The rate of matrix products is measured in the same turns.

    With --images, instead, read the sizes of images and say which buckets occur, what padding costs, which batches are
    fastest and how many images a second to expect, and embed those images.
    """
    named = _checkpoint(checkpoint, files)
    if output is not None:
        check_output(output, overwrite)
    if images:
        if graph or length or batch or peer or checkpoint or device != "cpu":
            raise ArgumentError(
                "--images is measured by itself; leave out --graph, --length, --batch, --device, --peer and "
                "--checkpoint."
            )
        options.limit_pixels(max_image_pixels)
        if len(precision) > 1:
            raise ArgumentError("--images is measured in one precision; give one.")
        loading = Loading(bundle, "cpu", precision[0] if precision else None, threads, None)
        expected = _expect(loading, images, max_num_patches, rounds, seconds)
        _write(output, msgspec.json.format(msgspec.json.encode(expected), indent=1) + b"\n")
        if json:
            say_json(expected)
        else:
            _say_expected(expected)
        return
    if max_num_patches is not None:
        raise ArgumentError("--max-num-patches goes with --images; give --length for cases.")
    measured = check_device(device)
    cases = _cases(Bundle.open(bundle, check_hashes=False), measured, graph, length, batch)
    peers = available_peers(measured) if "all" in peer else peer
    with progress_bars() as begin:
        result = bench(
            bundle,
            [case for case in cases if not (no_end_to_end and case.end_to_end)],
            device=measured,
            precisions=list(precision) or None,
            peers=peers,
            checkpoint=named,
            threads=threads,
            rounds=rounds,
            seconds=seconds,
            begin=begin,
            # A run of half an hour that is interrupted keeps what it has measured.
            measured=lambda result: _write(output, result.to_json()),
        )
    if json:
        say_json(result)
    else:
        _say_result(result)


def _cases(
    bundle: Bundle, device: Device, graphs: tuple[str, ...], lengths: tuple[int, ...], batches: tuple[int, ...]
) -> list[Case]:
    """The usual cases, or those that were asked for."""
    for name in graphs:
        if name not in _GRAPHS:
            raise ArgumentError(f"graph {name!r} cannot be measured; choose from {', '.join(_GRAPHS)}.")
        if name not in bundle.manifest.graphs:
            raise ArgumentError(f"this bundle has no {name} graph; choose from {', '.join(bundle.manifest.graphs)}.")
    cases = [case for case in usual_cases(bundle, device) if not graphs or case.graph in graphs]
    # Those that differed in what was asked for only are the same case now.
    if lengths:
        cases = list(dict.fromkeys(replace(case, length=length) for case in cases for length in lengths))
    if batches:
        cases = list(dict.fromkeys(replace(case, batch=batch) for case in cases for batch in batches))
    if any(min(case.length, case.batch) < 1 for case in cases):
        raise ArgumentError("--length and --batch are numbers of things; give positive ones.")
    return cases


def _checkpoint(model: str | None, files: WeightFiles) -> CheckpointName | None:
    files.check_goes_with(model)
    local = (files.weights, files.config, files.tokenizer, files.processor)
    return None if model is None else CheckpointName(model, *(None if file is None else str(file) for file in local))


def _say_result(result: Result) -> None:
    machine = result.machine
    if "gpu" in machine:
        say(machine["gpu"])
    say(f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']}), {machine['memory available']} free")
    say(f"{result.bundle.name}, {result.tables[0].threads} threads, products of matrices {limit(result.tables[0])}")
    say_table("", _COLUMNS, [row for table in result.tables for row in cells(table)])
    for line in (*problems(result.tables), *verdicts(result.tables)):
        say(line)
    for table, row in unequal(result.tables):
        warn(f"fgclip-rt: {row.contender} does not compute what the others do: {table.case}, cosine {row.cosine}")


def _expect(
    loading: Loading, images: tuple[Path, ...], max_num_patches: int | None, rounds: int, seconds: float
) -> Expected:
    files = [Path(file) for file in find_images(images).files]
    model = loading.open()
    with progress_bars() as begin:
        advice = advise(model, files, max_num_patches, rounds, seconds, begin)
        readable = [file for file in files if spell_path(file) not in advice.unreadable]
        # As many as can be embedded in the time, twice to warm up and twice in each turn.
        count = max(1, int(seconds * advice.images_per_second / (2 + 2 * _TURNS)))
        step = max(1, len(readable) // count)
        # The others stand in for those of the sample that turn out to be damaged.
        spread = [file for first in range(step) for file in readable[first::step]]
        pipeline = measure_pipeline(model, spread, _TURNS, max_num_patches, begin("embed", _TURNS), most=count)
    return Expected(advice, pipeline)


def _say_expected(expected: Expected) -> None:
    advice, pipeline = expected.advice, expected.pipeline
    for file in (*advice.unreadable, *pipeline.unreadable):
        warn(f"fgclip-rt: {file} is not an image that can be read; it was left out.")
    say_table(
        f"{advice.images} images",
        tuple(map(numbers, ("bucket", "images", "patches", "batch", "padding", "images/s", "alone/s"))),
        [
            (
                f"{each.bucket:,}",
                f"{each.images:,}",
                f"{each.patches:.0f}",
                str(each.batch_size),
                f"{each.padding[each.batch_size]:.1%}",
                rate(each.rates[each.batch_size]),
                rate(each.rates[1]),
            )
            for each in advice.buckets
        ],
    )
    say(
        f"expect {rate(advice.images_per_second)} images a second with each bucket in its own batches, "
        f"{rate(advice.images_per_second_of_it)} with --batch-size {advice.batch_size} for all"
    )
    total = sum(pipeline.stages.values())
    stages = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in pipeline.stages.items())
    say(f"{pipeline.images} files one after the other: {milliseconds(total / pipeline.images)} each, of which {stages}")
    say(f"from files to vectors: {pipeline.share} of the images a second that the model alone embeds")


def _write(output: Path | None, content: bytes) -> None:
    if output is not None:
        with written_whole(output) as partial:
            partial.write_bytes(content)
