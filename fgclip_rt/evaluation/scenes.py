"""How often a bundle chooses rightly on scenes that training never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError
from ..heatmap import largest_at, similarity_maps
from ..model import FloatArray, Model, l2_normalize
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
from .measures import GALLERY, MEASURES, Figure, Measure, holds, retrieved


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        scenes: number of scenes.
        seed: of the first one.
        figures: one per measure that the model can be put to, and language.
        by_change: ``true before false caption`` by what the false caption changes, as (right, total), both languages.
    """

    scenes: int
    seed: int
    figures: tuple[Figure, ...]
    by_change: dict[Change, tuple[int, int]]


def evaluate(
    model: Model, scenes: int = 500, seed: int = 0, split: Split = "test", done: Callable[[], None] = lambda: None
) -> Evaluation:
    """Draw scenes and count right choices.

    - Short and long captions are searched in both directions among the scenes of their own hundred (R@1). A short one
      names two things that no other of these scenes shows together, so that it is true of its own only.
    - Each thing's box is named by the nearest of the distinct box captions of all scenes.
    - Each short caption stands against a false one in the same words, with one attribute changed.
    - For one thing of each scene, the patch that is nearest to its box caption must have its centre in its box.

    What a model lacks is not measured: long texts, regions or dense features.

    Args:
        model: any model.
        scenes: number of scenes, a multiple of 100.
        seed: of the first scene; the same seeds give the same scenes and captions.
        split: whose scenes; training looks at those of ``validation``, so that those of ``test`` stay unseen.
        done: called after each scene.

    Raises:
        ArgumentError: the number of scenes is not a multiple of 100.
    """
    check_scenes(scenes)
    left_out = {measure for measures in lacking(model).values() for measure in measures}
    has_long = "long text to image" not in left_out
    has_regions = "region to box caption" not in left_out
    has_maps = "dense map inside its box" not in left_out

    drawn = [make_scene(seed + i, split) for i in range(scenes)]
    looks = list(dict.fromkeys(thing.look for scene in drawn for thing in scene.things))
    names = {}
    if has_regions or has_maps:
        names = {language: _box_texts(model, looks, language, seed) for language in LANGUAGES}

    image_embeds: list[FloatArray] = []
    named = dict.fromkeys(LANGUAGES, 0)
    found = dict.fromkeys(LANGUAGES, 0)
    boxed = 0.0  # share of the picture that the named things' boxes cover
    for scene in drawn:
        picture = draw(scene)
        image_embeds.append(model.embed_images(picture)[0])
        target = scene.things[0]
        if names:
            patches = model.preparation(picture)
            dense = model.run_vision("dense", [patches], "dense_features")
        if has_regions:
            regions = model.pool_regions(dense, patches, [thing.box for thing in scene.things])
            for language, texts in names.items():
                chosen = (regions @ texts.T).argmax(axis=1)
                named[language] += sum(looks[i] == thing.look for i, thing in zip(chosen, scene.things, strict=True))
        if has_maps:
            map_ = l2_normalize(dense[0].reshape(*patches.grid, -1))
            for language, texts in names.items():
                (values,) = similarity_maps(map_, texts[[looks.index(target.look)]])
                found[language] += holds(target.box, largest_at(values, picture.size))
        left, top, right, bottom = target.box
        boxed += (right - left) * (bottom - top) / (scene.width * scene.height)
        done()

    images = np.stack(image_embeds)
    things = sum(len(scene.things) for scene in drawn)
    figures: list[Figure] = []
    statements = _statements(drawn, seed)
    by_change = dict.fromkeys(CHANGES, (0, 0))
    for language in LANGUAGES:
        true, false = (
            model.embed_texts(short_caption(said, language, seed + i) for i, said in enumerate(column))
            for column in ([entry[0] for entry in statements], [entry[1] for entry in statements])
        )
        preferred = (images * true).sum(axis=1) > (images * false).sum(axis=1)
        for (_, _, change), right in zip(statements, preferred.tolist(), strict=True):
            by_change[change] = (by_change[change][0] + right, by_change[change][1] + 1)
        counted: list[tuple[Measure, int, int, float]] = [
            ("short text to image", retrieved(true, images), scenes, 1 / GALLERY),
            ("image to short text", retrieved(images, true), scenes, 1 / GALLERY),
            ("true before false caption", int(preferred.sum()), scenes, 0.5),
        ]
        if has_long:
            long = model.embed_texts((long_caption(scene, language, seed + i) for i, scene in enumerate(drawn)), "long")
            counted += [
                ("long text to image", retrieved(long, images), scenes, 1 / GALLERY),
                ("image to long text", retrieved(images, long), scenes, 1 / GALLERY),
            ]
        if has_regions:
            counted.append(("region to box caption", named[language], things, 1 / len(looks)))
        if has_maps:
            counted.append(("dense map inside its box", found[language], scenes, boxed / scenes))
        counted.sort(key=lambda entry: MEASURES.index(entry[0]))
        figures += [Figure(measure, language, right, total, chance) for measure, right, total, chance in counted]
    return Evaluation(scenes, seed, tuple(figures), by_change)


def lacking(model: Model) -> dict[str, tuple[Measure, ...]]:
    """What a model lacks, and the measures that it cannot be put to for want of it."""
    walk_types = model.manifest.text.walk_types
    measures: dict[str, tuple[Measure, ...]] = {}
    if "long" not in walk_types:
        measures["long texts"] = ("long text to image", "image to long text")
    if "box" not in walk_types or not model.has("region"):
        measures["features of regions"] = ("region to box caption",)
    if "box" not in walk_types or not model.has("dense"):
        measures["dense features"] = ("dense map inside its box",)
    return measures


def check_scenes(count: int) -> None:
    """Make sure that a number of scenes is a number of hundreds.

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
        statement = _telling(scene, scenes[index - index % GALLERY :][:GALLERY], choice)
        statements.append((statement, *falsify(scene, statement, choice)))
    return statements


def _telling(scene: Scene, gallery: Sequence[Scene], choice: int) -> Statement:
    """A statement about two things that no other scene of the gallery shows together, if there are such."""
    others = [{thing.look for thing in other.things} for other in gallery if other is not scene]
    statements = [state(scene, choice + attempt) for attempt in range(20)]
    return next((s for s in statements if not any({s.first, s.second} <= looks for looks in others)), statements[0])
