"""``fgclip-rt bench``: how fast a bundle is here, and what to expect of a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec.structs import replace

from fgclip_rt.benchmarks import advise, bench
from fgclip_rt.benchmarks.advice import Advice
from fgclip_rt.benchmarks.bench import PEERS, available_peers, check_device, usual_cases
from fgclip_rt.benchmarks.pipeline import measure_pipeline
from fgclip_rt.benchmarks.report import COLUMNS, cells, limit, milliseconds, problems, rate, unequal, verdicts
from fgclip_rt.benchmarks.results import Pipeline, Result
from fgclip_rt.benchmarks.task import Case, CheckpointName, Device

from ..bundle import Bundle
from ..errors import ArgumentError
from ..outputs import check_output, written_whole
from . import options
from .console import open_model, progress_bars, say, say_json, say_table, set_max_image_pixels, warn
from .inputs import find_images

_GRAPHS = ("vision", "text", "dense", "region")

#: Turns of files to vectors.
_TURNS = 3


def run(
    bundle: options.Bundle,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Images, or folders of them, to advise on and to embed; repeatable.  [default: none]"),
    ] = None,
    graph: Annotated[
        list[str] | None, typer.Option(help="vision, text, dense or region; repeatable.  [default: all]")
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(help="Patches, or tokens of texts; repeatable.  [default: the model's buckets and lengths]"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            help="Images, texts or boxes in a run; repeatable.  [default: 1, and 16 boxes; on cuda 1, 8 and 32]"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[
        list[str] | None, typer.Option(help="One of the bundle's precisions; repeatable.  [default: all]")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help=f"Run beside it, with the same weights: {', '.join(PEERS)}, or all; repeatable."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Where peers find the weights of a bundle whose weights are not random.")
    ] = None,
    weights: options.Weights = None,
    config: options.Config = None,
    tokenizer: options.Tokenizer = None,
    max_num_patches: options.MaxNumPatches = None,
    threads: options.Threads = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 9,
    seconds: Annotated[float, typer.Option(help="After so many a case has no further round.")] = 60.0,
    max_image_pixels: options.MaxImagePixels = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write everything to.")] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure a bundle on this machine, side by side with its peers in one run.

    Every contender has a process of its own, and they take turns; figures are medians, and beside each ratio stands
    between what half of the turns lie. The rate of matrix products is measured in the same turns.

    With --images, instead, read the sizes of images and say which buckets occur, what padding costs, which batches are
    fastest and how many images a second to expect, and embed those images.
    """
    named = _checkpoint(checkpoint, weights, config, tokenizer)
    if output is not None:
        check_output(output, overwrite)
    if images:
        if graph or length or batch or peer or checkpoint or device != "cpu":
            raise ArgumentError(
                "--images is measured by itself; leave out --graph, --length, --batch, --device, --peer and "
                "--checkpoint."
            )
        set_max_image_pixels(max_image_pixels)
        _advise(bundle, images, precision, max_num_patches, threads, rounds, seconds, output, json)
        return
    if max_num_patches is not None:
        raise ArgumentError("--max-num-patches goes with --images; give --length for cases.")
    measured = check_device(device)
    peers = available_peers(measured) if peer and "all" in peer else tuple(peer or ())
    with progress_bars() as begin:
        result = bench(
            bundle,
            _cases(Bundle.open(bundle, check_hashes=False), measured, graph, length, batch),
            device=measured,
            precisions=precision,
            peers=peers,
            checkpoint=named,
            threads=threads,
            rounds=rounds,
            seconds=seconds,
            begin=begin,
        )
    _write(output, result.to_json())
    if json:
        say_json(msgspec.to_builtins(result))
    else:
        _say_result(result)


def _cases(
    bundle: Bundle, device: Device, graphs: list[str] | None, lengths: list[int] | None, batches: list[int] | None
) -> list[Case]:
    """The usual cases, or those that were asked for."""
    for name in graphs or ():
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


def _checkpoint(model: str | None, *files: Path | None) -> CheckpointName | None:
    options.check_goes_with_checkpoint(model, *files)
    return None if model is None else CheckpointName(model, *(None if file is None else str(file) for file in files))


def _say_result(result: Result) -> None:
    machine = result.machine
    if "gpu" in machine:
        say(machine["gpu"])
    say(f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']}), {machine['memory available']} free")
    say(f"{result.bundle.name}, {result.tables[0].threads} threads, products of matrices {limit(result.tables[0])}")
    say_table("", COLUMNS, [row for table in result.tables for row in cells(table)])
    for line in (*problems(result.tables), *verdicts(result.tables)):
        say(line)
    for table, row in unequal(result.tables):
        warn(f"fgclip-rt: {row.contender} does not compute what the others do: {table.case}, cosine {row.cosine}")


def _advise(
    bundle: Path,
    images: list[Path],
    precision: list[str] | None,
    max_num_patches: int | None,
    threads: int | None,
    rounds: int,
    seconds: float,
    output: Path | None,
    json: bool,
) -> None:
    if precision and len(precision) > 1:
        raise ArgumentError("--images is measured in one precision; give one.")
    files = find_images(images)
    model = open_model(bundle, "cpu", precision[0] if precision else None, threads, None)
    with progress_bars() as begin:
        advice = advise(model, files, max_num_patches, rounds, seconds, begin)
        readable = [file for file in files if str(file) not in advice.unreadable]
        # As many as can be embedded in the time, twice to warm up and twice in each turn.
        count = max(1, int(seconds * advice.images_per_second / (2 + 2 * _TURNS)))
        sample = readable[:: max(1, len(readable) // count)]
        pipeline = measure_pipeline(model, sample, _TURNS, max_num_patches, begin("embed", _TURNS))
    found = {"advice": msgspec.to_builtins(advice), "pipeline": msgspec.to_builtins(pipeline)}
    _write(output, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    if json:
        say_json(found)
    else:
        _say_advice(advice, pipeline)


def _say_advice(advice: Advice, pipeline: Pipeline) -> None:
    for file in advice.unreadable:
        warn(f"fgclip-rt: {file} is not an image that Pillow can read; it was left out.")
    say_table(
        f"{advice.images} images",
        ("patches, at most", "images", "patches, mean", "batch size", "padding", "images a second", "alone"),
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
