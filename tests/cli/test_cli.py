"""The command line as its users meet it: results, errors in one sentence, statuses, and outputs whole or absent."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import fgclip_rt
from exporting import Trace, hasten
from fgclip_rt.evaluation.scenes import Evaluation, evaluate
from helpers import LOWERING, Completed, Json, add_int8, edit_manifest, error_of, picture, run_command, run_program

PHOTO = "1_chelsea_451x300.png"


@pytest.fixture
def photo(goldens: Path) -> Path:
    return goldens / "fgclip2/images" / PHOTO


@pytest.fixture
def photos(goldens: Path, tmp_path: Path) -> Path:
    """A folder with two images, one of them in a subfolder, a damaged image and a text file."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    images = goldens / "fgclip2/images"
    shutil.copy(images / PHOTO, folder / "b.png")
    shutil.copy(images / "0_astronaut_200x150.png", folder / "more/a.PNG")
    (folder / "damaged.png").write_bytes((images / PHOTO).read_bytes()[:5000])
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_version_and_help_list_every_command() -> None:
    assert run_program("--version").stdout.strip() == f"fgclip-rt {fgclip_rt.__version__}"
    text = run_program("--help").stdout
    for command in (
        "models",
        "export",
        "build",
        "verify",
        "inspect",
        "embed",
        "score",
        "regions",
        "heatmap",
        "evaluate",
        "scene",
        "bench",
        "doctor",
    ):
        assert f"\n  {command} " in text


@pytest.mark.usefixtures("quick")
def test_export_writes_a_bundle_and_reports_its_parity(goldens: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    result = run_command("export", "--model", goldens / "fgclip2-masked/checkpoint", "--output", output, "--json")
    report = json.loads(result.stdout)
    assert report["bundle"] == str(output)
    assert report["parity"]["fp32"]["max_error"] <= 2e-5
    assert result.stderr == ""
    assert fgclip_rt.load(output).dim == report["embedding_size"] == 64
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {oct(path.stat().st_mode & 0o777) for path in output.iterdir()} == {oct(0o666 & ~_umask())}


@pytest.mark.usefixtures("quick")
def test_export_says_what_it_passed_over_and_chose(goldens: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(goldens / "fgclip2-masked/checkpoint", tmp_path / "trained")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors | {"logit_scale_hardneg": np.array(4.6, np.float32)}, checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["model_input_names"]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    (checkpoint / "preprocessor_config.json").unlink()
    arguments = ("export", "--model", checkpoint, "--processor", goldens / "fgclip2-masked/checkpoint", "--output")
    result = run_command(*arguments, tmp_path / "bundle", "--json")
    notes = json.loads(result.stdout)["notes"]
    assert result.stderr.splitlines() == [f"fgclip-rt: {note}" for note in notes]
    assert ["model_input_names" in notes[0], "logit_scale_hardneg" in notes[1], len(notes)] == [True, True, 2]
    assert run_command(*arguments, tmp_path / "other").stderr == result.stderr
    assert "attention mask: yes, which no released model has" in run_command("inspect", tmp_path / "bundle").stdout


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "fg-clip3-base"], ["fg-clip3-base", "fg-clip2-base", "fg-clip2-large", "fg-clip2-so400m"]),
        (["--model", "fg-clip2-base", "--random-weights", "--precision", "fp12"], ["fp12", "fp32"]),
        (["--model", "{checkpoint}", "--revision", "main"], ["--revision", "local folder"]),
        (["--model", "{checkpoint}", "--random-weights"], ["neither a known model"]),
        (["--model", "fg-clip2-base", "--random-weights", "--output", "{existing}"], ["exists already", "--overwrite"]),
        (["--model", "fg-clip2-base", "--random-weights", "--output", "{existing}", "--overwrite"], ["not a bundle"]),
        (["--model", "fg-clip2-base", "--random-weights", "--output", "{photo}/bundle"], ["cannot be written"]),
        (["--model", "{checkpoint}", "--precision", "int8"], ["int8", "--calibration and --calibration-texts"]),
        (
            ["--model", "{checkpoint}", "--calibration", "{photo}"],
            ["only images were given", "add --calibration-texts"],
        ),
        (
            ["--model", "{checkpoint}", "--calibration-texts", "{texts}"],
            ["only texts were given", "add --calibration."],
        ),
        (
            ["--model", "{checkpoint}", "--calibration", "{photo}", "--calibration-texts", "{texts}"],
            ["given 1 different images", "at least 16"],
        ),
        (
            ["--model", "{checkpoint}", "--calibration", "{photo}", "--calibration", "absent"],
            ["absent does not exist", "--calibration"],
        ),
        (["--model", "{checkpoint}", "--floor", "1.5"], ["floor is 1.5", "between 0 and 1"]),
    ],
)
def test_export_refuses(arguments: list[str], parts: list[str], goldens: Path, photo: Path, tmp_path: Path) -> None:
    existing = tmp_path / "existing"
    existing.mkdir()
    places = {
        "checkpoint": goldens / "fgclip2/checkpoint",
        "existing": existing,
        "photo": photo,
        "texts": goldens / "README.md",
    }
    message = error_of("export", *(argument.format(**places) for argument in arguments), cwd=tmp_path)
    assert all(part in message for part in parts), message
    assert list(tmp_path.rglob("*")) == [existing]


def test_export_stops_cleanly_when_interrupted(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("fgclip-rt"), "export", "--model", "fg-clip2-base", "--random-weights"]
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate()
        assert process.returncode == status
        assert "Traceback" not in stderr
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that name images and texts to calibrate on."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "pictures").mkdir()
    for index in range(20):
        Image.fromarray(picture(100, 60 + 10 * index, index)).save(folder / f"pictures/{index}.png")
    texts = [f"a picture of {index} things" if index % 2 else f"{index}只黑猫" for index in range(20)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    return ["--calibration", folder / "pictures", "--calibration-texts", folder / "texts.txt"]


@pytest.fixture(scope="module")
def lowered(
    masked_bundle_path: Path, goldens: Path, calibration: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Completed:
    """The export of a golden checkpoint in several precisions."""
    output = tmp_path_factory.mktemp("lowered") / "bundle"
    arguments = ["--model", goldens / "fgclip2-masked/checkpoint", "--output", output, *calibration]
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch, masked_bundle_path)
        return run_command("export", *arguments, "--precision", "int8", "--precision", "fp16", "--precision", "fp32")


@pytest.fixture(scope="module")
def lowered_path(lowered: Completed) -> Path:
    return Path(lowered.stdout.split(":")[0])


def test_export_reports_every_precision(lowered: Completed, lowered_path: Path) -> None:
    assert lowered.stderr == ""
    manifest = fgclip_rt.load(lowered_path).manifest
    assert manifest.precisions == ("fp32", "fp16", "int8")
    for precision, rows in manifest.parity.measured.items():
        assert f"\n  {precision}: {len(rows)} comparisons with the reference passed, " in lowered.stdout
    for lowering in manifest.lowering.values():
        assert f"\n    linear layers {lowering.linear}, attention and token table float16" in lowered.stdout
    assert lowered.stdout.endswith(f"\n  every comparison: fgclip-rt inspect {lowered_path} --all\n")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_verify_passes_in_every_precision(lowered_path: Path, precision: str) -> None:
    text = run_command("verify", lowered_path, "--precision", precision).stdout
    # Two images are probed here, not eight.
    assert f"all 16 comparisons passed in {precision} on onnxruntime" in text


def test_inspect_shows_how_precisions_were_made_and_what_they_cost(lowered_path: Path) -> None:
    text = run_command("inspect", lowered_path, "--all").stdout
    manifest = fgclip_rt.load(lowered_path).manifest
    assert "precisions   fp32, fp16, int8\n" in text
    spans = "vision.blocks.0 to vision.blocks.1, text.blocks.0 to text.blocks.1"
    assert (
        f"fp16: linear layers float16, attention and token table float16; residual stream float16 in {spans}\n" in text
    )
    assert "int8: linear layers int8, attention and token table float16; " in text
    calibrated = "calibrated (percentile) on 15 images and 15 texts, 5 and 5 held out"
    assert f"; {manifest.lowering['int8'].smoothed} smoothed; {calibrated}\n" in text
    for precision in ("fp16", "int8"):
        lines = table(text, f"parity at export, {precision}")[1:]
        assert [line[:2] for line in lines] == [[row.graph, row.case] for row in manifest.parity.measured[precision]]
        assert {line[-1] for line in lines} == {"ok"}
        assert ["text", "held out, box", "100.0%"] in [line[:3] for line in lines]


@pytest.fixture
def refused(
    quick: Trace,  # noqa: ARG001 (exports are quick)
    calibration: list[object],
    goldens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Completed]:
    """Runs an export to ``bundle`` that refuses INT8: its floor is too high, and no layer may move back."""
    monkeypatch.setattr("fgclip_rt.export.precision.planner.Planner._move_back", lambda *_: False)

    def export(*options: str) -> Completed:
        fixed = ["--model", goldens / "fgclip2-masked/checkpoint", "--output", tmp_path / "bundle", *calibration]
        result = run_command("export", *fixed, "--precision", "int8", "--floor", "0.9999", *options, status=1)
        (line,) = result.stderr.splitlines()
        assert line.startswith("fgclip-rt: int8 was refused: ")
        assert "its floor of 0.9999, " in line
        return result

    return export


def test_export_shows_why_a_precision_was_refused_and_keeps_the_others(
    refused: Callable[..., Completed], tmp_path: Path
) -> None:
    result = refused("--precision", "fp32")
    assert f"; {tmp_path / 'bundle'} holds fp32 only; " in result.stderr
    assert result.stdout.startswith("comparisons that int8 failed\n")
    rows = table(result.stdout, "comparisons that int8 failed")[1:]
    assert rows
    assert all(row[-1] == "FAILED" for row in rows)
    assert f"int8 was refused: {sum(int(row[1]) for row in rows)} of " in result.stderr
    # Precisions that were kept are reported as after a success.
    assert f"\n{tmp_path / 'bundle'}: checkpoint, " in result.stdout
    assert "\n  fp32: 16 comparisons with the reference passed, " in result.stdout
    assert fgclip_rt.load(tmp_path / "bundle").manifest.precisions == ("fp32",)


def test_a_refusal_is_json_too(refused: Callable[..., Completed], tmp_path: Path) -> None:
    report = json.loads(refused("--precision", "fp32", "--json").stdout)
    assert report.keys() == {"passed", "bundle", "precisions", "refused", "error"}
    assert report["error"]["message"].startswith("int8 was refused: ")
    assert (report["passed"], report["bundle"], report["precisions"]) == (False, str(tmp_path / "bundle"), ["fp32"])
    assert report["refused"].keys() == {"int8"}
    assert {row["passed"] for row in report["refused"]["int8"]} == {True, False}


def test_without_another_precision_a_refusal_leaves_nothing(refused: Callable[..., Completed], tmp_path: Path) -> None:
    result = refused("--json")
    assert "; no bundle was written; " in result.stderr
    report = json.loads(result.stdout)
    assert (report["passed"], report["bundle"], report["precisions"]) == (False, None, [])
    assert list(tmp_path.iterdir()) == []


def test_verify_passes_from_the_probe_and_against_the_checkpoint(bundle_path: Path, goldens: Path) -> None:
    assert "all 40 comparisons passed in fp32 on onnxruntime" in run_command("verify", bundle_path).stdout
    report = json.loads(
        run_command("verify", bundle_path, "--checkpoint", goldens / "fgclip2/checkpoint", "--json").stdout
    )
    assert (report["passed"], report["precision"]) == (True, "fp32")
    assert {row["graph"] for row in report["rows"]} >= {"preparation", "tokens", "vision", "dense", "region", "text"}


def test_verify_fails_against_another_checkpoint(bundle_path: Path, goldens: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(goldens / "fgclip2/checkpoint", checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["boxtext_head.bias"] = tensors["boxtext_head.bias"] + 0.01
    save_file(tensors, checkpoint / "model.safetensors")
    result = run_command("verify", bundle_path, "--checkpoint", checkpoint, "--all", status=1)
    (failed,) = (row for row in table(result.stdout) if row[-1] == "FAILED")
    assert failed[:2] == ["text", "box"]
    assert "fails 1 of 40 comparisons in fp32 on onnxruntime" in result.stderr


def test_verify_sees_another_tokenizer(masked_bundle_path: Path, goldens: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(goldens / "fgclip2-masked/checkpoint", checkpoint)
    document = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["merges"] = document["model"]["merges"][:-100]
    (checkpoint / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    result = run_command("verify", masked_bundle_path, "--checkpoint", checkpoint, "--all", status=1)
    assert sum((row[0], row[-1]) == ("tokens", "FAILED") for row in table(result.stdout)) == 3


def test_verify_refuses_a_checkpoint_of_another_size(bundle_path: Path, goldens: Path) -> None:
    message = error_of("verify", bundle_path, "--checkpoint", goldens / "fgclip2-masked/checkpoint")
    assert "vectors of 64" in message
    assert "of 96" in message


def test_inspect_shows_the_manifest(bundle_path: Path) -> None:
    text = run_command("inspect", bundle_path).stdout
    for part in ("vision.onnx", "spatial_shapes int32 [batch, 2]", "short 64, box 64, long 196", "weights.safetensors"):
        assert part in text
    document = json.loads(run_command("inspect", bundle_path, "--json").stdout)
    assert document["manifest"]["embedding_size"] == 96


def test_inspect_names_files_that_are_no_part_of_the_bundle(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundle_path, tmp_path / "bundle"))
    (bundle / ".cache").mkdir()
    for number in range(120):
        (bundle / f"{number:03d}.jpg").touch()
        (bundle / ".cache" / f"{number}").touch()
    shown = run_command("inspect", bundle).stdout
    assert (
        "\nother files  .cache/, 000.jpg, 001.jpg, 002.jpg, 003.jpg, 004.jpg, 005.jpg, 006.jpg, and 113 more " in shown
    )
    document = json.loads(run_command("inspect", bundle, "--json").stdout)
    assert document["other_files"] == [".cache/", *(f"{number:03d}.jpg" for number in range(99))]
    assert document["other_files_total"] == 121
    assert "other files" not in run_command("inspect", bundle_path).stdout


@pytest.fixture
def int8(masked_bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of a bundle whose manifest lists int8 too, with 1,234 flips of regions and none recorded for texts."""

    def edit(document: Json) -> None:
        add_int8(document)
        for row in document["parity"]["measured"]["int8"]:
            if row["graph"] == "region":
                row |= {"min_cosine": 0.75, "within": 0.99996, "flips": 1234}
            if row["graph"] == "text":
                row |= {"logit_shift": None, "flips": None}

    bundle = tmp_path / "int8"
    shutil.copytree(masked_bundle_path, bundle)
    edit_manifest(bundle, edit)
    return bundle


def table(text: str, title: str = "") -> list[list[str]]:
    """The cells of the table under ``title``, or of the first table, by line. The first line is the header."""
    lines = text[text.index(f"{title}\n") :].splitlines()[1:] if title else text.splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("─"))
    rows = [re.split(r" {2,}", line.strip()) for line in (lines[rule - 1], *lines[rule + 1 :])]
    return list(takewhile(lambda row: len(row) == len(rows[0]), rows))


def test_inspect_shows_what_a_lower_precision_costs(int8: Path) -> None:
    text = run_command("inspect", int8, "--all").stdout
    assert (
        "int8: linear layers int8, attention and token table float16; 2 layers moved back (vision.blocks.0.mlp.fc2 to "
        "float16, text_heads to float32); residual stream float16 in vision.blocks.0 to vision.blocks.1; 24 smoothed; "
        "calibrated (percentile) on 96 images and 97 texts, 32 and 33 held out\n"
    ) in text
    measured = fgclip_rt.load(int8).manifest.parity.measured["int8"]
    lines = table(text, "parity at export, int8")[1:]
    assert [line[:2] for line in lines] == [[row.graph, row.case] for row in measured]
    for line, row in zip(lines, measured, strict=True):
        assert line[4] == f"{row.max_error:.1e}"
        if row.graph == "region":
            assert (line[2], line[3], line[6]) == ("99.9%", "2.5e-01", "1,234")
        if row.graph == "text":
            assert line[5:7] == ["-", "-"]


def test_inspect_sums_up_by_graph(int8: Path) -> None:
    rows = fgclip_rt.load(int8).manifest.parity.measured["int8"]
    text = run_command("inspect", int8).stdout
    lines = {line[0]: line[1:] for line in table(text, "parity at export, int8")[1:]}
    assert list(lines) == ["preparation", "vision", "dense", "region", "tokens", "text", "logits"]
    vision = [row for row in rows if row.graph == "vision"]
    assert lines["vision"] == [
        "9",
        f"{max(0.0, 1 - min(row.min_cosine for row in vision)):.1e}",
        f"{max(row.max_error for row in vision):.1e}",
        f"{max(row.logit_shift or 0 for row in vision):.1e}",
        f"{sum(row.flips or 0 for row in vision):,}",
        "ok",
    ]
    regions = [row for row in rows if row.graph == "region"]
    assert lines["region"][4] == f"{1234 * len(regions):,}"
    assert lines["tokens"][3:5] == ["-", "-"]
    assert lines["logits"][0] == "1"


def test_inspect_leaves_out_what_was_not_done(int8: Path) -> None:
    def edit(document: Json) -> None:
        document["lowering"]["int8"] = LOWERING | {
            "moved": {"text_heads": "float32"},
            "residual": [{"first": "vision.blocks.3", "last": "vision.blocks.3"}],
            "smoothed": 0,
        }

    edit_manifest(int8, edit)
    text = run_command("inspect", int8).stdout
    assert (
        "; 1 layer moved back (text_heads to float32); residual stream float16 in vision.blocks.3; calibrated" in text
    )
    edit_manifest(int8, lambda document: document["lowering"]["int8"].update(moved={}, residual=[], calibration=None))
    assert "int8: linear layers int8, attention and token table float16\n" in run_command("inspect", int8).stdout
    edit_manifest(int8, lambda document: document["lowering"].clear())
    assert "linear layers" not in run_command("inspect", int8).stdout


def test_verify_names_the_precision(int8: Path) -> None:
    text = run_command("verify", int8, "--precision", "int8").stdout
    assert "all 40 comparisons passed in int8 on onnxruntime" in text
    header, *rows = table(text)
    assert header == ["graph", "cases", "1-cos", "error", "logits", "flips", "result"]
    assert rows[1][:2] == ["vision", "9"]
    header, *rows = table(run_command("verify", int8, "--precision", "int8", "--all").stdout)
    assert header == ["graph", "case", "within", "1-cos", "error", "logits", "flips", "result"]
    assert ["vision", "mixed batch", "100.0%"] in [row[:3] for row in rows]
    report = json.loads(run_command("verify", int8, "--precision", "int8", "--json").stdout)
    assert report["precision"] == "int8"
    (row,) = (row for row in report["rows"] if row["case"] == "mixed batch")
    assert row["count"] == 5
    assert row["logit_shift"] < 0.01


def test_a_damaged_bundle_is_one_sentence(bundle_path: Path, tmp_path: Path, photo: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)
    data = bytearray((bundle / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(data)
    for command in (["verify", bundle], ["inspect", bundle], ["score", bundle, photo, "--text", "a"]):
        assert "weights.safetensors" in error_of(*command)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_embed_says_which_row_is_which_input(
    suffix: str, bundle_path: Path, model: fgclip_rt.Model, photos: Path, tmp_path: Path
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_bytes("\ufeffa cat\r\n一只黑猫\n\nlast".encode())
    output = tmp_path / f"out{suffix}"
    result = run_command("embed", bundle_path, photos, "--texts", captions, "--output", output)
    counted, skipped = result.stderr.splitlines()
    assert counted == f"fgclip-rt: {photos}: 3 images; passed over: 1 other."
    assert "damaged.png" in skipped
    assert "images skipped: 1" in result.stdout

    inputs, kinds, vectors = _read(output)
    files = [photos / "b.png", photos / "more/a.PNG"]
    texts = ["a cat", "一只黑猫", "", "last"]
    assert inputs == [*map(str, files), *texts]
    assert kinds == ["image"] * 2 + ["text"] * 4
    expected = np.concatenate([model.embed_images(files), model.embed_texts(texts)])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.dtype == np.float32


def _read(output: Path) -> tuple[list[str], list[str], Any]:
    if output.suffix == ".npy":
        rows = json.loads(output.with_name(output.name + ".json").read_text(encoding="utf-8"))["rows"]
        return [row["input"] for row in rows], [row["kind"] for row in rows], np.load(output)
    if output.suffix == ".npz":
        with np.load(output) as file:
            return file["inputs"].tolist(), file["kinds"].tolist(), file["vectors"]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(output)
    return table["input"].to_pylist(), table["kind"].to_pylist(), np.stack(table["vector"].to_numpy())


def test_embed_reports_skipped_images_and_truncated_texts_as_json(
    bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("short\n" + "very long " * 100 + "\na <EOS> and <pad>\n<eos>")
    arguments = ("embed", bundle_path, photos, "--texts", captions, "--output", tmp_path / "out.npz", "--json")
    result = run_command(*arguments)
    report = json.loads(result.stdout)
    assert report["shape"] == [6, 96]
    assert [(Path(entry["input"]).name, entry["code"]) for entry in report["skipped"]] == [
        ("damaged.png", "image_damaged")
    ]
    assert report["truncated_texts"] == [1]
    assert "1 of 4 texts exceed 64 tokens" in result.stderr
    assert (
        "2 of 4 texts spell special tokens, which the tokenizer reads as such and not as characters (number 3: <eos>)"
        in result.stderr
    )


def test_embed_writes_nothing_when_it_fails(bundle_path: Path, photos: Path, photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "latin1.txt"
    broken.write_bytes(b"fine\ncaf\xe9\n")
    empty = tmp_path / "empty.txt"
    empty.touch()
    output = tmp_path / "out.npy"
    before = sorted(tmp_path.rglob("*"))
    cases: list[tuple[list[object], list[str]]] = [
        ([photos, "--strict"], ["damaged.png"]),
        ([photos / "damaged.png"], ["none of the 1 images"]),
        ([tmp_path / "absent.jpg"], ["none of the 1 images"]),
        ([tmp_path / "absent.jpg", "--strict"], ["absent.jpg", "No such file"]),
        ([], ["nothing to embed"]),
        (["--texts", broken], ["latin1.txt", "line 2", "UTF-8"]),
        (["--texts", empty], ["empty.txt", "is empty"]),
        (["--texts", tmp_path / "absent.txt"], ["absent.txt"]),
        ([photo, "--walk-type", "tall"], ["tall", "short, box, long"]),
        ([photo, "--max-num-patches", 16385], ["16385", "16384"]),
        ([photo, "--batch-size", 0], ["batch_size"]),
        ([photo, "--precision", "int4"], ["int4", "fp32"]),
        ([photo, "--device", "tpu"], ["tpu", "auto, cpu, cuda"]),
        ([photo, "--threads", 0], ["threads"]),
        ([photo, "--max-image-pixels", 451 * 300 - 1, "--strict"], [PHOTO, "135,300 pixels", "--max-image-pixels"]),
    ]
    for arguments, parts in cases:
        lines = run_command("embed", bundle_path, *arguments, "--output", output, status=1).stderr.splitlines()
        assert all(part in lines[-1] for part in parts), (parts, lines)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_a_file_name_need_not_be_utf8(suffix: str, bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(photo, os.fsdecode(name))
    output = tmp_path / f"out{suffix}"
    run_command("embed", bundle_path, os.fsdecode(name), "--output", output)
    assert _read(output)[0] == [rf"{tmp_path}/caf\xe9.png"]


def test_an_image_of_exactly_the_limit_is_read(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    run_command("embed", bundle_path, photo, "--max-image-pixels", 451 * 300, "--output", tmp_path / "out.npy")


def test_images_whose_rotation_was_not_applied_are_counted(bundle_path: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo, plain = tmp_path / "a.jpg", tmp_path / "b.png"
    Image.fromarray(picture(64, 96)).save(photo, exif=exif)
    Image.fromarray(picture(64, 96)).save(plain)
    out, box, text = ["--output", tmp_path / "out.npy"], ["--box", "0,0,9,9"], ["--text", "a cat"]
    commands: list[tuple[list[object], str]] = [
        (["embed", bundle_path, photo, plain, *out, "--overwrite"], "1 of 2 images"),
        (["embed", bundle_path, photo, plain, *out, "--overwrite", "--strict"], "1 of 2 images"),
        (["score", bundle_path, photo, plain, *text], "1 of 2 images"),
        (["regions", bundle_path, photo, *box, *text], "1 of 1 images"),
        (["heatmap", bundle_path, photo, *text, "--output", tmp_path / "map.png", "--overwrite"], "1 of 1 images"),
    ]
    for command, note in commands:
        result = run_command(*command, "--json")
        assert result.stderr.count("EXIF rotation") == 1
        assert note in result.stderr
        assert json.loads(result.stdout)["unrotated"] == 1
        result = run_command(*command, "--json", "--no-exif-transpose")
        assert "EXIF" not in result.stderr
        assert json.loads(result.stdout)["unrotated"] == 1
        result = run_command(*command, "--json", "--exif-transpose")
        assert "EXIF" not in result.stderr
        assert json.loads(result.stdout)["unrotated"] == 0


def test_outputs_are_checked_before_any_work(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "there.npy").touch()
    for output, part in [
        (tmp_path / "there.npy", "exists already"),
        (tmp_path / "out.csv", ".npy, .npz, .parquet"),
        (tmp_path / "absent/out.npy", "not a folder"),
        (photo / "out.npy", "not a folder"),
    ]:
        assert part in error_of("embed", bundle_path, photo, "--output", output)
    run_command("embed", bundle_path, photo, "--output", tmp_path / "there.npy", "--overwrite")
    assert np.load(tmp_path / "there.npy").shape == (1, 96)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    command = (
        f"ulimit -f 0; exec {Path(sys.executable).with_name('fgclip-rt')} embed {bundle_path} {photo} --output out.npz"
    )
    result = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {command}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "out.npz cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_score_prints_cosines_logits_and_probabilities(bundle_path: Path, model: fgclip_rt.Model, photo: Path) -> None:
    texts = ["一只黑猫", "a white cat"]
    other = photo.with_name("0_astronaut_200x150.png")
    arguments = ["score", bundle_path, photo, other, "--text", texts[0], "--text", texts[1]]
    result = run_command(*arguments, "--json")
    document = json.loads(result.stdout)
    images, embeds = model.embed_images([photo, other]), model.embed_texts(texts)
    np.testing.assert_allclose(document["cosines"], images @ embeds.T, atol=1e-6)
    np.testing.assert_allclose(document["logits"], model.logits(images, embeds), atol=1e-4)
    np.testing.assert_allclose(document["probabilities"], model.probabilities(images, embeds), atol=1e-6)
    assert (document["activation"], document["skipped"], result.stderr) == ("sigmoid", [], "")
    table = run_command(*arguments).stdout.splitlines()
    assert table[1].split() == ["image", "text", "cosine", "logit", "probability"]
    expected = [f"{document[key][0][1]:.{digits}f}" for key, digits in KEYS]
    assert table[4].split()[-3:] == expected
    assert "sigmoid" in table[0]


KEYS = (("cosines", 4), ("logits", 2), ("probabilities", 4))


def test_score_says_that_a_softmax_compares_texts(square_path: Callable[[str], Path], photo: Path) -> None:
    bundle, other = square_path("fgclip1"), photo.with_name("0_astronaut_200x150.png")
    alone = run_command("score", bundle, photo, other, "--text", "a cat", "--json")
    document = json.loads(alone.stdout)
    # One text has the probability 1 whatever the image shows, and its cosines still tell the images apart.
    assert document["probabilities"] == [[1.0], [1.0]]
    assert document["cosines"][0] != document["cosines"][1]
    assert document["activation"] == "softmax"
    assert "softmax compares texts with each other" in alone.stderr
    table = run_command("score", bundle, photo, "--text", "a cat").stdout
    assert f"{document['cosines'][0][0]:.4f}" in table
    assert "softmax" in table.splitlines()[0]
    assert run_command("score", bundle, photo, "--text", "a cat", "--text", "a dog").stderr == ""


def test_score_leaves_out_an_image_that_cannot_be_read(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    absent, damaged = tmp_path / "absent.png", tmp_path / "damaged.png"
    damaged.write_bytes(photo.read_bytes()[:5000])
    one = run_command("score", bundle_path, absent, photo, "--text", "a", "--json", status=1)
    document = json.loads(one.stdout)
    assert document["images"] == [str(photo)]
    assert len(document["probabilities"]) == len(document["cosines"]) == 1
    assert [(entry["input"], entry["code"]) for entry in document["skipped"]] == [(str(absent), "image_unreadable")]
    assert document["error"]["message"].startswith(f"{absent} could not be read")
    skipped, last = one.stderr.splitlines()
    assert skipped.startswith(f"fgclip-rt: skipped: {absent} ")
    assert last == f"fgclip-rt: {document['error']['message']}"
    two = run_command("score", bundle_path, absent, photo, damaged, "--text", "a", status=1)
    assert str(photo) in two.stdout
    assert two.stderr.splitlines()[-1].startswith("fgclip-rt: 2 of 3 images could not be read")
    none = run_command("score", bundle_path, absent, damaged, "--text", "a", status=1)
    assert (none.stdout, len(none.stderr.splitlines())) == ("", 1)


def test_special_tokens_in_texts_are_one_note(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\nb <eos>\nc <pad>\n")
    for command in (
        ["score", bundle_path, photo, "--text", "a", "--text", "b <eos>", "--text", "<pad>"],
        ["regions", bundle_path, photo, "--box", "1,2,30,40", "--text", "a", "--text", "<eos>", "--text", "<pad>"],
        ["embed", bundle_path, "--texts", tmp_path / "texts.txt", "--output", tmp_path / "out.npy"],
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a user's own setting does not turn the note into an error
            (note,) = run_command(*command).stderr.splitlines()
        assert note.startswith(
            "fgclip-rt: 2 of 3 texts spell special tokens, which the tokenizer reads as such and not as"
        )
        assert "(number 2: <eos>)" in note


def test_a_text_is_shown_as_it_is_given(bundle_path: Path, photo: Path) -> None:
    text = "[red]a[/] :cat: \\[b]"
    assert text in run_command("score", bundle_path, photo, "--text", text).stdout


def test_regions_prints_cosines(bundle_path: Path, model: fgclip_rt.Model, photo: Path) -> None:
    arguments = ["regions", bundle_path, photo, "--box", "10,20,200,180", "--text", "window", "--text", "电脑"]
    document = json.loads(run_command(*arguments, "--json").stdout)
    expected = model.embed_regions(photo, [[10, 20, 200, 180]]) @ model.embed_texts(["window", "电脑"], "box").T
    np.testing.assert_allclose(document["cosines"], expected, atol=1e-6)
    assert f"{expected[0, 1]:.4f}" in run_command(*arguments).stdout


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("xyxy", "100,50,300,250"), ("xywh", "100,50,200,200"), ("normalized", "0.25,0.125,0.75,0.625")],
)
def test_regions_takes_boxes_of_every_format(
    box_format: str, box: str, bundle_path: Path, model: fgclip_rt.Model, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(400, 400)).save(path)
    result = run_command(
        "regions", bundle_path, path, "--box", box, "--box-format", box_format, "--text", "window", "--json"
    )
    document = json.loads(result.stdout)
    assert document["boxes"] == [[float(number) for number in box.split(",")]]
    assert document["box_format"] == box_format
    expected = model.embed_regions(path, [[100, 50, 300, 250]]) @ model.embed_texts("window", "box").T
    np.testing.assert_allclose(document["cosines"], expected, atol=1e-6)
    assert result.stderr == ""


def test_regions_says_which_units_it_takes(bundle_path: Path, photo: Path) -> None:
    command = ["regions", bundle_path, photo, "--text", "window"]
    assert "--box-format normalized" in error_of(*command, "--box", "0.1,0.2,0.5,0.6")
    assert "--box-format xywh" in error_of(*command, "--box", "200,180,100,90")
    assert "--box-format xyxy" in error_of(*command, "--box", "10,20,200,180", "--box-format", "normalized")
    assert "x,y,width,height in pixels" in error_of(*command, "--box", "10,20", "--box-format", "xywh")
    assert "choose from xyxy, xywh, normalized" in error_of(*command, "--box", "1,2,3,4", "--box-format", "cxcywh")
    result = run_command(*command, "--box", "2,3,9,7", "--box", "1,1,12,9", "--json")
    assert result.stderr.startswith("fgclip-rt: all boxes lie in the first ")
    assert len(result.stderr.splitlines()) == 1
    assert len(json.loads(result.stdout)["cosines"]) == 2


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "1,2,nan,4", "9,9,3,3", "5,5,5,9", "900,900,950,950"])
def test_regions_refuses_a_bad_box(box: str, bundle_path: Path, photo: Path) -> None:
    assert "box" in error_of("regions", bundle_path, photo, "--box", box, "--text", "window")


def test_heatmap_draws_a_picture_and_says_where_texts_are_found(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "map.png"
    arguments = ["heatmap", bundle_path, photo, "--text", "window", "--text", "cat", "--output", output]
    report = json.loads(run_command(*arguments, "--json").stdout)
    x, y = report["texts"][0]["at"]
    assert 0 <= x <= 451
    assert 0 <= y <= 300
    with Image.open(output) as image:
        assert image.width > 2 * 400
    assert "exists already" in error_of(*arguments)
    said = run_command(*arguments, "--overwrite").stdout
    assert f"{output}: 2 maps of 19×29 patches" in said
    assert f"largest at {x:.0f},{y:.0f}" in said


def test_a_terminal_without_utf8_or_with_closed_output_is_no_fault(bundle_path: Path, photo: Path) -> None:
    program = Path(sys.executable).with_name("fgclip-rt")
    command = f"{program} score {bundle_path} {photo} --text 猫"
    latin = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert latin.returncode == 0, latin.stderr
    assert b"\\u732b" in latin.stdout
    for closed in (">&-", "2>&-"):
        assert subprocess.run(["bash", "-c", f"{command} {closed}"], capture_output=True, check=False).returncode == 0


def test_random_weights_are_said_loudly(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)
    manifest = (bundle / "manifest.json").read_text(encoding="utf-8")
    (bundle / "manifest.json").write_text(manifest.replace('"weights": "local"', '"weights": "random"'))
    assert "RANDOM WEIGHTS" in run_command("score", bundle, photo, "--text", "a").stderr
    assert "RANDOM" in run_command("inspect", bundle).stdout


def test_evaluate_counts_right_choices(pocket_path: Path, hundred: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Evaluation] = []

    def evaluate_once(*arguments: Any, **options: Any) -> Evaluation:
        found.append(evaluate(*arguments, **options))
        return found[0]

    monkeypatch.setattr("fgclip_rt.cli.commands.evaluate.evaluate_model", evaluate_once)
    report = json.loads(run_command("evaluate", pocket_path, "--scenes", 100, "--json").stdout)
    # The same scenes get the same answers.
    assert found == [hundred]
    assert (report["scenes"], report["seed"], report["precision"]) == (100, hundred.seed, "fp32")
    figures = {(figure["measure"], figure["language"]): figure for figure in report["figures"]}
    assert len(figures) == 14
    for figure in figures.values():
        assert figure["share"] == figure["right"] / figure["total"]
    changes = report["true_before_false_by_change"].values()
    assert sum(change["total"] for change in changes) == 200
    assert sum(change["right"] for change in changes) == sum(
        figures["true before false caption", language]["right"] for language in ("en", "zh")
    )
    # A second evaluation would take as long, so the table shows the figures of the first.
    asked: list[tuple[Any, ...]] = []

    def repeat(*arguments: Any, **_: Any) -> Evaluation:
        asked.append(arguments[1:3])
        return found[0]

    monkeypatch.setattr("fgclip_rt.cli.commands.evaluate.evaluate_model", repeat)
    table = run_command("evaluate", pocket_path, "--scenes", 200, "--seed", 3).stdout
    assert asked == [(200, 3)]
    assert f"{figures['short text to image', 'zh']['share']:.1%}" in table
    assert "by chance" in table

    # The second precision gives one answer otherwise.
    def other(*arguments: Any, **_: Any) -> Evaluation:
        first, *rest = found[0].figures
        assert first.choices[0]
        worse = replace(first, choices=(False, *first.choices[1:]))
        return replace(found[0], figures=(worse, *rest)) if arguments[0].precision == "int8" else found[0]

    monkeypatch.setattr("fgclip_rt.cli.commands.evaluate.evaluate_model", other)
    both = ("--precision", "fp32", "--precision", "int8")
    (beside,) = json.loads(run_command("evaluate", pocket_path, *both, "--json").stdout)["others"]
    assert beside["precision"] == "int8"
    assert [(flipped["lost"], flipped["gained"], flipped["p_value"]) for flipped in beside["figures"][:2]] == [
        (1, 0, 1.0),
        (0, 0, 1.0),
    ]
    assert "choices of int8 that are not those of fp32" in run_command("evaluate", pocket_path, *both).stdout
    assert "given twice" in error_of("evaluate", pocket_path, "--precision", "fp32", "--precision", "fp32")


def test_evaluate_refuses_what_makes_no_hundreds(pocket_path: Path) -> None:
    assert "pass 100, 200 and so on" in error_of("evaluate", pocket_path, "--scenes", 150)


def test_a_scene_and_its_captions_go_together(pocket_path: Path, tmp_path: Path) -> None:
    """Ten scenes are scored, because a single one may be hard."""
    preferred = 0
    for seed in range(10):
        picture = tmp_path / f"{seed}.png"
        described = json.loads(run_command("scene", "--output", picture, "--seed", seed, "--json").stdout)
        with Image.open(picture) as image:
            assert list(image.size) == described["size"]
        english = described["captions"]["en"]
        assert len(described["boxes"]) == len(english["names"]) >= 3
        arguments = ["score", pocket_path, picture, "--text", english["short"], "--text", english["false"], "--json"]
        true, false = json.loads(run_command(*arguments).stdout)["probabilities"][0]
        preferred += true > false
    assert preferred >= 8
    assert english["long"] in run_command("scene", "--output", tmp_path / "again.png", "--seed", seed).stdout
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()


def test_scene_says_what_it_cannot_write(tmp_path: Path) -> None:
    assert ".png" in error_of("scene", "--output", tmp_path / "scene.gif")
    (tmp_path / "scene.png").touch()
    assert "--overwrite" in error_of("scene", "--output", tmp_path / "scene.png")
    assert "not a folder" in error_of("scene", "--output", tmp_path / "none/scene.png")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_the_pocket_checkpoint_exports_by_name(pocket_export: tuple[Path, Completed], tmp_path: Path) -> None:
    folder, result = pocket_export
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["bundle"], report["weights"]) == ("fg-clip2-pocket", "shipped")
    assert list(report["parity"]) == ["fp32", "fp16", "int8"]
    assert list(report["lowering"]) == ["fp16", "int8"]
    # Some patches miss int8's least cosine, but no patch misses fp16's.
    assert report["parity"]["fp16"]["within"] == 1 > report["parity"]["int8"]["within"] >= 0.95
    assert [path.name for path in folder.iterdir()] == ["fg-clip2-pocket"]
    assert "leave out --revision" in error_of(
        "export", "--model", "fg-clip2-pocket", "--revision", "main", cwd=tmp_path
    )
