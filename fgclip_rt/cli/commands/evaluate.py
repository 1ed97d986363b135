"""``fgclip-rt evaluate``: whether a bundle still means something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click

from ...answers import (
    Benchmarked,
    BenchmarkedBeside,
    BenchmarkFlips,
    Counted,
    Evaluated,
    EvaluatedBeside,
    Flipped,
    Share,
)
from ...errors import ArgumentError
from ...evaluation.benchmarks import BENCHMARKS, SCENES, benchmark_by
from ...evaluation.data import Protocol
from ...evaluation.measures import MEASURES, flips
from ...evaluation.running import check_limit
from ...evaluation.scenes import Evaluation, check_scenes, lacking
from ...evaluation.scenes import evaluate as evaluate_model
from ...model import Model
from ...outputs import check_output, written_whole
from ...pocket.captions import LANGUAGES
from .. import options
from ..benchmarking import ClassTexts, Counting, measure_benchmark, measure_pairs
from ..evaluation_page import benchmark_page, figure_cells, scenes_page, settings_in_words
from ..options import Loading, Loadings
from ..output import Column, names, numbers, say, say_json, say_table, warn, words
from ..progress import progress_bars
from ..status import Command

_PROTOCOLS = get_args(Protocol)


@click.command(cls=Command)
@options.loadings
@click.option(
    "--benchmark",
    default=SCENES,
    shell_complete=options.completed((SCENES, *BENCHMARKS)),
    help=f"{SCENES}, which are drawn, or a benchmark whose files --data holds: {', '.join(BENCHMARKS)}.",
)
@click.option("--data", type=options.PATH, help="Folder of the benchmark's files, as downloaded.  [default: none]")
@click.option(
    "--pairs", type=options.PATH, help="CSV file of image,text[,box], measured instead of a benchmark.  [default: none]"
)
@click.option("--limit", type=int, help="Take only the first images, or boxes.  [default: all]")
@click.option(
    "--protocol",
    default="official",
    shell_complete=options.completed(_PROTOCOLS),
    help="official counts as the released scripts do; strict counts ties as wrong.",
)
@click.option(
    "--templates",
    type=options.PATH,
    help="Text file of templates of the classes' texts, one a line, {} for the class.  [default: none]",
)
@click.option(
    "--class-vectors",
    type=options.PATH,
    help=".npy file of classes' vectors, instead of templates.  [default: none]",
)
@click.option(
    "--work", type=options.PATH, help="Folder that keeps vectors, so that a stopped run goes on.  [default: none]"
)
@click.option("--scenes", default=500, help="Number of scenes to draw, a multiple of 100.")
@click.option("--seed", default=0, help="Seed of the first scene.")
@click.option("--report", type=options.PATH, help="Also write a page of HTML.  [default: none]")
@options.overwrite
@options.json
def run(
    loadings: Loadings,
    benchmark: str,
    data: Path | None,
    pairs: Path | None,
    limit: int | None,
    protocol: Protocol,
    templates: Path | None,
    class_vectors: Path | None,
    work: Path | None,
    scenes: int,
    seed: int,
    report: Path | None,
    overwrite: bool,
    json: bool,
) -> None:
    """Count a bundle's right choices on drawn scenes, on a public benchmark or on pairs of your own.

    Scenes: retrieval of short and long captions among 100, names of regions, true captions against false ones, and
    dense maps, in English and Chinese. They measure bundles of fg-clip2-pocket, which was not trained on these scenes;
    other models never saw such scenes. Nothing is downloaded: docs/evaluation.md lists the files of each benchmark.

    With several precisions, the others are compared with the first on the same inputs: how many right choices they
    lose and gain, and how often equally good models would differ so much (McNemar's test).
    """
    check_limit(limit)
    if report is not None:
        check_output(report, overwrite, "--report")
    classes, counting = ClassTexts(templates, class_vectors), Counting(limit, protocol, work)
    if protocol not in _PROTOCOLS:
        raise ArgumentError(f"--protocol {protocol!r} is unknown; choose {' or '.join(_PROTOCOLS)}.")
    if pairs is not None:
        if benchmark != SCENES or data is not None:
            raise ArgumentError("--pairs takes the place of --benchmark and --data; give one or the other.")
        classes.refuse("--pairs")
        answer = measure_pairs(loadings, pairs, counting)
    elif benchmark != SCENES:
        settings = benchmark_by(benchmark)
        if data is None:
            raise ArgumentError(f"--benchmark {benchmark} has files; give their folder with --data.")
        answer = measure_benchmark(loadings, benchmark, settings, data, counting, classes)
    else:
        if data is not None or limit is not None or work is not None:
            raise ArgumentError("--data, --limit and --work go with files; name them with --benchmark or --pairs.")
        classes.refuse("drawn scenes")
        seen = _evaluate_scenes(loadings, scenes, seed)
        _write(report, scenes_page(seen))
        if json:
            say_json(seen)
        else:
            _say(seen)
        return
    _write(report, benchmark_page(answer))
    if json:
        say_json(answer)
    else:
        _say_benchmark(answer)


def _write(report: Path | None, page: str) -> None:
    """Write the report, if one is asked for.

    Raises:
        OutputError: it cannot be written.
    """
    if report is not None:
        with written_whole(report) as partial:
            partial.write_text(page, encoding="utf-8")


def _say_benchmark(answer: Benchmarked) -> None:
    say_table(
        f"right choices on {answer.benchmark} ({answer.precision}, {answer.backend})",
        (names("figure"), *map(numbers, ("right", "of", "share", "95 % interval", "published", "difference"))),
        map(figure_cells, answer.figures),
    )
    for other in answer.others:
        _say_flips(answer.precision, other, [names("figure")], [(flip.name,) for flip in other.figures])
    say("settings: " + "; ".join(f"{name} {value}" for name, value in settings_in_words(answer.settings).items()))
    if answer.caveat is not None:
        say(f"published figures: {answer.caveat}")


def _evaluate_scenes(loadings: Loadings, scenes: int, seed: int) -> Evaluated:
    check_scenes(scenes)
    first, *others = loadings.each()
    model, result = _see(first, scenes, seed)
    return Evaluated(
        bundle=str(loadings.bundle),
        backend=str(model.backend),
        precision=model.precision,
        scenes=result.scenes,
        seed=result.seed,
        figures=[
            Share(figure.measure, figure.language, figure.right, figure.total, figure.chance, figure.share)
            for figure in result.figures
        ],
        true_before_false_by_change={change: Counted(*counts) for change, counts in result.by_change.items()},
        others=[_see_beside(result, other, scenes, seed) for other in others],
    )


def _see(loading: Loading, scenes: int, seed: int) -> tuple[Model, Evaluation]:
    """A model, and its choices on scenes."""
    model = loading.open()
    if model.manifest.model.weights != "shipped":
        warn(
            "fgclip-rt: only fg-clip2-pocket was made for these scenes; other models can do little better than chance."
        )
    for what, measures in lacking(model).items():
        warn(f"fgclip-rt: {model.manifest.model.name} has no {what}, so {' and '.join(measures)} cannot be measured.")
    with progress_bars() as begin:
        return model, evaluate_model(model, scenes, seed, done=begin(f"evaluate {model.precision}", scenes))


def _see_beside(result: Evaluation, loading: Loading, scenes: int, seed: int) -> EvaluatedBeside:
    """The choices of another precision on the same scenes, beside those of ``result``."""
    model, other = _see(loading, scenes, seed)
    figures = [
        Flipped(figure.measure, figure.language, figure.share, **asdict(flips(exact.choices, figure.choices)))
        for exact, figure in zip(result.figures, other.figures, strict=True)
    ]
    return EvaluatedBeside(model.precision, str(model.backend), figures)


def _say(answer: Evaluated) -> None:
    shares = {(figure.measure, figure.language): figure for figure in answer.figures}
    say_table(
        f"right choices on {answer.scenes} scenes ({answer.precision}, {answer.backend})",
        (words("measure"), *map(numbers, LANGUAGES), numbers("by chance")),
        [
            (
                measure,
                *(f"{shares[measure, language].share:.1%}" for language in LANGUAGES),
                f"{shares[measure, LANGUAGES[0]].chance:.1%}",
            )
            for measure in MEASURES
            if (measure, LANGUAGES[0]) in shares
        ],
    )
    changes = answer.true_before_false_by_change.items()
    counted = ", ".join(f"{change} {count.right}/{count.total}" for change, count in changes)
    say(f"true before false caption, by what was changed: {counted}")
    for other in answer.others:
        labels = [(flip.measure, flip.language) for flip in other.figures]
        _say_flips(answer.precision, other, [words("measure"), words("language")], labels)


def _say_flips(
    precision: str,
    other: BenchmarkedBeside | EvaluatedBeside,
    columns: Sequence[Column],
    labels: Sequence[tuple[str, ...]],
) -> None:
    """Say which choices another precision makes otherwise than ``precision``; each row has a label in ``columns``."""
    figures: Sequence[BenchmarkFlips | Flipped] = other.figures
    say_table(
        f"choices of {other.precision} that are not those of {precision} ({other.backend})",
        (*columns, *map(numbers, ("share", "lost", "gained", "p"))),
        [
            (*label, f"{flip.share:.1%}", f"{flip.lost:,}", f"{flip.gained:,}", f"{flip.p_value:.3f}")
            for label, flip in zip(labels, figures, strict=True)
        ],
    )
