"""``fgclip-rt heatmap``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fgclip_rt
from fgclip_rt.cli.commands.heatmap import parse_scale
from fgclip_rt.dense import DenseImage
from fgclip_rt.errors import ArgumentError
from fgclip_rt.heatmap import Scale, choose_scales, draw, fonts
from helpers import Golden, assert_one_sentence, run_command

PHOTO = Golden("fgclip2").images[1]
TEXTS = ("window", "cat")
NAMED = [argument for text in TEXTS for argument in ("--text", text)]


def draw_map(bundle: Path, output: Path, *options: object) -> Any:
    """The answer to a map of two texts."""
    return json.loads(run_command("heatmap", bundle, PHOTO, *NAMED, "--output", output, "--json", *options).stdout)


@pytest.mark.parametrize("options", [[], ["--scale", "own"], ["--scale", "shared"], ["--scale", "-0.1,0.25"]])
def test_scales_are_chosen_and_reported(
    options: list[str], bundle_path: Path, model: fgclip_rt.Model, tmp_path: Path
) -> None:
    answer = draw_map(bundle_path, tmp_path / "map.png", *options)
    maps = model.dense(PHOTO).map(TEXTS)
    assert answer["grid"] == list(maps.shape[1:]) == [19, 29]
    name, choice = {
        (): ("shared", "shared"),
        ("own",): ("own", "own"),
        ("shared",): ("shared", "shared"),
        ("-0.1,0.25",): ("fixed", Scale(-0.1, 0.25)),
    }[tuple(options[1:])]
    assert answer["scale"] == name
    for found, values, scale in zip(answer["texts"], maps, choose_scales(maps, choice), strict=True):
        np.testing.assert_allclose(found["colours"], scale, atol=1e-6)
        np.testing.assert_allclose([found["least"], found["largest"]], [values.min(), values.max()], atol=1e-6)
    with Image.open(PHOTO) as photo, Image.open(tmp_path / "map.png") as picture:
        expected = draw(photo.convert("RGB"), maps, TEXTS, choose_scales(maps, choice)).image
        assert (np.asarray(picture) == np.asarray(expected)).all()


def test_an_overlay_is_another_picture_of_the_same_maps(bundle_path: Path, tmp_path: Path) -> None:
    plain = draw_map(bundle_path, tmp_path / "plain.png")
    overlay = draw_map(bundle_path, tmp_path / "overlay.png", "--overlay")
    assert plain | {"output": ""} == overlay | {"output": ""}
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "overlay.png").read_bytes()


def test_maps_are_written_to_a_file(bundle_path: Path, model: fgclip_rt.Model, tmp_path: Path) -> None:
    answer = draw_map(bundle_path, tmp_path / "map.png", "--maps", tmp_path / "maps.npz")
    assert answer["maps"] == str(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as file:
        np.testing.assert_allclose(file["maps"], model.dense(PHOTO).map(TEXTS), atol=1e-6)
        assert json.loads(bytes(file["texts"])) == list(TEXTS)
        assert file["image_size"].tolist() == [300, 451]
    said = run_command(
        *("heatmap", bundle_path, PHOTO, *NAMED, "--overwrite"),
        *("--output", tmp_path / "map.png", "--maps", tmp_path / "maps.npz"),
    ).stdout
    assert f"{tmp_path / 'maps.npz'}: float32 [2, 19, 29]" in said
    assert draw_map(bundle_path, tmp_path / "other.png")["maps"] is None


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--maps", "maps.npy"], ["--maps maps.npy", ".npz"]),
        (["--scale", "all"], ["--scale 'all'", "own", "shared", "LOW,HIGH"]),
        (["--text", "a"] * 3000, ["3002 maps", "fewer texts"]),
        (["--font", PHOTO], ["--font", "not a font file"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    options: list[object], parts: list[str], bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenseImage, "map", lambda *_: pytest.fail("the tower ran"))
    result = run_command(
        *("heatmap", bundle_path, PHOTO, *NAMED, "--output", tmp_path / "map.png", *options, "--json"), status=1
    )
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "argument_invalid"
    assert_one_sentence(error["message"], *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    ["", "Own", "0.1", "0,1,2", "a,b", "0.3,0", "0.1,0.1", "nan,1", "0,nan", "0,inf", "-2,0", "0,2", "0,9e-4", ";1"],
)
def test_a_scale_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ArgumentError) as error:
        parse_scale(value)
    assert_one_sentence(error.value, f"--scale {value!r}", "LOW,HIGH")


@pytest.mark.parametrize(
    ("value", "scale"), [("0,0.3", Scale(0, 0.3)), ("-1e-1, .5", Scale(-0.1, 0.5)), ("0.05,0.051", Scale(0.05, 0.051))]
)
def test_a_scale_is_two_numbers(value: str, scale: Scale) -> None:
    assert parse_scale(value) == scale


def test_a_text_without_a_font_has_a_number_and_the_remedy_is_said(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "font_folders", lambda: iter(()))
    monkeypatch.setattr("fgclip_rt.cli.commands.heatmap.font_advice", lambda lacking: f"get {sorted(lacking)}")
    arguments = ["heatmap", bundle_path, PHOTO, "--output", tmp_path / "map.png", "--overwrite"]
    said = run_command(*arguments, "--text", "a 电脑", "--text", "cat").stderr
    assert_one_sentence(said.strip(), "a 电脑, so its map has a number", "get ['电', '脑']", "--font")
    said = run_command(*arguments, *[argument for text in "电脑猫狗" for argument in ("--text", text)]).stderr
    assert "电, 脑, 猫, …, so their maps have numbers" in said
    result = run_command(*arguments, "--text", "cat")
    assert result.stderr == ""
    assert f"{tmp_path / 'map.png'}: 1 map of 19×29 patches" in result.stdout
