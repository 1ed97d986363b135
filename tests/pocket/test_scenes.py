"""Pocket scenes: reproducible, disjoint between splits, and truly described."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.errors import ArgumentError
from fgclip_rt.manifest import NaflexSpec
from fgclip_rt.pocket import captions
from fgclip_rt.pocket import scenes as scenes_module
from fgclip_rt.pocket.captions import (
    CHANGES,
    LANGUAGES,
    Language,
    as_worded,
    box_caption,
    falsify,
    long_caption,
    place_of,
    placed_caption,
    relation,
    short_caption,
    state,
)
from fgclip_rt.pocket.looks import ALL_LOOKS, ATTRIBUTES, COLOURS, LOOKS, SHAPES, SIZES, TEXTURES, Look, Split
from fgclip_rt.pocket.scenes import BACKDROPS, TINTS, Scene, Thing, covers, draw, make_scene
from fgclip_rt.preparation import NaflexPreparation
from helpers import assert_one_sentence

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SCENES = "92cdef110df1b86a7cd7267407a1f173c1960d6d92b05b198ebb9ece5dd7812b"
CAPTIONS = "27a9dc770a728b4144a34ffe93f42b72e6d6106d402a7db7ca49a363949aa708"
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


def test_scenes_and_captions_stay_what_they_were() -> None:
    """The figures of the model card hold for these scenes and captions."""
    assert digest([asdict(make_scene(seed)) for seed in range(20)]) == SCENES
    worded = []
    for seed in range(20):
        scene = make_scene(seed)
        statement = state(scene, seed)
        for language, wrong in product(LANGUAGES, (statement, falsify(scene, statement, seed)[0])):
            worded += [short_caption(wrong, language, seed), long_caption(scene, language, seed)]
            worded += [box_caption(thing.look, language, seed) for thing in scene.things]
    assert digest(worded) == CAPTIONS


def digest(value: object) -> str:
    """SHA-256 of a value whose numbers are rounded, because the last digits differ between machines."""
    rounded = json.loads(json.dumps(value), parse_float=lambda number: round(float(number), 6))
    return hashlib.sha256(json.dumps(rounded).encode()).hexdigest()


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
    spec = NaflexSpec(16, 3, "bilinear", BUCKETS, 1024, False)
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
    """A picture differs from that of the scene without a thing inside the thing's outline, and nowhere else."""
    scene = make_scene(seed, size=(260, 220))
    for index, thing in enumerate(scene.things):
        without_it = Scene(**{**vars(scene), "things": scene.things[:index] + scene.things[index + 1 :]})
        # Shades and grain are one stream of noise, so only clear changes count, and other things may change shade.
        changed = np.abs(np.asarray(draw(scene), int) - np.asarray(draw(without_it), int)).max(axis=2) > 60
        for other in without_it.things:
            changed[around(other)] = False
        ys, xs = np.nonzero(changed)
        left, top, right, bottom = thing.box
        assert left - 2 < xs.min() <= xs.max() < right + 1
        assert top - 2 < ys.min() <= ys.max() < bottom + 1
        inside = np.mean([covers(thing, x + 0.5, y + 0.5) for x, y in zip(xs, ys, strict=True)])
        assert inside > 0.9


def around(thing: Thing) -> tuple[slice, slice]:
    """The pixels of a thing's box and a little more."""
    left, top, right, bottom = (int(value) for value in thing.box)
    return slice(max(0, top - 2), bottom + 3), slice(max(0, left - 2), right + 3)


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


WORDS = {
    "size": (captions._SIZES,),
    "texture": (captions._TEXTURES, captions._COVERED),
    "colour": (captions._COLOURS,),
    "shape": (captions._SHAPES,),
}


def without(text: str, attribute: str, language: Language) -> str:
    """A caption without the words of one attribute."""
    tables = [table[language] for table in WORDS[attribute]]
    words = {word for table in tables for options in table.values() for word in options}
    return re.sub("|".join(sorted(words, key=len, reverse=True)), "", text)


@given(st.sampled_from(ALL_LOOKS), st.data(), languages, seeds)
def test_what_differs_in_one_attribute_differs_in_its_words(
    look: Look, data: st.DataObject, language: Language, phrasing: int
) -> None:
    attribute = data.draw(st.sampled_from(list(ATTRIBUTES)))
    other = look.with_(attribute, data.draw(st.sampled_from(ATTRIBUTES[attribute])))
    true, false = (box_caption(look_, language, phrasing) for look_ in (look, other))
    assert (true == false) == (look == other)
    assert without(true, attribute, language) == without(false, attribute, language)


@given(scenes, languages, seeds)
def test_true_and_false_captions_share_their_wording(scene: Scene, language: Language, choice: int) -> None:
    statement = state(scene, choice)
    wrong, change = falsify(scene, statement, choice)
    true, false = (short_caption(s, language, choice) for s in (statement, wrong))
    assert true != false
    if change != "relation":
        assert without(true, change, language) == without(false, change, language)


@given(scenes, seeds, seeds)
def test_a_statement_is_worded_from_either_side(scene: Scene, choice: int, phrasing: int) -> None:
    statement = state(scene, choice)
    worded = as_worded(statement, phrasing)
    if worded != statement:
        things = {thing.look: thing for thing in scene.things}
        assert (worded.first, worded.second) == (statement.second, statement.first)
        assert worded.relation == relation(things[worded.first], things[worded.second])
    # The caption names its first thing first.
    caption = short_caption(statement, "en", phrasing)
    colours = [look.colour for look in (worded.first, worded.second)]
    words = re.findall(r"\b(" + "|".join(COLOURS) + r")\b", caption.replace("violet", "purple"))
    assert words == colours
    if worded.relation is not None:
        assert any(template.split("{}")[1] in caption for template in captions._RELATIONS["en"][worded.relation])


def test_both_sides_are_worded() -> None:
    statement = state(make_scene(0), 0)
    assert 80 < sum(as_worded(statement, phrasing) == statement for phrasing in range(200)) < 120


def test_every_colour_is_clearly_dark_or_light() -> None:
    """Whether a pattern is lighter or darker depends on this, so the noise in a colour must not change it."""
    for colour in scenes_module._RGB.values():
        assert abs(scenes_module._luma(colour) - scenes_module._DARK) > 20


@given(scenes, seeds)
def test_a_false_statement_can_keep_to_some_looks(scene: Scene, choice: int) -> None:
    allowed = {*LOOKS["train"], *(thing.look for thing in scene.things)}
    wrong, _ = falsify(scene, state(scene, choice), choice, LOOKS["train"])
    assert {wrong.first, wrong.second} <= allowed


@given(st.lists(st.sampled_from(ALL_LOOKS), min_size=2, max_size=2, unique=True), languages, seeds, seeds)
def test_box_captions_tell_looks_apart(looks: list[Look], language: Language, one: int, other: int) -> None:
    assert box_caption(looks[0], language, one) != box_caption(looks[1], language, other)


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
    rows, columns = ("upper", "middle", "lower"), ("left", "middle", "right")
    for thing in scene.things:
        row, column = place_of(thing, scene)
        assert row / 3 <= thing.centre[1] / scene.height <= (row + 1) / 3
        assert column / 3 <= thing.centre[0] / scene.width <= (column + 1) / 3
        place = "very middle" if row == column == 1 else f"{rows[row]} {columns[column]}"
        assert place in placed_caption(thing.look, (row, column), "en", phrasing)
        colours = ("purple", "violet") if thing.look.colour == "purple" else (thing.look.colour,)
        assert any(f"the {place}" in sentence and any(c in sentence for c in colours) for sentence in sentences)


@given(seeds, st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_a_size_that_holds_no_things_is_refused(seed: int, size: tuple[int, int]) -> None:
    if min(size) >= 48 and max(size) <= 3 * min(size):
        assert (make_scene(seed, size=size).width, make_scene(seed, size=size).height) == size
    else:
        with pytest.raises(ArgumentError) as info:
            make_scene(seed, size=size)
        assert_one_sentence(info.value, f"{size[0]}×{size[1]}")
