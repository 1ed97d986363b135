"""Each script of ``examples/`` does its task on the bundle that comes with the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import fgclip_rt
from fgclip_rt.pocket.calibration import calibration_inputs
from fgclip_rt.pocket.scenes import draw, make_scene

EXAMPLES = Path(__file__).parents[1] / "examples"
BUNDLE = "fg-clip2-pocket"
MOST_LINES = 40


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes; 21 has a yellow star at the lower right, and no other has one."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in (21, 22, 23, 24):
        draw(make_scene(seed)).save(folder / f"{seed}.png")
    return folder


def run(name: str, *arguments: object) -> list[str]:
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_each_is_short_and_in_the_gallery() -> None:
    gallery = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < MOST_LINES
        assert f"[{path.name}]({path.name})" in gallery


def test_search_finds_the_image_first(scenes: Path) -> None:
    lines = run("search.py", BUNDLE, scenes, "a big yellow star")
    assert len(lines) == 4
    assert lines[0].endswith("21.png")


def test_tagging_gives_true_tags_in_both_languages(scenes: Path) -> None:
    path, *tags = run("tagging.py", BUNDLE, scenes / "21.png")
    assert path == str(scenes / "21.png")
    assert [tag.split(" 0")[0].strip() for tag in tags] == ["a big yellow star", "很大的黄色五角星", "小小的棕色月牙"]


def test_regions_get_the_names_of_their_things(scenes: Path) -> None:
    lines = run("regions.py", BUNDLE, scenes / "21.png", "176,21,287,132", "198,143,314,260")
    assert [line.split(": ")[1].split(" (")[0] for line in lines] == ["a pink circle", "a yellow star"]


def test_maps_are_drawn(scenes: Path, tmp_path: Path) -> None:
    assert run("maps.py", BUNDLE, scenes / "21.png", tmp_path / "maps.png", "a yellow star", "a black heart") == []
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.width > 3 * 365


def test_duplicates_are_found_although_stored_anew(scenes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    with Image.open(folder / "22.png") as picture:
        picture.save(folder / "again.webp", quality=95)
    (line,) = run("duplicates.py", BUNDLE, folder)
    assert line.split("  ")[1:] == [str(folder / "22.png"), str(folder / "again.webp")]


@pytest.mark.slow
def test_calibration_on_files_makes_a_bundle_that_keeps_its_floor(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    images, texts = calibration_inputs()
    for number, image in enumerate(images):
        image.save(tmp_path / "scenes" / f"{number}.png")
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(text for kind in texts.values() for text in kind), encoding="utf-8")
    lines = run("calibration.py", BUNDLE, tmp_path / "scenes", captions, tmp_path / "bundle")
    # Some vectors of a dense map may lie below the floor.
    floored = [float(line.rpartition(" ")[2]) for line in lines if not line.startswith("dense, ")]
    assert min(floored) >= 0.99
    manifest = fgclip_rt.load(tmp_path / "bundle").manifest
    assert manifest.precisions == ("fp32", "int8")
    calibration = manifest.lowering["int8"].calibration
    assert calibration is not None
    assert calibration.images + calibration.held_out_images == len(images)
