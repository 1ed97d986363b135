"""Right choices of a bundle on scenes that training never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arrays import BoolArray, FloatArray
from ..errors import ArgumentError
from ..model import Model
from ..pocket.captions import (
    CHANGES,
    LANGUAGES,
    Change,
    Language,
    Statement,
    box_caption,
    falsify,
    long_caption,
    short_caption,
    state,
)
from ..pocket.looks import Look, Split
from ..pocket.scenes import Scene, draw, make_scene
from ..scores import largest_at, similarity_maps
from .measures import GALLERY, MEASURES, Figure, Measure, holds, named, prefers, retrieved


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes:
        scenes: number of scenes.
        seed: seed of the first scene.
        figures: one per language and measure that the model supports.
        by_change: (right, total) of ``true before false caption`` in both languages, by the false caption's change.
    """

    scenes: int
    seed: int
    figures: tuple[Figure, ...]
    by_change: dict[Change, tuple[int, int]]


def evaluate(
    model: Model, scenes: int = 500, seed: int = 0, split: Split = "test", done: Callable[[], None] = lambda: None
) -> Evaluation:
    """Draw scenes and count right choices.

    - Short and long captions are searched in both directions among the scenes of their own hundred (R@1). A short
      caption names two things that no other of these scenes shows together, so that it is true of one scene only.
    - Each thing's box is named by the nearest of the distinct box captions of all scenes.
    - Each short caption is compared with a false one in the same words, with one attribute changed.
    - For one thing of each scene, the patch that is nearest to its box caption must have its centre in the thing's box.

    Measures of long texts, regions or dense features are left out if the model lacks these.

    Args:
        model: any model.
        scenes: number of scenes, a multiple of 100.
        seed: seed of the first scene; the same seeds give the same scenes and captions.
        split: split of the scenes; training is watched on ``validation``, so that ``test`` stays unseen.
        done: called after each scene.

    Raises:
        ArgumentError: the number of scenes is not a multiple of 100.
    """
    check_scenes(scenes)
    drawn = [make_scene(seed + i, split) for i in range(scenes)]
    left_out = {measure for measures in lacking(model).values() for measure in measures}
    measures = [measure for measure in MEASURES if measure not in left_out]
    looks = list(dict.fromkeys(thing.look for scene in drawn for thing in scene.things))
    names = {}
    if "region to box caption" in measures or "dense map inside its box" in measures:
        names = {language: _box_texts(model, looks, language, seed) for language in LANGUAGES}
    seen = _see(model, drawn, looks, names, measures, done)

    statements = _statements(drawn, seed)
    figures: list[Figure] = []
    by_change = dict.fromkeys(CHANGES, (0, 0))
    for language in LANGUAGES:
        true, false = (
            model.embed_texts(short_caption(statement, language, seed + i) for i, statement in enumerate(column))
            for column in ([entry[0] for entry in statements], [entry[1] for entry in statements])
        )
        preferred = prefers(seen.images, true, false)
        for (_, _, change), right in zip(statements, preferred.tolist(), strict=True):
            by_change[change] = (by_change[change][0] + right, by_change[change][1] + 1)
        made: dict[Measure, tuple[BoolArray | list[bool], float]] = {
            "short text to image": (retrieved(true, seen.images), 1 / GALLERY),
            "image to short text": (retrieved(seen.images, true), 1 / GALLERY),
            "region to box caption": (seen.named[language], 1 / len(looks)),
            "true before false caption": (preferred, 0.5),
            "dense map inside its box": (seen.pointed[language], seen.boxed / scenes),
        }
        if "long text to image" in measures:
            long = model.embed_texts((long_caption(scene, language, seed + i) for i, scene in enumerate(drawn)), "long")
            made["long text to image"] = (retrieved(long, seen.images), 1 / GALLERY)
            made["image to long text"] = (retrieved(seen.images, long), 1 / GALLERY)
        for measure in measures:
            choices, chance = made[measure]
            figures.append(Figure(measure, language, tuple(map(bool, choices)), chance))
    return Evaluation(scenes, seed, tuple(figures), by_change)


@dataclass
class _Seen:
    """A model's view of the pictures.

    Attributes:
        images: vectors of all of them, float32 [n, D].
        boxed: sum over the pictures of the share that the box of the first thing covers.
        named: by language, whether each box is nearest to its own caption.
        pointed: by language, whether each map is largest inside its thing's box.
    """

    images: FloatArray
    boxed: float = 0.0
    named: dict[Language, list[bool]] = field(default_factory=lambda: {language: [] for language in LANGUAGES})
    pointed: dict[Language, list[bool]] = field(default_factory=lambda: {language: [] for language in LANGUAGES})


def _see(
    model: Model,
    drawn: Sequence[Scene],
    looks: Sequence[Look],
    names: Mapping[Language, FloatArray],
    measures: Sequence[Measure],
    done: Callable[[], None],
) -> _Seen:
    """Embed every picture, name its boxes and point at its first thing; ``names`` are vectors [k, D] of all looks."""
    vectors: list[FloatArray] = []
    seen = _Seen(np.zeros((0, model.dim), np.float32))
    for scene in drawn:
        picture, target = draw(scene), scene.things[0]
        vectors.append(model.embed_images(picture)[0])
        left, top, right, bottom = target.box
        seen.boxed += (right - left) * (bottom - top) / (scene.width * scene.height)
        if names:
            dense = model.dense(picture)
            own = [looks.index(thing.look) for thing in scene.things]
            if "region to box caption" in measures:
                regions = dense.regions([thing.box for thing in scene.things])
                for language, texts in names.items():
                    seen.named[language] += named(regions, texts, own).tolist()
            if "dense map inside its box" in measures:
                for language, texts in names.items():
                    (values,) = similarity_maps(dense.features(), texts[own[:1]])
                    seen.pointed[language].append(holds(target.box, largest_at(values, picture.size)))
        done()
    seen.images = np.stack(vectors)
    return seen


def lacking(model: Model) -> dict[str, tuple[Measure, ...]]:
    """The measures that a model does not support, by the capability that it lacks."""
    walk_types = model.manifest.text.walk_types
    measures: dict[str, tuple[Measure, ...]] = {}
    if "long" not in walk_types:
        measures["long texts"] = ("long text to image", "image to long text")
    if "box" not in walk_types or not model.graphs.has("region"):
        measures["features of regions"] = ("region to box caption",)
    if "box" not in walk_types or not model.graphs.has("dense"):
        measures["dense features"] = ("dense map inside its box",)
    return measures


def check_scenes(count: int) -> None:
    """Make sure that a number of scenes is a positive multiple of 100.

    Raises:
        ArgumentError: it is not.
    """
    whole = hasattr(count, "__index__") and not isinstance(count, bool)
    if not whole or count < 1 or count % GALLERY:
        raise ArgumentError(
            f"scenes is {count!r}; captions are searched among {GALLERY}, so pass {GALLERY}, {2 * GALLERY} and so on."
        )


def _box_texts(model: Model, looks: Sequence[Look], language: Language, seed: int) -> FloatArray:
    return model.embed_texts((box_caption(look, language, seed + i) for i, look in enumerate(looks)), "box")


def _statements(scenes: Sequence[Scene], seed: int) -> list[tuple[Statement, Statement, Change]]:
    """For each scene a true statement, a false one, and what the false one changes."""
    statements = []
    for index, scene in enumerate(scenes):
        choice = seed + index
        statement = _distinctive(scene, scenes[index - index % GALLERY :][:GALLERY], choice)
        statements.append((statement, *falsify(scene, statement, choice)))
    return statements


def _distinctive(scene: Scene, gallery: Sequence[Scene], choice: int) -> Statement:
    """A statement about two things that no other scene of the gallery shows together, if 20 attempts find one."""
    others = [{thing.look for thing in other.things} for other in gallery if other is not scene]
    statements = [state(scene, choice + attempt) for attempt in range(20)]
    return next((s for s in statements if not any({s.first, s.second} <= looks for looks in others)), statements[0])
