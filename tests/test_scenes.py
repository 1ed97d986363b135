"""Pocket scenes: reproducible, apart from each other by split, and truly described."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.images import NaflexPreparation
from fgclip_rt.manifest import ImageSpec
from fgclip_rt.pocket.captions import (
    CHANGES,
    LANGUAGES,
    Language,
    box_caption,
    falsify,
    long_caption,
    relation,
    short_caption,
    state,
)
from fgclip_rt.pocket.looks import ATTRIBUTES, COLOURS, LOOKS, SHAPES, SIZES, TEXTURES, Look, Split
from fgclip_rt.pocket.scenes import BACKDROPS, TINTS, Scene, covers, draw, make_scene

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
BUCKETS = (128, 256, 576, 784, 1024)

seeds = st.integers(0, 2**32)
scenes = st.builds(make_scene, seeds, st.sampled_from(SPLITS))
languages = st.sampled_from(LANGUAGES)


def test_every_look_is_in_one_split() -> None:
    looks = [look for split in SPLITS for look in LOOKS[split]]
    assert len(looks) == len(set(looks)) == len(SIZES) * len(TEXTURES) * len(COLOURS) * len(SHAPES)
    assert [len(LOOKS[split]) for split in SPLITS] == [512, 64, 64]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_value_of_an_attribute_is_in_a_split(split: Split) -> None:
    shown = [asdict(look) for look in LOOKS[split]]
    for name, values in ATTRIBUTES.items():
        assert {look[name] for look in shown} == set(values)


def test_training_sees_every_pair_of_attributes() -> None:
    shown = [asdict(look) for look in LOOKS["train"]]
    for (one, ones), (other, others) in combinations(ATTRIBUTES.items(), 2):
        assert {(look[one], look[other]) for look in shown} == set(product(ones, others))


@given(seeds, st.sampled_from(SPLITS))
def test_a_seed_gives_one_scene(seed: int, split: Split) -> None:
    scene = make_scene(seed, split)
    assert scene == make_scene(seed, split)
    assert scene != make_scene(seed + 1, split)
    assert {thing.look for thing in scene.things} <= set(LOOKS[split])


def test_scenes_stay_what_they_were() -> None:
    """Figures of the model card are of these scenes."""
    text = json.dumps([asdict(make_scene(seed)) for seed in range(20)], default=float)
    rounded = json.dumps(json.loads(text, parse_float=lambda value: round(float(value), 6)))
    assert hashlib.sha256(rounded.encode()).hexdigest() == "92cdef110df1b86a7cd7267407a1f173c1960d6d92b05b198ebb9ece5dd7812b"


@given(scenes)
def test_things_lie_apart_and_inside(scene: Scene) -> None:
    assert len(scene.things) in (3, 4)
    assert len({thing.look.kind for thing in scene.things}) == len(scene.things)
    assert scene.tint in TINTS
    assert scene.backdrop in BACKDROPS
    for thing in scene.things:
        left, top, right, bottom = thing.box
        assert 0 <= left < right <= scene.width
        assert 0 <= top < bottom <= scene.height
    for one, other in combinations(scene.things, 2):
        assert math.dist(one.centre, other.centre) > one.radius + other.radius


def test_scenes_reach_every_bucket_and_many_shapes() -> None:
    spec = ImageSpec("naflex", 16, 3, "bilinear", BUCKETS, 1024)
    sizes = [(scene.width, scene.height) for scene in map(make_scene, range(300))]
    buckets = [NaflexPreparation(spec).bucket(*size) for size in sizes]
    assert all(buckets.count(bucket) >= 8 for bucket in BUCKETS)
    ratios = [width / height for width, height in sizes]
    assert min(ratios) < 0.5
    assert max(ratios) > 2


@given(seeds)
def test_a_size_can_be_asked_for(seed: int) -> None:
    scene = make_scene(seed, "train", (301, 119))
    assert draw(scene).size == (301, 119)


def test_the_same_scene_is_the_same_picture() -> None:
    scene = make_scene(5)
    picture = draw(scene)
    assert (picture.mode, picture.size) == ("RGB", (scene.width, scene.height))
    assert picture.tobytes() == draw(make_scene(5)).tobytes()


@pytest.mark.parametrize("seed", range(12))
def test_things_are_drawn_where_the_description_says(seed: int) -> None:
    """Where the picture differs from the same scene without a thing, that thing's outline is, and nowhere else."""
    scene = make_scene(seed, size=(260, 220))
    for index, thing in enumerate(scene.things):
        without = Scene(**{**vars(scene), "things": scene.things[:index] + scene.things[index + 1 :]})
        # The noise differs once a thing is left out, so only clear changes count.
        changed = np.abs(np.asarray(draw(scene), int) - np.asarray(draw(without), int)).max(axis=2) > 60
        ys, xs = np.nonzero(changed)
        left, top, right, bottom = thing.box
        near = (xs > left - 2) & (xs < right + 1) & (ys > top - 2) & (ys < bottom + 1)
        others = [other for other in scene.things if other is not thing]
        elsewhere = [
            (x, y)
            for x, y in zip(xs[~near], ys[~near], strict=True)
            if not any(o.box[0] - 2 < x < o.box[2] + 2 and o.box[1] - 2 < y < o.box[3] + 2 for o in others)
        ]
        if scene.backdrop == "plain":
            assert not elsewhere
        inside = np.mean([covers(thing, x + 0.5, y + 0.5) for x, y in zip(xs[near], ys[near], strict=True)])
        assert inside > 0.9


def test_covers_knows_the_hollow_of_a_moon() -> None:
    moon = next(thing for seed in range(100) for thing in make_scene(seed).things if thing.look.shape == "moon")
    x, y = moon.centre
    cos, sin = math.cos(moon.angle), math.sin(moon.angle)
    assert covers(moon, x - 0.65 * moon.radius * cos, y - 0.65 * moon.radius * sin)
    assert not covers(moon, x + 0.5 * moon.radius * cos, y + 0.5 * moon.radius * sin)
    assert not covers(moon, x + 2 * moon.radius, y)


@given(scenes, seeds)
def test_statements_are_true(scene: Scene, choice: int) -> None:
    statement = state(scene, choice)
    first, second = (
        next(thing for thing in scene.things if thing.look == look) for look in (statement.first, statement.second)
    )
    assert first is not second
    match statement.relation:
        case "left":
            assert first.centre[0] < second.centre[0]
        case "right":
            assert first.centre[0] > second.centre[0]
        case "above":
            assert first.centre[1] < second.centre[1]
        case "below":
            assert first.centre[1] > second.centre[1]
        case None:
            assert relation(first, second) is None


@given(scenes, seeds)
def test_a_false_statement_differs_in_one_attribute(scene: Scene, choice: int) -> None:
    statement = state(scene, choice)
    wrong, change = falsify(scene, statement, choice)
    before, after = (
        {"relation": s.relation}
        | {f"first {k}": v for k, v in asdict(s.first).items()}
        | {f"second {k}": v for k, v in asdict(s.second).items()}
        for s in (statement, wrong)
    )
    differing = [key for key in before if before[key] != after[key]]
    assert len(differing) == 1
    assert differing[0].endswith(change)
    shown = {thing.look for thing in scene.things}
    assert change == "relation" or not {wrong.first, wrong.second} <= shown


def test_every_change_occurs() -> None:
    changes = [falsify(scene := make_scene(seed), state(scene, seed), seed)[1] for seed in range(1000)]
    assert all(changes.count(change) > 100 for change in CHANGES)


@given(scenes, languages, seeds)
def test_true_and_false_captions_share_their_wording(scene: Scene, language: Language, choice: int) -> None:
    statement = state(scene, choice)
    wrong, _ = falsify(scene, statement, choice)
    true, false = (short_caption(s, language, choice) for s in (statement, wrong))
    assert true != false
    if language == "en":
        # Names of a shape may have two words; everything else stands where it stood.
        assert abs(len(true.split()) - len(false.split())) <= 1


@given(st.sampled_from(LOOKS["test"]), st.sampled_from(LOOKS["train"]), languages, seeds)
def test_box_captions_tell_looks_apart(one: Look, other: Look, language: Language, phrasing: int) -> None:
    assert box_caption(one, language, phrasing) != box_caption(other, language, phrasing)


@given(scenes, languages)
def test_captions_are_phrased_in_many_ways(scene: Scene, language: Language) -> None:
    statement = state(scene, 0)
    assert len({short_caption(statement, language, phrasing) for phrasing in range(30)}) >= 15
    assert len({long_caption(scene, language, phrasing) for phrasing in range(30)}) >= 25


@given(scenes, seeds)
def test_captions_are_in_their_language(scene: Scene, phrasing: int) -> None:
    statement = state(scene, phrasing)
    looks = [thing.look for thing in scene.things]
    for language in LANGUAGES:
        for caption in (
            short_caption(statement, language, phrasing),
            long_caption(scene, language, phrasing),
            *(box_caption(look, language, phrasing) for look in looks),
        ):
            assert caption.isascii() == (language == "en")
            assert "{" not in caption


@given(scenes, seeds)
def test_a_long_caption_places_every_thing(scene: Scene, phrasing: int) -> None:
    sentences = long_caption(scene, "en", phrasing).split(".")
    for thing in scene.things:
        rows, columns = ("upper", "middle", "lower"), ("left", "middle", "right")
        row = rows[min(int(3 * thing.centre[1] / scene.height), 2)]
        column = columns[min(int(3 * thing.centre[0] / scene.width), 2)]
        place = "very middle" if row == column == "middle" else f"{row} {column}"
        colours = ("purple", "violet") if thing.look.colour == "purple" else (thing.look.colour,)
        assert any(f"the {place}" in sentence and any(c in sentence for c in colours) for sentence in sentences)
