"""``fgclip-rt evaluate``: whether a bundle still means something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click
import msgspec

from ...answers import Benchmarked, BenchmarkFigure, BenchmarkFlips, BenchmarkSettings, Counted, Evaluated, Share
from ...errors import ArgumentError
from ...evaluation.benchmarks import BENCHMARKS, SCENES, Benchmark, benchmark_by, caveat, published
from ...evaluation.data import Captions, Protocol
from ...evaluation.measures import MEASURES, mcnemar
from ...evaluation.readers import read_pairs
from ...evaluation.running import Rate, check_limit, measure_captions, measure_regions
from ...evaluation.scenes import check_scenes, lacking
from ...evaluation.scenes import evaluate as evaluate_model
from ...model import Model
from ...pocket.captions import LANGUAGES
from ...progress import BeginStage
from .. import options
from ..options import Loading
from ..output import names, numbers, say, say_json, say_table, warn, words
from ..progress import progress_bars
from ..status import Command

_PROTOCOLS = get_args(Protocol)

#: Cutoffs of a user's own pairs.
_PAIR_CUTOFFS = (1, 5, 10)

#: Kinds of weights that published figures may be of.
_RELEASED = ("released", "local")


@click.command(cls=Command)
@options.loading
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
    "--against",
    shell_complete=options.completed(options.PRECISIONS),
    help="Another precision on the same inputs; counts the choices that it changes.  [default: none]",
)
@click.option("--scenes", default=500, help="Number of scenes to draw, a multiple of 100.")
@click.option("--seed", default=0, help="Seed of the first scene.")
@options.json
def run(
    loading: Loading,
    benchmark: str,
    data: Path | None,
    pairs: Path | None,
    limit: int | None,
    protocol: Protocol,
    against: str | None,
    scenes: int,
    seed: int,
    json: bool,
) -> None:
    """Count a bundle's right choices on drawn scenes, on a public benchmark or on pairs of your own.

    Scenes: retrieval of short and long captions among 100, names of regions, true captions against false ones, and
    dense maps, in English and Chinese. They measure bundles of fg-clip2-pocket, which was not trained on these scenes;
    other models never saw such scenes. Nothing is downloaded: docs/evaluation.md lists the files of each benchmark.
    """
    check_limit(limit)
    if protocol not in _PROTOCOLS:
        raise ArgumentError(f"--protocol {protocol!r} is unknown; choose {' or '.join(_PROTOCOLS)}.")
    if pairs is not None:
        if benchmark != SCENES or data is not None:
            raise ArgumentError("--pairs takes the place of --benchmark and --data; give one or the other.")
        answer = _evaluate_pairs(loading, pairs, limit, protocol, against)
    elif benchmark != SCENES:
        settings = benchmark_by(benchmark)
        if data is None:
            raise ArgumentError(f"--benchmark {benchmark} has files; give their folder with --data.")
        answer = _evaluate_benchmark(loading, benchmark, settings, data, limit, protocol, against)
    else:
        if data is not None or limit is not None or against is not None:
            raise ArgumentError("--data, --limit and --against go with files; name them with --benchmark or --pairs.")
        _evaluate_scenes(loading, scenes, seed, json=json)
        return
    if json:
        say_json(answer)
    else:
        _say_benchmark(answer)


def _evaluate_benchmark(
    loading: Loading,
    name: str,
    benchmark: Benchmark,
    folder: Path,
    limit: int | None,
    protocol: Protocol,
    against: str | None,
) -> Benchmarked:
    data = benchmark.read(folder).first(limit)

    def measure(model: Model, begin: BeginStage) -> list[Rate]:
        cutoffs = benchmark.cutoffs
        if isinstance(data, Captions):
            done = begin("images", len(data.images))
            return measure_captions(model, data, benchmark.walk_type, cutoffs, protocol, done)
        done = begin("boxes", len(data.regions))
        return measure_regions(model, data, cutoffs, protocol, skips_boxes=benchmark.skips_boxes, done=done)

    model, rates, flips = _run(loading, against, measure)
    info = model.manifest.model
    known = published(info.name, name) if info.weights in _RELEASED else {}
    comparable = limit is None and protocol == "official"
    figures = [_figure(rate, known.get(rate.name), comparable=comparable) for rate in rates]
    settings = _settings(model, (benchmark.walk_type,), benchmark.lowercase, limit, protocol)
    return _answer(
        loading,
        model,
        name,
        folder,
        settings,
        figures,
        caveat(info.name, info.weights) if known else None,
        against,
        flips,
    )


def _evaluate_pairs(
    loading: Loading, file: Path, limit: int | None, protocol: Protocol, against: str | None
) -> Benchmarked:
    captions, regions = read_pairs(file)
    captions = None if captions is None else captions.first(limit)
    regions = None if regions is None else regions.first(limit)

    def measure(model: Model, begin: BeginStage) -> list[Rate]:
        rates: list[Rate] = []
        if captions is not None:
            done = begin("images", len(captions.images))
            rates += measure_captions(model, captions, "short", _PAIR_CUTOFFS, protocol, done)
        if regions is not None:
            done = begin("boxes", len(regions.regions))
            rates += measure_regions(model, regions, _PAIR_CUTOFFS, protocol, done=done)
        return rates

    model, rates, flips = _run(loading, against, measure)
    kinds = tuple(kind for kind, part in (("short", captions), ("box", regions)) if part is not None)
    settings = _settings(model, kinds, None, limit, protocol)
    return _answer(loading, model, "pairs", file, settings, [_figure(rate) for rate in rates], None, against, flips)


def _run(
    loading: Loading, against: str | None, measure: Callable[[Model, BeginStage], list[Rate]]
) -> tuple[Model, list[Rate], list[BenchmarkFlips]]:
    """The model, its figures, and the choices that flip in the other precision."""
    model = loading.open()
    # Opened before the work, so that a precision that is missing is refused at once.
    other = None if against is None else msgspec.structs.replace(loading, precision=against).open()
    with progress_bars() as begin:
        rates = measure(model, begin)
        if other is None:
            return model, rates, []
        pairs = zip(rates, measure(other, begin), strict=True)
        return model, rates, [_flips(rate, compared) for rate, compared in pairs]


def _flips(rate: Rate, other: Rate) -> BenchmarkFlips:
    lost, gained = int((rate.rights & ~other.rights).sum()), int((other.rights & ~rate.rights).sum())
    return BenchmarkFlips(rate.name, other.share, lost, gained, mcnemar(lost, gained))


def _settings(
    model: Model, walk_types: tuple[str, ...], script_lowercase: bool | None, limit: int | None, protocol: Protocol
) -> BenchmarkSettings:
    text = model.manifest.text
    return BenchmarkSettings(
        protocol=protocol,
        limit=limit,
        walk_types={name: text.walk_types[name].length for name in walk_types},
        lowercase=text.lowercase,
        script_lowercase=script_lowercase,
        images=str(model.manifest.image),
    )


def _answer(
    loading: Loading,
    model: Model,
    name: str,
    data: Path,
    settings: BenchmarkSettings,
    figures: list[BenchmarkFigure],
    note: str | None,
    against: str | None,
    flips: list[BenchmarkFlips],
) -> Benchmarked:
    return Benchmarked(
        bundle=str(loading.bundle),
        backend=str(model.backend),
        precision=model.precision,
        benchmark=name,
        data=str(data),
        settings=settings,
        figures=figures,
        caveat=note,
        against=against,
        flips=flips,
    )


def _figure(rate: Rate, known: float | None = None, *, comparable: bool = False) -> BenchmarkFigure:
    difference = 100 * rate.share - known if known is not None and comparable else None
    return BenchmarkFigure(
        rate.name, rate.right, rate.total, rate.share, rate.low, rate.high, published=known, difference=difference
    )


def _say_benchmark(answer: Benchmarked) -> None:
    say_table(
        f"right choices on {answer.benchmark} ({answer.precision}, {answer.backend})",
        (names("figure"), *map(numbers, ("right", "of", "share", "95 % interval", "published", "difference"))),
        [
            (
                figure.name,
                f"{figure.right:,}",
                f"{figure.total:,}",
                f"{figure.share:.1%}",
                f"{100 * figure.low:.1f} to {figure.high:.1%}",
                "" if figure.published is None else f"{figure.published:.1f}%",
                "" if figure.difference is None else f"{figure.difference:+.1f}",
            )
            for figure in answer.figures
        ],
    )
    if answer.against is not None:
        say_table(
            f"choices that {answer.against} changes",
            (names("figure"), *map(numbers, ("share", "lost", "gained", "p"))),
            [
                (flips.name, f"{flips.share:.1%}", f"{flips.lost:,}", f"{flips.gained:,}", f"{flips.p_value:.3f}")
                for flips in answer.flips
            ],
        )
    settings = answer.settings
    texts = ", ".join(f"{name} texts of {length} tokens" for name, length in settings.walk_types.items())
    limit = "all inputs" if settings.limit is None else f"the first {settings.limit:,}"
    case = "lower case" if settings.lowercase else "case kept"
    say(f"settings: {settings.protocol} protocol, {limit}, {texts}, {case}, images {settings.images}")
    if settings.script_lowercase is False and settings.lowercase:
        say("The released script keeps the case of these texts, and this bundle lower-cases them.")
    if answer.caveat is not None:
        say(f"published figures: {answer.caveat}")


def _evaluate_scenes(loading: Loading, scenes: int, seed: int, *, json: bool) -> None:
    check_scenes(scenes)
    model = loading.open()
    if model.manifest.model.weights != "shipped":
        warn(
            "fgclip-rt: only fg-clip2-pocket was made for these scenes; other models can do little better than chance."
        )
    for what, measures in lacking(model).items():
        warn(f"fgclip-rt: {model.manifest.model.name} has no {what}, so {' and '.join(measures)} cannot be measured.")
    with progress_bars() as begin:
        result = evaluate_model(model, scenes, seed, done=begin("evaluate", scenes))
    answer = Evaluated(
        bundle=str(loading.bundle),
        backend=str(model.backend),
        precision=model.precision,
        scenes=result.scenes,
        seed=result.seed,
        figures=[Share(**asdict(figure), share=figure.share) for figure in result.figures],
        true_before_false_by_change={change: Counted(*counts) for change, counts in result.by_change.items()},
    )
    if json:
        say_json(answer)
    else:
        _say(answer)


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
