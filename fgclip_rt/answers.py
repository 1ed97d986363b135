"""The answer to each question about a model or a bundle, one struct a question. Tables and ``--json`` render them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from numpy.typing import ArrayLike

from .arrays import FloatArray
from .bundle import Bundle
from .engine_files import Engine, EngineKey, EngineRecord, find_engines
from .images import ImageSource
from .manifest import FileInfo, Lowering, Manifest, ParityRow
from .model import Model
from .vectors import Row

Numbers: TypeAlias = list[list[float]]


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
        rows: the input of each.
        skipped: inputs that could not be read.
        truncated_texts: indices of texts that lost their end.
        error: there if inputs that were named could not be read.
    """

    output: str
    shape: list[int]
    rows: list[Row]
    skipped: list[Skipped]
    truncated_texts: list[int]
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class Scores(Answer, frozen=True):
    """How well texts describe images; ``logits`` and ``probabilities`` are by image, then by text."""

    images: list[str]
    texts: list[str]
    logits: Numbers
    probabilities: Numbers


class Regions(Answer, frozen=True):
    """Cosines of texts with boxes of an image, by box, then by text; boxes are xyxy in pixels."""

    image: str
    boxes: Numbers
    texts: list[str]
    cosines: Numbers


class Found(Answer, frozen=True):
    """Where a text is found: its largest and least cosine, and x, y in pixels of the patch that has the largest."""

    text: str
    largest: float
    least: float
    at: list[float]


class Maps(Answer, frozen=True):
    """Maps of texts over a ``grid`` of patches, (rows, columns), drawn to ``output``."""

    output: str
    image: str
    grid: list[int]
    texts: list[Found]


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


class Evaluated(Answer, frozen=True):
    """Right choices of a bundle on scenes."""

    bundle: str
    backend: str
    precision: str
    scenes: int
    seed: int
    figures: list[Share]
    true_before_false_by_change: dict[str, Counted]


class Verified(Answer, frozen=True):
    """Comparisons of a bundle with the reference, on this machine; ``error`` is there if any failed."""

    bundle: str
    precision: str
    backend: str
    passed: bool
    rows: tuple[ParityRow, ...]
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class Inspected(Answer, frozen=True):
    """A bundle's manifest, its size in bytes, and the records of its engines by folder."""

    path: str
    size: int
    manifest: Manifest
    engines: dict[str, EngineRecord]


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
    """The worst of a precision's comparisons with the reference."""

    comparisons: int
    max_error: float
    min_cosine: float
    within: float


class Exported(Answer, frozen=True):
    """A bundle that was exported; ``parity`` and ``lowering`` are by precision.

    ``notes`` says what of the checkpoint's files was passed over, and what was chosen.
    """

    bundle: str
    model: str
    weights: str
    embedding_size: int
    size: int
    parity: dict[str, Worst]
    lowering: dict[str, Lowering]
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
    exif_transpose: bool = False,
) -> Scores:
    """How well each text describes each image.

    Args:
        model: a loaded bundle.
        images: as for :meth:`Model.embed_images`.
        texts: of one kind.
        walk_type: as for :meth:`Model.embed_texts`.
        max_num_patches: as for :meth:`Model.embed_images`.
        names: of the images, in the answer.
        exif_transpose: as for :meth:`Model.embed_images`.
    """
    text_embeds = model.embed_texts(texts, walk_type)
    image_embeds = model.embed_images(images, max_num_patches, exif_transpose=exif_transpose)
    return Scores(
        images=list(names),
        texts=list(texts),
        logits=model.logits(image_embeds, text_embeds).tolist(),
        probabilities=model.probabilities(image_embeds, text_embeds).tolist(),
    )


def regions(
    model: Model,
    image: ImageSource,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    walk_type: str = "box",
    max_num_patches: int | None = None,
    *,
    name: str,
) -> Regions:
    """Cosines of texts with boxes of an image, which the answer calls ``name``."""
    given: ArrayLike = boxes
    cosines = model.embed_regions(image, given, max_num_patches) @ model.embed_texts(texts, walk_type).T
    return Regions(image=name, boxes=[list(box) for box in boxes], texts=list(texts), cosines=cosines.tolist())


def found(text: str, values: FloatArray, size: tuple[int, int]) -> Found:
    """Where a text is found by its map [h, w] of an image of ``size`` (width, height)."""
    # Pillow's fonts, which come with it, take as long to import as a small image to embed.
    from .heatmap import largest_at

    return Found(
        text=text,
        largest=float(values.max()),
        least=float(values.min()),
        at=list(largest_at(values, size)),
    )


def inspect(bundle: Bundle) -> Inspected:
    """The contents of a bundle."""
    engines = {engine.path.name: engine.record for engine in find_engines(bundle)}
    return Inspected(path=str(bundle.path), size=bundle.size, manifest=bundle.manifest, engines=engines)


def engine_built(engine: Engine, cached: bool) -> EngineBuilt:
    """An engine that is there now."""
    record: dict[str, Any] = {name: getattr(engine.record, name) for name in EngineRecord.__struct_fields__}
    return EngineBuilt(path=str(engine.path), cached=cached, size=engine.size, **record)


def exported(bundle: Bundle, notes: Sequence[str]) -> Exported:
    """A bundle that was exported, by its manifest, and notes on its checkpoint."""
    manifest = bundle.manifest
    return Exported(
        bundle=str(bundle.path),
        model=manifest.model.name,
        weights=manifest.model.weights,
        embedding_size=manifest.embedding_size,
        size=bundle.size,
        parity=worst(manifest.parity.measured),
        lowering=manifest.lowering,
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
        )
        for precision, rows in measured.items()
    }
