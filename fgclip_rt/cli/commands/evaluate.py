"""``fgclip-rt evaluate``: whether a bundle still means something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ...answers import (
    BenchmarkClass,
    Benchmarked,
    BenchmarkedBeside,
    BenchmarkFigure,
    BenchmarkFlips,
    BenchmarkSettings,
    Counted,
    Evaluated,
    EvaluatedBeside,
    Flipped,
    Share,
)
from ...arrays import FloatArray
from ...errors import ArgumentError
from ...evaluation.benchmarks import BENCHMARKS, SCENES, Benchmark, benchmark_by, caveat, published
from ...evaluation.data import Captions, LabelledImages, Protocol, Regions
from ...evaluation.embedding import embed_classes, fixed_patches, read_class_vectors
from ...evaluation.keeping import Keeping, kept
from ...evaluation.measures import MEASURES, flips
from ...evaluation.readers import read_pairs
from ...evaluation.running import Rate, check_limit, measure_captions, measure_images, measure_regions
from ...evaluation.scenes import Evaluation, check_scenes, lacking
from ...evaluation.scenes import evaluate as evaluate_model
from ...evaluation.templates import read_templates
from ...model import Model
from ...outputs import check_output, written_whole
from ...pocket.captions import LANGUAGES
from ...progress import BeginStage
from .. import options
from ..evaluation_page import benchmark_page, scenes_page, settings_in_words
from ..options import Loading, Loadings
from ..output import Column, names, numbers, say, say_json, say_table, warn, words
from ..progress import progress_bars
from ..status import Command

_PROTOCOLS = get_args(Protocol)

#: Cutoffs of a user's own pairs.
_PAIR_CUTOFFS = (1, 5, 10)

#: Kinds of weights that published figures may be of.
_RELEASED = ("released", "local")


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
    classes = _ClassTexts(templates, class_vectors)
    if protocol not in _PROTOCOLS:
        raise ArgumentError(f"--protocol {protocol!r} is unknown; choose {' or '.join(_PROTOCOLS)}.")
    if pairs is not None:
        if benchmark != SCENES or data is not None:
            raise ArgumentError("--pairs takes the place of --benchmark and --data; give one or the other.")
        classes.refuse("--pairs")
        answer = _evaluate_pairs(loadings, pairs, limit, protocol, work)
    elif benchmark != SCENES:
        settings = benchmark_by(benchmark)
        if data is None:
            raise ArgumentError(f"--benchmark {benchmark} has files; give their folder with --data.")
        answer = _evaluate_benchmark(loadings, benchmark, settings, data, limit, protocol, classes, work)
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


class _ClassTexts(Struct, frozen=True):
    """The options that tell how classes are put into words."""

    templates: Path | None
    vectors: Path | None

    def refuse(self, other: str) -> None:
        """Refuse both options.

        Raises:
            ArgumentError: one is given.
        """
        if self.templates is not None or self.vectors is not None:
            raise ArgumentError(f"{other} has no classes; leave out --templates and --class-vectors.")

    def read(self, name: str, benchmark: Benchmark) -> tuple[str, ...]:
        """The templates, empty if there are none.

        Raises:
            ArgumentError: the benchmark needs one of both options, or takes none.
            BenchmarkError: the file of templates cannot be used.
        """
        official = benchmark.templates
        if official is None:
            self.refuse(name)
            return ()
        if (self.templates is None) == (self.vectors is None):
            raise ArgumentError(
                f"{name} puts classes into words by {official.count} templates of {official.source}; give a file of "
                "them with --templates, one a line with {} for the class, or vectors with --class-vectors."
            )
        return () if self.templates is None else read_templates(self.templates)


def _evaluate_benchmark(
    loadings: Loadings,
    name: str,
    benchmark: Benchmark,
    folder: Path,
    limit: int | None,
    protocol: Protocol,
    classes: _ClassTexts,
    work: Path | None,
) -> Benchmarked:
    templates = classes.read(name, benchmark)
    data, left_out = benchmark.load(folder, protocol, limit)
    cutoffs = benchmark.cutoffs

    def measure(model: Model, begin: BeginStage, keeping: Keeping) -> list[Rate]:
        if isinstance(data, Captions):
            done = begin("images", len(data.images))
            return measure_captions(model, data, benchmark.walk_type, cutoffs, protocol, done, keeping=keeping)
        texts = _class_vectors(model, benchmark, data, classes.vectors, templates, begin, keeping)
        if isinstance(data, LabelledImages):
            assert texts is not None
            done = begin("images", len(data.images))
            patches = fixed_patches(model, benchmark.patches)
            return measure_images(model, data, texts, cutoffs, protocol, done, keeping=keeping, max_num_patches=patches)
        return measure_regions(
            model,
            data,
            cutoffs,
            protocol,
            texts=texts,
            skips_boxes=benchmark.skips_boxes,
            by_mask=benchmark.by_mask,
            mean_over_classes=benchmark.mean_over_classes,
            done=begin("boxes", len(data.regions)),
            keeping=keeping,
        )

    model, rates, others = _run(loadings, measure, work)
    info = model.manifest.model
    known = published(info.name, name) if info.weights in _RELEASED else {}
    are_official = benchmark.templates is None or benchmark.templates.are(templates)
    comparable = limit is None and protocol == "official" and are_official
    settings = _settings(model, (benchmark.walk_type,), benchmark.lowercase, limit, protocol)
    settings = replace(
        settings,
        max_num_patches=fixed_patches(model, benchmark.patches),
        templates=len(templates),
        official_templates=None if benchmark.templates is None else are_official,
        class_vectors=None if classes.vectors is None else str(classes.vectors),
        boxes=data.box_format if isinstance(data, Regions) else None,
        left_out=left_out + (0 if isinstance(data, Captions) else _offered(data) - _counted(rates)),
    )
    return Benchmarked(
        bundle=str(model.bundle.path),
        backend=str(model.backend),
        precision=model.precision,
        benchmark=name,
        data=str(folder),
        settings=settings,
        figures=[_figure(rate, known.get(rate.name), comparable=comparable) for rate in rates],
        classes=[] if isinstance(data, Captions) else _by_class(data.texts, rates[0]),
        caveat=caveat(info.name, info.weights) if known else None,
        others=others,
    )


def _class_vectors(
    model: Model,
    benchmark: Benchmark,
    data: Regions | LabelledImages,
    file: Path | None,
    templates: tuple[str, ...],
    begin: BeginStage,
    keeping: Keeping,
) -> FloatArray | None:
    """The vectors of the data's classes, by templates or from a file; None if there are no classes of either."""
    if file is not None:
        return read_class_vectors(file, len(data.texts), model.dim)
    if benchmark.templates is None:
        return None
    done = begin("classes", len(data.texts))
    opening = benchmark.templates.opening
    return embed_classes(model, data.texts, templates, benchmark.walk_type, keeping, done, opening=opening)


def _offered(data: Regions | LabelledImages) -> int:
    return len(data.regions) if isinstance(data, Regions) else len(data.images)


def _counted(rates: list[Rate]) -> int:
    """Number of inputs of the first figure, which is of all."""
    return rates[0].total


def _by_class(names: Sequence[str], rate: Rate) -> list[BenchmarkClass]:
    """The choices of a figure by their true class, if there are classes, in the order of the data."""
    if rate.labels is None:
        return []
    counts = np.bincount(rate.labels, minlength=len(names)).tolist()
    rights = np.bincount(rate.labels, rate.rights, minlength=len(names)).tolist()
    return [
        BenchmarkClass(name, int(right), count)
        for name, right, count in zip(names, rights, counts, strict=True)
        if count
    ]


def _evaluate_pairs(
    loadings: Loadings, file: Path, limit: int | None, protocol: Protocol, work: Path | None
) -> Benchmarked:
    captions, regions = read_pairs(file)
    captions = None if captions is None else captions.first(limit)
    regions = None if regions is None else regions.first(limit)

    def measure(model: Model, begin: BeginStage, keeping: Keeping) -> list[Rate]:
        rates: list[Rate] = []
        if captions is not None:
            done = begin("images", len(captions.images))
            rates += measure_captions(model, captions, "short", _PAIR_CUTOFFS, protocol, done, keeping=keeping)
        if regions is not None:
            done = begin("boxes", len(regions.regions))
            rates += measure_regions(model, regions, _PAIR_CUTOFFS, protocol, done=done, keeping=keeping)
        return rates

    model, rates, others = _run(loadings, measure, work)
    kinds = tuple(kind for kind, part in (("short", captions), ("box", regions)) if part is not None)
    settings = _settings(model, kinds, None, limit, protocol)
    return Benchmarked(
        bundle=str(model.bundle.path),
        backend=str(model.backend),
        precision=model.precision,
        benchmark="pairs",
        data=str(file),
        settings=settings if regions is None else replace(settings, boxes=regions.box_format),
        figures=[_figure(rate) for rate in rates],
        classes=[],
        caveat=None,
        others=others,
    )


def _run(
    loadings: Loadings, measure: Callable[[Model, BeginStage, Keeping], list[Rate]], work: Path | None
) -> tuple[Model, list[Rate], list[BenchmarkedBeside]]:
    """The model in the first precision, its figures, and the choices that the others make otherwise."""
    # All are opened before the work, so that a precision that is missing is refused at once.
    model, *others = [loading.open() for loading in loadings.each()]
    with _said(work), kept(work) as keeping, progress_bars() as begin:
        rates = measure(model, begin, keeping)
        beside = [_beside(rates, other, measure(other, begin, keeping)) for other in others]
    if keeping.found:
        warn(f"fgclip-rt: {keeping.found:,} vectors were there from a run that was stopped.")
    return model, rates, beside


@contextmanager
def _said(work: Path | None) -> Iterator[None]:
    """Say where the vectors are if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if work is None:
            raise
        raise KeyboardInterrupt(f"the vectors are kept in {work}; repeat the command to go on") from None


def _beside(rates: list[Rate], model: Model, others: list[Rate]) -> BenchmarkedBeside:
    figures = [
        BenchmarkFlips(rate.name, other.share, **asdict(flips(rate.rights, other.rights)))
        for rate, other in zip(rates, others, strict=True)
    ]
    return BenchmarkedBeside(model.precision, str(model.backend), figures)


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
        max_num_patches=None,
        templates=0,
        official_templates=None,
        class_vectors=None,
        boxes=None,
        left_out=0,
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
