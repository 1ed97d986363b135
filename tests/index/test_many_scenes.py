"""Searches of 2,000 scenes: as right as the model itself, and right about parts of pictures. Takes minutes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from indexing import bring_up_to_date

from fgclip_rt.evaluation import scenes as evaluation
from fgclip_rt.evaluation.measures import GALLERY
from fgclip_rt.index import ImageIndex, Query, find
from fgclip_rt.model import Model
from fgclip_rt.pocket.captions import LANGUAGES, Language, box_caption, short_caption
from fgclip_rt.pocket.looks import Look
from fgclip_rt.pocket.scenes import Scene, draw, make_scene

pytestmark = pytest.mark.slow

SCENES = 2000

#: Images that are found for a thing, and things that are looked for in each language and by their regions.
FOUND, ASKED = 12, 16


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(seed, "test") for seed in range(SCENES)]


@pytest.fixture(scope="module")
def index(scenes: list[Scene], pocket: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    """All scenes, each hundred in a folder."""
    root = tmp_path_factory.mktemp("scenes")
    for number, scene in enumerate(scenes):
        path = root / "photos" / f"{number // GALLERY:02d}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(scene).save(path)
    bring_up_to_date(pocket, root / "photos", root / "photos.index")
    with ImageIndex(root / "photos.index") as opened:
        yield opened


@pytest.fixture(scope="module")
def evaluated(pocket: Model) -> dict[str, int]:
    """Right choices of ``fgclip-rt evaluate`` among the scenes of a hundred, by language."""
    figures = evaluation.evaluate(pocket, SCENES).figures
    return {figure.language: figure.right for figure in figures if figure.measure == "short text to image"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_finds_its_scene_as_often_as_the_evaluation_says(
    pocket: Model, scenes: list[Scene], index: ImageIndex, evaluated: dict[str, int], language: Language
) -> None:
    statements = [true for true, _, _ in evaluation._statements(scenes, 0)]
    texts = pocket.embed_texts([short_caption(each, language, number) for number, each in enumerate(statements)])
    right = 0
    for first in range(0, SCENES, GALLERY):
        found = index.search(texts[first : first + GALLERY], 1, f"{first // GALLERY:02d}")
        right += sum(Path(hits[0].image).stem == f"{first + place:04d}" for place, hits in enumerate(found))
    print(f"R@1 {language}: {right} by searches and {evaluated[language]} by evaluate, of {SCENES}")
    # The index keeps 11 bits of each number, which turns the order of two images whose cosines are as near as that.
    assert abs(right - evaluated[language]) <= SCENES // 1000


def shares(
    pocket: Model, scenes: list[Scene], index: ImageIndex, queries: Sequence[Query], looks: Sequence[Look]
) -> float:
    """Share of the images that are found which show what was looked for."""
    found = [find(index, pocket, query, FOUND).hits for query in queries]
    shown = [
        any(thing.look == look for thing in scenes[int(Path(hit.image).stem)].things)
        for look, hits in zip(looks, found, strict=True)
        for hit in hits
    ]
    return float(np.mean(shown))


def one_of_several(scenes: list[Scene]) -> list[int]:
    """Scenes that show three things or more, at even distances."""
    numbers = [number for number, scene in enumerate(scenes) if len(scene.things) > 2]
    return numbers[:: len(numbers) // ASKED][:ASKED]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_fine_search_finds_a_named_thing_that_is_one_of_several(
    pocket: Model, scenes: list[Scene], index: ImageIndex, language: Language
) -> None:
    looks = [scenes[number].things[0].look for number in one_of_several(scenes)]
    names = [box_caption(look, language, number) for number, look in enumerate(looks)]
    plain, fine = (
        shares(pocket, scenes, index, [Query.of_text(pocket, name, fine=is_fine) for name in names], looks)
        for is_fine in (False, True)
    )
    print(f"by name in {language}: {plain:.3f} by whole images, {fine:.3f} by patches")
    assert fine > plain


def test_a_region_finds_a_thing_that_is_one_of_several(pocket: Model, scenes: list[Scene], index: ImageIndex) -> None:
    numbers = one_of_several(scenes)
    things = [scenes[number].things[0] for number in numbers]
    looks = [thing.look for thing in things]
    pictures = [draw(scenes[number]) for number in numbers]
    regions = [Query.of_image(pocket, *pair) for pair in zip(pictures, (thing.box for thing in things), strict=True)]
    plain = shares(pocket, scenes, index, [Query.of_image(pocket, picture) for picture in pictures], looks)
    fine = shares(pocket, scenes, index, regions, looks)
    chance = float(np.mean([look in {thing.look for thing in scene.things} for look in looks for scene in scenes]))
    print(f"by region: {plain:.3f} by whole images, {fine:.3f} by patches, {chance:.3f} by chance")
    assert fine > plain + 0.2
