"""The answer to each question about a model or a bundle, one struct a question. Tables and ``--json`` render them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from numpy.typing import ArrayLike

from . import scores
from .arrays import FloatArray
from .boxes import BoxFormat
from .bundle import Bundle
from .engine_files import Engine, EngineKey, EngineRecord, find_engines
from .images import ImageSource
from .manifest import FileInfo, Lowering, Manifest, ParityRow
from .model import Model
from .names import spell_path
from .scores import largest_at
from .space import fingerprint
from .vectors import Row

Numbers: TypeAlias = list[list[float]]

#: Most names of a bundle's other files in an answer. A folder of photos may have a million.
_MOST_OTHER_FILES = 100


class Answer(msgspec.Struct, frozen=True):
    """Base of all answers. Their order of fields is that of the JSON."""


class Problem(Answer, frozen=True):
    """Why a question has no good answer: a constant for programs, and one sentence for people."""

    code: str
    message: str


class Skipped(Answer, frozen=True):
    """An input that could not be read: why, for programs and for people."""

    input: str
    code: str
    error: str


class Embedding(Answer, frozen=True):
    """Vectors that were written to a file.

    Attributes:
        output: the file.
        shape: of the vectors, [n, D].
        space_sha256: fingerprint of their space.
        rows: the input of each.
        skipped: inputs that could not be read.
        passed_over: what lies in the folders besides, by reason how many.
        unreadable: folders that could not be searched, and files in them that could not be looked into.
        truncated_texts: indices of texts that lost their end.
        unrotated: number of images that carry an EXIF rotation that was not applied.
        error: there if inputs that were named could not be read.
    """

    output: str
    shape: list[int]
    space_sha256: str
    rows: list[Row]
    skipped: list[Skipped]
    passed_over: dict[str, int]
    unreadable: list[str]
    truncated_texts: list[int]
    unrotated: int
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class Scores(Answer, frozen=True):
    """How well texts describe images; ``cosines``, ``logits`` and ``probabilities`` are by image, then by text.

    Attributes:
        images: those that could be read.
        texts: all texts.
        cosines: of their vectors.
        logits: exp(logit_scale) · cosine + logit_bias.
        probabilities: of the logits, by ``activation``.
        activation: ``sigmoid``, by which each text has a probability of its own; or ``softmax``, by which the texts of
            the call share one, so that a single text always has 1.
        unrotated: number of images that carry an EXIF rotation that was not applied, here and below.
        skipped: images that could not be read.
        error: there if any was skipped.
    """

    images: list[str]
    texts: list[str]
    cosines: Numbers
    logits: Numbers
    probabilities: Numbers
    activation: Literal["sigmoid", "softmax"]
    unrotated: int
    skipped: list[Skipped]
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class Regions(Answer, frozen=True):
    """Cosines of texts with boxes of an image, by box, then by text; ``boxes`` are as given, in ``box_format``."""

    image: str
    boxes: Numbers
    box_format: str
    texts: list[str]
    cosines: Numbers
    unrotated: int


class Found(Answer, frozen=True):
    """Where a text is found, by its map.

    Attributes:
        text: the text.
        largest: its largest cosine with a patch.
        least: its least cosine with a patch.
        at: x, y in pixels of the centre of the patch that has the largest.
        colours: the cosines that are drawn in the first and the last colour.
    """

    text: str
    largest: float
    least: float
    at: list[float]
    colours: list[float]


class Maps(Answer, frozen=True):
    """Maps of texts that were drawn.

    Attributes:
        output: the picture.
        image: the image.
        grid: (rows, columns) of patches.
        scale: ``own``, ``shared``, or ``fixed`` where it was given in numbers.
        maps: file of the cosines; None if none was asked for.
        texts: where each is found.
    """

    output: str
    image: str
    grid: list[int]
    scale: str
    maps: str | None
    texts: list[Found]
    unrotated: int


class Hit(Answer, frozen=True):
    """An image that a search found.

    Attributes:
        row: number of its vector in the index.
        image: its path below the indexed folder.
        cosine: of its vector with the query's.
        width: in pixels, before any turn.
        height: likewise.
        copies: number of other files with the same content.
        finest: largest cosine of the query with a patch of the image; None if it was not looked for.
        box: around that patch, xyxy in pixels; None likewise.
    """

    row: int
    image: str
    cosine: float
    width: int
    height: int
    copies: int
    finest: float | None = None
    box: list[float] | None = None


class Searched(Answer, frozen=True):
    """The images of an index that are nearest to a query, nearest first.

    Attributes:
        index: the index.
        root: the folder that is indexed.
        searched: number of distinct images that were searched.
        recall: share of the ten nearest images that the index's graph finds, if it chose which ones were compared; None
            if all were.
        fine: whether the best of them were ranked by their patches.
        hits: the nearest.
        skipped: images that could not be read to look at their patches, and so are left out.
    """

    index: str
    root: str
    searched: int
    recall: float | None
    fine: bool
    hits: list[Hit]
    skipped: list[Skipped]


class Duplicate(Answer, frozen=True):
    """Images that are nearly the same: their paths, and the least cosine by which one hangs together with the rest."""

    images: list[str]
    cosine: float


class Duplicates(Answer, frozen=True):
    """Groups of images of an index that are nearly the same, by cosines of at least ``threshold``; largest first."""

    index: str
    root: str
    searched: int
    threshold: float
    groups: list[Duplicate]


class Indexed(Answer, frozen=True):
    """An index that was made or brought up to date; as :class:`fgclip_rt.index.Updated`.

    ``passed_over`` and ``unreadable`` are as for :class:`Embedding`.
    """

    output: str
    root: str
    images: int
    added: int
    changed: int
    removed: int
    unchanged: int
    embedded: int
    images_per_second: float | None
    recall: float | None
    skipped: list[Skipped]
    passed_over: dict[str, int]
    unreadable: list[str]


class ShardsEmbedded(Answer, frozen=True):
    """A job over shards, as its run left it.

    Attributes:
        output: the folder or its URL.
        shards: number of shards of the inputs, or of the part of them that was asked for.
        before: number of shards that were done before.
        rows: number of vectors of all shards that are done.
        errors: number of their dead letters, by code.
        unrotated: number of images that carry an EXIF rotation that was not applied.
        failed: shards that are not done, with the reason.
        images_per_second: items that this run embedded or refused a second; None if there was nothing to do.
        error: there if shards are not done.
    """

    output: str
    shards: int
    before: int
    rows: int
    errors: dict[str, int]
    unrotated: int
    failed: list[Skipped]
    images_per_second: float | None
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class Captions(Answer, frozen=True):
    """Captions of a scene in one language: a true one, a false one, a long one, and the names of its things."""

    short: str
    false: str
    long: str
    names: list[str]


class SceneDrawn(Answer, frozen=True):
    """A scene that was drawn.

    Attributes:
        output: the picture.
        seed: which scene.
        size: (width, height) in pixels.
        boxes: of its things, xyxy in pixels.
        changed: the attribute in which the false captions differ.
        captions: by language.
    """

    output: str
    seed: int
    size: list[int]
    boxes: Numbers
    changed: str
    captions: dict[str, Captions]


class Share(Answer, frozen=True):
    """One share of right choices, as :class:`fgclip_rt.evaluation.measures.Figure`."""

    measure: str
    language: str
    right: int
    total: int
    chance: float
    share: float


class Counted(Answer, frozen=True):
    """How many choices were right."""

    right: int
    total: int


class Flipped(Answer, frozen=True):
    """Choices that another precision makes otherwise, as :class:`fgclip_rt.evaluation.measures.Flips`."""

    measure: str
    language: str
    share: float
    lost: int
    gained: int
    p_value: float


class EvaluatedBeside(Answer, frozen=True):
    """Choices of another precision on the same scenes, beside those of the first."""

    precision: str
    backend: str
    figures: list[Flipped]


class Evaluated(Answer, frozen=True):
    """Right choices of a bundle on scenes; ``others`` has an entry for every further precision."""

    bundle: str
    backend: str
    precision: str
    scenes: int
    seed: int
    figures: list[Share]
    true_before_false_by_change: dict[str, Counted]
    others: list[EvaluatedBeside]


class Compared(Answer, frozen=True):
    """Whether old and new vectors may share an index; ``error`` is there if they may not.

    Attributes:
        old: the bundle, the file of vectors, the index or the output of shards.
        new: the bundle.
        old_space: fingerprint of the space of the old vectors; null if they were kept by an earlier version.
        new_space: that of the bundle's vectors.
        verdict: ``identical``, ``interchangeable`` or ``re-index``.
        images: number of images that were compared.
        texts: likewise.
        left_out: number of images that are gone, changed or cannot be read.
        least: the smallest cosine between the old and the new vector of an input; null if their widths differ.
        mean: the mean of these; likewise.
        kept: the share of the first 1, 10 and 100 results that stay in an index with vectors of both.
        shift: the largest change of a cosine between a query and an item; null as above.
    """

    old: str
    new: str
    old_space: str | None
    new_space: str
    verdict: str
    images: int
    texts: int
    left_out: int
    least: float | None
    mean: float | None
    kept: dict[str, float]
    shift: float | None
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class BenchmarkFigure(Answer, frozen=True):
    """A share of right choices, as :class:`fgclip_rt.evaluation.running.Rate`.

    Attributes:
        name: such as ``text to image R@5``.
        right: number of right choices.
        total: number of choices.
        share: right choices, from 0 to 1; of a mean over classes, the mean of their shares.
        low: lower end of the share's 95 % interval.
        high: upper end of it.
        published: the model's published figure in percent; None if there is none.
        difference: the share less the published figure, in points; None if they are not of the same benchmark.
    """

    name: str
    right: int
    total: int
    share: float
    low: float
    high: float
    published: float | None
    difference: float | None


class BenchmarkFlips(Answer, frozen=True):
    """Choices that another precision makes otherwise, as :class:`fgclip_rt.evaluation.measures.Flips`.

    Attributes:
        name: of the figure.
        share: right choices of the other precision, from 0 to 1.
        lost: choices that are right, and wrong in the other precision.
        gained: choices that are wrong, and right in the other precision.
        p_value: of McNemar's exact test: how often chance alone would part these choices so unevenly, or more so.
    """

    name: str
    share: float
    lost: int
    gained: int
    p_value: float


class BenchmarkedBeside(Answer, frozen=True):
    """Choices of another precision on the same inputs, beside those of the first."""

    precision: str
    backend: str
    figures: list[BenchmarkFlips]


class BenchmarkSettings(Answer, frozen=True):
    """Settings of a benchmark's inputs.

    Attributes:
        protocol: ``official`` counts as the released scripts do, ``strict`` counts ties and boxes left out as wrong.
        limit: largest number of images or boxes; None if all were taken.
        walk_types: kinds of text, each with its length in tokens.
        lowercase: whether the bundle lower-cases texts.
        script_lowercase: whether the released script does; None if there is no script.
        images: how images are resized.
        max_num_patches: patches that every image is resized to; None if the image or the model decides.
        templates: number of templates of the classes' texts; 0 if there are none.
        official_templates: whether these are the benchmark's own; None if it has none.
        class_vectors: the file of the classes' vectors; None if they were computed.
        boxes: meaning of a box's numbers; None if there are no boxes.
        left_out: images or boxes that the protocol leaves out.
    """

    protocol: str
    limit: int | None
    walk_types: dict[str, int]
    lowercase: bool
    script_lowercase: bool | None
    images: str
    max_num_patches: int | None
    templates: int
    official_templates: bool | None
    class_vectors: str | None
    boxes: str | None
    left_out: int


class BenchmarkClass(Answer, frozen=True):
    """Right choices of the first figure among the images or boxes of one class."""

    name: str
    right: int
    total: int


class Benchmarked(Answer, frozen=True):
    """Right choices of a bundle on the data of a benchmark, or on pairs of the user's.

    ``classes`` has an entry for every class of which there are images or boxes, and ``others`` for every further
    precision.
    """

    bundle: str
    backend: str
    precision: str
    benchmark: str
    data: str
    settings: BenchmarkSettings
    figures: list[BenchmarkFigure]
    classes: list[BenchmarkClass]
    caveat: str | None
    others: list[BenchmarkedBeside]


class Verified(Answer, frozen=True):
    """Comparisons of a bundle with the reference, on this machine; ``error`` is there if any failed."""

    bundle: str
    precision: str
    backend: str
    passed: bool
    rows: tuple[ParityRow, ...]
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class Inspected(Answer, frozen=True):
    """The contents of a bundle.

    Attributes:
        path: its folder.
        size: bytes of the files that its manifest lists.
        manifest: the manifest.
        spaces: fingerprint of the space of each precision's vectors.
        engines: the records of its engines, by folder.
        other_files: names of what else the folder holds, the first hundred; a folder's ends in a slash.
        other_files_total: number of all such names.
    """

    path: str
    size: int
    manifest: Manifest
    spaces: dict[str, str]
    engines: dict[str, EngineRecord]
    other_files: list[str]
    other_files_total: int


class EngineBuilt(Answer, frozen=True):
    """An engine, and whether it was there already; the rest is its record."""

    path: str
    cached: bool
    size: int
    format: str
    format_version: int
    key: EngineKey
    sha256: str
    plan: str
    files: dict[str, FileInfo]
    seconds: float
    layers: int | None


class EnginesBuilt(Answer, frozen=True):
    """Engines that a bundle has now, of those that were asked for, and their bytes in all."""

    bundle: str
    size: int
    engines: list[EngineBuilt]


class Worst(Answer, frozen=True):
    """The worst of a precision's comparisons with the reference, and how many of them float64 decided."""

    comparisons: int
    max_error: float
    min_cosine: float
    within: float
    by_float64: int


class Gated(Answer, frozen=True):
    """The figure of a gate that a lower precision loses most in.

    Attributes:
        figure: such as ``text to image R@5``.
        before: the share of right choices of fp32, from 0 to 1.
        after: that of the precision.
        loss: points of 100; less than zero for a gain.
    """

    figure: str
    before: float
    after: float
    loss: float


class Exported(Answer, frozen=True):
    """A bundle that was exported; ``parity``, ``lowering`` and ``gate`` are by precision.

    ``gate`` is empty if there were no pairs to find. ``notes`` says what of the checkpoint's files was passed over, and
    what was chosen.
    """

    bundle: str
    model: str
    weights: str
    embedding_size: int
    size: int
    parity: dict[str, Worst]
    lowering: dict[str, Lowering]
    gate: dict[str, Gated]
    notes: list[str]


class Refused(Answer, frozen=True):
    """An export in which precisions were refused.

    Attributes:
        passed: False.
        bundle: the bundle with the others; None if there are none.
        precisions: those that it holds.
        refused: by precision, every comparison that was made.
        error: what is to be done.
    """

    passed: bool
    bundle: str | None
    precisions: list[str]
    refused: dict[str, tuple[ParityRow, ...]]
    error: Problem


def score(
    model: Model,
    images: Iterable[ImageSource],
    texts: Sequence[str],
    walk_type: str = "short",
    max_num_patches: int | None = None,
    *,
    names: Sequence[str],
    exif_transpose: bool | None = None,
) -> Scores:
    """How well each text describes each image. An image that cannot be read is left out and listed.

    Args:
        model: a loaded bundle.
        images: as for :meth:`Model.embed_images`.
        texts: of one kind.
        walk_type: as for :meth:`Model.embed_texts`.
        max_num_patches: as for :meth:`Model.embed_images`.
        names: of the images, in the answer.
        exif_transpose: as for :meth:`Model.embed_images`.

    Raises:
        ImageError: none of the images can be read; it is the first one's error.
    """
    text_embeds = model.embed_texts(texts, walk_type)
    found = model.embed_images(images, max_num_patches, on_error="skip", exif_transpose=exif_transpose)
    skipped = [Skipped(names[each.index], each.error.code, str(each.error)) for each in found.failures]
    if not found.rows and found.failures:
        raise found.failures[0].error
    scored = scores_of(
        model,
        [names[row] for row in found.rows],
        texts,
        found.vectors,
        text_embeds,
        unrotated=len(found.unrotated),
    )
    if not skipped:
        return scored
    return msgspec.structs.replace(scored, skipped=skipped, error=_left_out(skipped, len(names)))


def scores_of(
    model: Model,
    names: Sequence[str],
    texts: Sequence[str],
    image_embeds: FloatArray,
    text_embeds: FloatArray,
    *,
    unrotated: int,
) -> Scores:
    """How well each text describes each image, by their vectors of length one.

    Args:
        model: the model that the vectors are of.
        names: of the images.
        texts: the texts.
        image_embeds: float32 [n, D].
        text_embeds: float32 [m, D].
        unrotated: number of images that carry an EXIF rotation that was not applied.
    """
    return Scores(
        images=list(names),
        texts=list(texts),
        cosines=scores.cosines(image_embeds, text_embeds).tolist(),
        logits=model.logits(image_embeds, text_embeds).tolist(),
        probabilities=model.probabilities(image_embeds, text_embeds).tolist(),
        activation=model.manifest.score.activation,
        unrotated=unrotated,
        skipped=[],
    )


def _left_out(skipped: Sequence[Skipped], total: int) -> Problem:
    which, them = (skipped[0].input, "it") if len(skipped) == 1 else (f"{len(skipped)} of {total} images", "them")
    return Problem(skipped[0].code, f"{which} could not be read; correct the command, or leave {them} out.")


def regions(
    model: Model,
    image: ImageSource,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    walk_type: str = "box",
    max_num_patches: int | None = None,
    *,
    box_format: BoxFormat = "xyxy",
    name: str,
    exif_transpose: bool | None = None,
) -> Regions:
    """Cosines of texts with boxes of an image, which the answer calls ``name``."""
    given: ArrayLike = boxes
    model.graphs.check_has("region")
    dense = model.dense(image, max_num_patches, exif_transpose=exif_transpose)
    vectors = dense.regions(given, box_format=box_format)
    return Regions(
        image=name,
        boxes=[list(box) for box in boxes],
        box_format=box_format,
        texts=list(texts),
        cosines=(vectors @ model.embed_texts(texts, walk_type).T).tolist(),
        unrotated=int(dense.patches.orientation != 1),
    )


def found(text: str, values: FloatArray, size: tuple[int, int], colours: tuple[float, float]) -> Found:
    """Where a text is found by its map [h, w] of an image of ``size`` (width, height)."""
    return Found(
        text=text,
        largest=float(values.max()),
        least=float(values.min()),
        at=list(largest_at(values, size)),
        colours=list(colours),
    )


def inspect(bundle: Bundle) -> Inspected:
    """The contents of a bundle."""
    engines = {engine.path.name: engine.record for engine in find_engines(bundle)}
    others = list(map(spell_path, bundle.other_files()))
    return Inspected(
        path=str(bundle.path),
        size=bundle.size,
        manifest=bundle.manifest,
        spaces={precision: fingerprint(bundle, precision) for precision in bundle.manifest.precisions},
        engines=engines,
        other_files=others[:_MOST_OTHER_FILES],
        other_files_total=len(others),
    )


def engine_built(engine: Engine, cached: bool) -> EngineBuilt:
    """An engine that is there now."""
    record: dict[str, Any] = {name: getattr(engine.record, name) for name in EngineRecord.__struct_fields__}
    return EngineBuilt(path=str(engine.path), cached=cached, size=engine.size, **record)


def exported(bundle: Bundle, notes: Sequence[str], gate: Mapping[str, Gated]) -> Exported:
    """A bundle that was exported, by its manifest; figures of a gate by precision, and notes on its checkpoint."""
    manifest = bundle.manifest
    return Exported(
        bundle=str(bundle.path),
        model=manifest.model.name,
        weights=manifest.model.weights,
        embedding_size=manifest.embedding_size,
        size=bundle.size,
        parity=worst(manifest.parity.measured),
        lowering=manifest.lowering,
        gate={precision: gated for precision, gated in gate.items() if precision in manifest.precisions},
        notes=list(notes),
    )


def worst(measured: Mapping[str, Sequence[ParityRow]]) -> dict[str, Worst]:
    """The worst of each precision's comparisons."""
    return {
        precision: Worst(
            comparisons=len(rows),
            max_error=max(row.max_error for row in rows),
            min_cosine=min(row.min_cosine for row in rows),
            within=min(row.within for row in rows),
            by_float64=sum(row.from_exact is not None for row in rows),
        )
        for precision, rows in measured.items()
    }
