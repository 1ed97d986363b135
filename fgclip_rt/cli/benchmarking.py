"""A benchmark, or pairs of the user's, as an answer: bundles are opened, measured and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..answers import (
    BenchmarkClass,
    Benchmarked,
    BenchmarkedBeside,
    BenchmarkFigure,
    BenchmarkFlips,
    BenchmarkSettings,
)
from ..arrays import FloatArray
from ..errors import ArgumentError
from ..evaluation.benchmarks import Benchmark, caveat, published
from ..evaluation.data import Captions, LabelledImages, Protocol, Regions
from ..evaluation.embedding import embed_classes, embed_texts, fixed_patches, read_class_vectors
from ..evaluation.keeping import Keeping, kept
from ..evaluation.measures import flips
from ..evaluation.readers import read_pairs
from ..evaluation.running import PAIR_CUTOFFS, Rate, measure_captions, measure_images, measure_regions
from ..evaluation.templates import read_templates
from ..model import Model
from ..progress import BeginStage
from .options import Loadings
from .output import saying_what_is_kept, warn
from .progress import progress_bars

#: Kinds of weights that published figures may be of.
_RELEASED = ("released", "local")


class Counting(Struct, frozen=True):
    """The options that tell what is counted, and where vectors are kept.

    Attributes:
        limit: largest number of images or boxes; None takes all.
        protocol: of the counting.
        work: folder that keeps vectors; None keeps them until the end only.
    """

    limit: int | None
    protocol: Protocol
    work: Path | None


class ClassTexts(Struct, frozen=True):
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


def measure_benchmark(
    loadings: Loadings,
    name: str,
    benchmark: Benchmark,
    folder: Path,
    counting: Counting,
    classes: ClassTexts,
) -> Benchmarked:
    """A bundle's figures on the files of a benchmark, in one or several precisions.

    Raises:
        ArgumentError: options do not go together, or the model lacks what the benchmark needs.
        BenchmarkError: the files are not as they are downloaded.
        OutputError: vectors cannot be written.
    """
    templates = classes.read(name, benchmark)
    limit, protocol = counting.limit, counting.protocol
    data, left_out = benchmark.load(folder, protocol, limit)
    cutoffs = benchmark.cutoffs

    def measure(model: Model, begin: BeginStage, keeping: Keeping) -> list[Rate]:
        if isinstance(data, Captions):
            return _measure_captions(model, data, benchmark.walk_type, cutoffs, protocol, begin, keeping)
        if isinstance(data, Regions):
            # Before the texts, which may take minutes.
            model.graphs.check_has("mask" if benchmark.by_mask else "region")
        texts = _text_vectors(model, benchmark, data, classes.vectors, templates, begin, keeping)
        if isinstance(data, LabelledImages):
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

    model, rates, others = _run(loadings, measure, counting.work)
    info = model.manifest.model
    known = published(info.name, name) if info.weights in _RELEASED else {}
    are_official = benchmark.templates is None or benchmark.templates.are(templates)
    comparable = limit is None and protocol == "official" and are_official
    settings = _settings(model, (benchmark.walk_type,), benchmark.lowercase, counting)
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


def _measure_captions(
    model: Model,
    data: Captions,
    walk_type: str,
    cutoffs: Sequence[int],
    protocol: Protocol,
    begin: BeginStage,
    keeping: Keeping,
) -> list[Rate]:
    done_text, done = begin("texts", len(data.texts)), begin("images", len(data.images))
    return measure_captions(model, data, walk_type, cutoffs, protocol, done, done_text=done_text, keeping=keeping)


def _text_vectors(
    model: Model,
    benchmark: Benchmark,
    data: Regions | LabelledImages,
    file: Path | None,
    templates: tuple[str, ...],
    begin: BeginStage,
    keeping: Keeping,
) -> FloatArray:
    """The vectors of the data's texts: from a file, by templates of their classes, or of the texts themselves."""
    if file is not None:
        return read_class_vectors(file, len(data.texts), model.dim)
    if benchmark.templates is None:
        return embed_texts(model, data.texts, benchmark.walk_type, keeping, begin("texts", len(data.texts)))
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


def measure_pairs(loadings: Loadings, file: Path, counting: Counting) -> Benchmarked:
    """A bundle's figures on a user's pairs, in one or several precisions.

    Raises:
        ArgumentError: the model lacks what the pairs need.
        BenchmarkError: the file is not as it should be.
        OutputError: vectors cannot be written.
    """
    limit, protocol = counting.limit, counting.protocol
    captions, regions = read_pairs(file)
    captions = None if captions is None else captions.first(limit)
    regions = None if regions is None else regions.first(limit)

    def measure(model: Model, begin: BeginStage, keeping: Keeping) -> list[Rate]:
        rates: list[Rate] = []
        if captions is not None:
            rates += _measure_captions(model, captions, "short", PAIR_CUTOFFS, protocol, begin, keeping)
        if regions is not None:
            done = begin("boxes", len(regions.regions))
            rates += measure_regions(model, regions, PAIR_CUTOFFS, protocol, done=done, keeping=keeping)
        return rates

    model, rates, others = _run(loadings, measure, counting.work)
    kinds = tuple(kind for kind, part in (("short", captions), ("box", regions)) if part is not None)
    settings = _settings(model, kinds, None, counting)
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
    with saying_what_is_kept(lambda: _said(work)), kept(work) as keeping, progress_bars() as begin:
        rates = measure(model, begin, keeping)
        beside = [_beside(rates, other, measure(other, begin, keeping)) for other in others]
    if keeping.found:
        warn(f"fgclip-rt: {keeping.found:,} vectors were there from a run that was stopped.")
    return model, rates, beside


def _said(work: Path | None) -> str | None:
    """Where vectors are kept if the command is stopped, as a sentence; None if there are none."""
    if work is None or not work.is_dir() or not any(work.iterdir()):
        return None
    return f"vectors are kept in {work}; repeat the command to go on"


def _beside(rates: list[Rate], model: Model, others: list[Rate]) -> BenchmarkedBeside:
    figures = [
        BenchmarkFlips(rate.name, other.share, **asdict(flips(rate.rights, other.rights)))
        for rate, other in zip(rates, others, strict=True)
    ]
    return BenchmarkedBeside(model.precision, str(model.backend), figures)


def _settings(
    model: Model, walk_types: tuple[str, ...], script_lowercase: bool | None, counting: Counting
) -> BenchmarkSettings:
    text = model.manifest.text
    return BenchmarkSettings(
        protocol=counting.protocol,
        limit=counting.limit,
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
