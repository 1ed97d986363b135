"""``fgclip-rt index`` and ``search``, as their user meets them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from indexing import NAME
from PIL import Image

from fgclip_rt import shipped
from helpers import another_space, run_command


@pytest.fixture
def made(photos: Path, output: Path) -> Path:
    run_command("index", NAME, photos, "--output", output)
    return output


def test_an_index_is_made_and_brought_up_to_date(photos: Path, output: Path) -> None:
    (photos / "bad.png").write_text("no image")
    (photos / "note.txt").write_text("a note")
    first = run_command("index", NAME, photos, "--output", output)
    assert first.stdout.startswith(f"{output}: 10 images (11 new, 0 changed, 0 gone); ")
    assert f"left out: {photos / 'bad.png'} is not an image" in first.stderr
    assert "passed over: 1 other" in first.stderr
    (photos / "1.png").unlink()
    again = json.loads(run_command("index", NAME, photos, "--output", output, "--json").stdout)
    assert {key: again[key] for key in ("images", "added", "removed", "unchanged", "embedded")} == {
        "images": 9,
        "added": 0,
        "removed": 1,
        "unchanged": 10,
        "embedded": 0,
    }
    assert [(each["input"], each["code"]) for each in again["skipped"]] == [("bad.png", "image_unsupported")]
    assert again["images_per_second"] is None


def test_a_terminal_shows_the_rate_and_the_time(photos: Path, output: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "fgclip_rt", "index", NAME, str(photos), "--output", str(output)]
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        # A terminal whose last writer has gone fails to be read.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    assert re.search(r"images .* 10/10 +\d[\d,]*\.\d/s +0:00:\d\d", shown.decode())


def test_a_text_finds_images_in_a_table_and_in_json(made: Path, photos: Path) -> None:
    shown = run_command("search", made, "--text", "a big spotted yellow star", "--top", 3)
    assert shown.stdout.startswith(f"nearest of 10 images below {photos.resolve()}")
    answer = json.loads(run_command("search", made, "--text", "a big spotted yellow star", "--top", 3, "--json").stdout)
    assert list(answer) == ["index", "root", "searched", "recall", "fine", "hits", "skipped"]
    for rank, hit in enumerate(answer["hits"], 1):
        assert f"{rank}  {hit['image']}" in " ".join(shown.stdout.split(" ")).replace("   ", "  ")
        assert hit["box"] is None


def test_an_image_finds_itself_and_a_box_says_where(made: Path, photos: Path, tmp_path: Path) -> None:
    answer = json.loads(run_command("search", made, "--image", photos / "3.png", "--json").stdout)
    assert answer["hits"][0]["image"] == "3.png"
    picture = tmp_path / "found.png"
    options = ("--image", photos / "3.png", "--box", "10,10,80,80", "--top", 2, "--depth", 3)
    shown = run_command("search", made, *options, "--picture", picture)
    assert "finest" in shown.stdout
    with Image.open(picture) as image:
        assert image.width > 2 * 240


def test_duplicates_are_listed(made: Path, photos: Path) -> None:
    shutil.copy(photos / "3.png", photos / "also.png")
    run_command("index", NAME, photos, "--output", made)
    shown = run_command("search", made, "--duplicates", "--threshold", 0.999)
    assert shown.stdout.splitlines() == [
        "1 group of images that are nearly the same, of 10 distinct ones",
        "cosine 1.0000",
        "  3.png",
        "  also.png",
    ]


def test_the_bundle_may_have_moved_but_must_be_the_same(photos: Path, output: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped.locate(NAME), tmp_path / "bundle")
    run_command("index", tmp_path / "bundle", photos, "--output", output)
    (tmp_path / "bundle").rename(tmp_path / "moved")
    text = ("--text", "a star", "--top", 1)
    assert "does not exist" in run_command("search", output, *text, status=1).stderr
    run_command("search", output, *text, "--bundle", tmp_path / "moved")
    other = another_space(tmp_path / "moved", tmp_path / "other")
    refused = run_command("search", output, *text, "--bundle", other, "--json", status=1)
    assert json.loads(refused.stdout)["error"]["code"] == "index_mismatch"
    run_command("index", other, photos, "--output", output, "--interchangeable")
    run_command("search", output, *text)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "give one of"),
        (["--text", "a", "--duplicates"], "give one of"),
        (["--text", "a", "--box", "1,2,3,4"], "--box is a part of an image"),
        (["--image", "a.png", "--fine"], "--fine looks for a part"),
        (["--text", "a", "--folder", "none"], "no images"),
        (["--image", "absent.png"], "absent.png"),
        (["--text", "a", "--picture", "found.gif"], "no known format"),
    ],
)
def test_wrong_questions_are_refused(made: Path, arguments: list[str], fault: str) -> None:
    assert fault in run_command("search", made, *arguments, status=1).stderr


def test_huge_questions_are_answered(made: Path) -> None:
    long = run_command("search", made, "--text", "a star " * 10_000, "--top", 1, "--json")
    assert "lose their end (number 1); shorten them" in long.stderr
    assert len(json.loads(long.stdout)["hits"]) == 1
    assert len(json.loads(run_command("search", made, "--text", "a", "--top", 10**15, "--json").stdout)["hits"]) == 10


def test_a_folder_that_is_no_index_is_refused(photos: Path) -> None:
    error = json.loads(run_command("search", photos, "--text", "a", "--json", status=1).stdout)["error"]
    assert error["code"] == "index_missing"
