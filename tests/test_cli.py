"""The command line as its users meet it: results, errors in one sentence, statuses, and outputs whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fgclip_rt

PHOTO = "1_chelsea_451x300.png"


def run(*arguments: object, cwd: Path | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``fgclip-rt`` and insist on its status, and on an error that is one line and no traceback."""
    result = subprocess.run(
        [Path(sys.executable).with_name("fgclip-rt"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def error_of(*arguments: object, cwd: Path | None = None) -> str:
    """The one line with which a command fails."""
    lines = [line for line in run(*arguments, cwd=cwd, status=1).stderr.splitlines() if "RANDOM WEIGHTS" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("fgclip-rt: ")
    return lines[0]


@pytest.fixture
def photo(goldens: Path) -> Path:
    return goldens / "fgclip2/images" / PHOTO


@pytest.fixture
def photos(goldens: Path, tmp_path: Path) -> Path:
    """A folder of two images, one in a folder below, a damaged one, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    images = goldens / "fgclip2/images"
    shutil.copy(images / PHOTO, folder / "b.png")
    shutil.copy(images / "0_astronaut_200x150.png", folder / "more/a.PNG")
    (folder / "damaged.png").write_bytes((images / PHOTO).read_bytes()[:5000])
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_version_and_help_list_every_command() -> None:
    assert run("--version").stdout.strip() == f"fgclip-rt {fgclip_rt.__version__}"
    text = run("--help").stdout
    for command in (
        "export",
        "verify",
        "inspect",
        "embed",
        "score",
        "regions",
        "heatmap",
        "evaluate",
        "scene",
        "doctor",
    ):
        assert f"\n  {command} " in text


def test_export_writes_a_bundle_and_reports_its_parity(goldens: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    result = run("export", "--model", goldens / "fgclip2-masked/checkpoint", "--output", output, "--json")
    report = json.loads(result.stdout)
    assert report["bundle"] == str(output)
    assert report["parity"]["fp32"]["max_error"] <= 2e-5
    assert result.stderr == ""
    assert fgclip_rt.load(output).dim == report["embedding_size"] == 64
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {oct(path.stat().st_mode & 0o777) for path in output.iterdir()} == {oct(0o666 & ~_umask())}


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
    ],
)
def test_export_refuses(arguments: list[str], parts: list[str], goldens: Path, photo: Path, tmp_path: Path) -> None:
    existing = tmp_path / "existing"
    existing.mkdir()
    places = {"checkpoint": goldens / "fgclip2/checkpoint", "existing": existing, "photo": photo}
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


def test_verify_passes_from_the_probe_and_against_the_checkpoint(bundle_path: Path, goldens: Path) -> None:
    assert "comparisons passed" in run("verify", bundle_path).stdout
    report = json.loads(run("verify", bundle_path, "--checkpoint", goldens / "fgclip2/checkpoint", "--json").stdout)
    assert report["passed"]
    assert {row["graph"] for row in report["rows"]} >= {"preparation", "tokens", "vision", "dense", "region", "text"}


def test_verify_fails_against_another_checkpoint(bundle_path: Path, goldens: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(goldens / "fgclip2/checkpoint", checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["boxtext_head.bias"] = tensors["boxtext_head.bias"] + 0.01
    save_file(tensors, checkpoint / "model.safetensors")
    result = run("verify", bundle_path, "--checkpoint", checkpoint, status=1)
    failed = [line for line in result.stdout.splitlines() if "FAILED" in line]
    assert len(failed) == 1
    assert "box" in failed[0]
    assert "fails 1 of 40 comparisons" in result.stderr


def test_verify_sees_another_tokenizer(masked_bundle_path: Path, goldens: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(goldens / "fgclip2-masked/checkpoint", checkpoint)
    document = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    document["post_processor"] = None
    (checkpoint / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    result = run("verify", masked_bundle_path, "--checkpoint", checkpoint, status=1)
    assert sum("tokens" in line and "FAILED" in line for line in result.stdout.splitlines()) == 3


def test_verify_refuses_a_checkpoint_of_another_size(bundle_path: Path, goldens: Path) -> None:
    message = error_of("verify", bundle_path, "--checkpoint", goldens / "fgclip2-masked/checkpoint")
    assert "vectors of 64" in message
    assert "of 96" in message


def test_inspect_shows_the_manifest(bundle_path: Path) -> None:
    text = run("inspect", bundle_path).stdout
    for part in ("vision.onnx", "spatial_shapes int32 [batch, 2]", "short 64, box 64, long 196", "weights.safetensors"):
        assert part in text
    document = json.loads(run("inspect", bundle_path, "--json").stdout)
    assert document["manifest"]["embedding_size"] == 96


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
    result = run("embed", bundle_path, photos, "--texts", captions, "--output", output)
    assert result.stderr.count("\n") == 1
    assert "damaged.png" in result.stderr
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
    captions.write_text("short\n" + "very long " * 100)
    arguments = ("embed", bundle_path, photos, "--texts", captions, "--output", tmp_path / "out.npz", "--json")
    result = run(*arguments)
    report = json.loads(result.stdout)
    assert report["shape"] == [4, 96]
    assert [Path(entry["input"]).name for entry in report["skipped"]] == ["damaged.png"]
    assert report["truncated_texts"] == [1]
    assert "1 of 2 texts exceed 64 tokens" in result.stderr


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
        ([photo, "--max-image-pixels", 1000, "--strict"], [PHOTO, "--max-image-pixels"]),
    ]
    for arguments, parts in cases:
        lines = run("embed", bundle_path, *arguments, "--output", output, status=1).stderr.splitlines()
        assert all(part in lines[-1] for part in parts), (parts, lines)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_a_file_name_need_not_be_utf8(suffix: str, bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(photo, os.fsdecode(name))
    output = tmp_path / f"out{suffix}"
    run("embed", bundle_path, os.fsdecode(name), tmp_path / "absent.png", "--output", output)
    assert _read(output)[0] == [f"{tmp_path}/caf?.png"]


def test_outputs_are_checked_before_any_work(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "there.npy").touch()
    for output, part in [
        (tmp_path / "there.npy", "exists already"),
        (tmp_path / "out.csv", ".npy, .npz, .parquet"),
        (tmp_path / "absent/out.npy", "not a folder"),
        (photo / "out.npy", "not a folder"),
    ]:
        assert part in error_of("embed", bundle_path, photo, "--output", output)
    run("embed", bundle_path, photo, "--output", tmp_path / "there.npy", "--overwrite")
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


def test_score_prints_probabilities(bundle_path: Path, model: fgclip_rt.Model, photo: Path) -> None:
    texts = ["一只黑猫", "a white cat"]
    arguments = ["score", bundle_path, photo, photo, "--text", texts[0], "--text", texts[1]]
    document = json.loads(run(*arguments, "--json").stdout)
    expected = model.probabilities(model.embed_images([photo, photo]), model.embed_texts(texts))
    np.testing.assert_allclose(document["probabilities"], expected, atol=1e-6)
    assert f"{expected[0, 1]:.4f}" in run(*arguments).stdout


def test_a_text_is_shown_as_it_is_given(bundle_path: Path, photo: Path) -> None:
    text = "[red]a[/] :cat: \\[b]"
    assert text in run("score", bundle_path, photo, "--text", text).stdout


def test_regions_prints_cosines(bundle_path: Path, model: fgclip_rt.Model, photo: Path) -> None:
    arguments = ["regions", bundle_path, photo, "--box", "10,20,200,180", "--text", "window", "--text", "电脑"]
    document = json.loads(run(*arguments, "--json").stdout)
    expected = model.embed_regions(photo, [[10, 20, 200, 180]]) @ model.embed_texts(["window", "电脑"], "box").T
    np.testing.assert_allclose(document["cosines"], expected, atol=1e-6)
    assert f"{expected[0, 1]:.4f}" in run(*arguments).stdout


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "1,2,nan,4", "9,9,3,3", "5,5,5,9", "900,900,950,950"])
def test_regions_refuses_a_bad_box(box: str, bundle_path: Path, photo: Path) -> None:
    assert "box" in error_of("regions", bundle_path, photo, "--box", box, "--text", "window")


def test_heatmap_draws_a_tile_for_the_photo_and_each_text(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "map.png"
    result = run("heatmap", bundle_path, photo, "--text", "window", "--text", "cat", "--output", output, "--json")
    report = json.loads(result.stdout)
    assert report["grid"] == [19, 29]
    x, y = report["texts"][0]["at"]
    assert 0 <= x <= 451
    assert 0 <= y <= 300
    with Image.open(output) as image:
        assert image.width > 3 * 400
        colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
    assert colours is not None
    # Each map runs from the lowest to the highest colour.
    assert {(0x44, 0x01, 0x54), (0xFD, 0xE7, 0x25)} <= {colour for _, colour in colours}
    assert "exists already" in error_of("heatmap", bundle_path, photo, "--text", "a", "--output", output)


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


def test_doctor_says_what_is_missing() -> None:
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)}
    assert checks["bundles on the CPU"]["ok"]
    assert all(check["ok"] or check["remedy"] for check in checks.values())
    assert "bundles on an NVIDIA GPU" in run("doctor").stdout


def test_random_weights_are_said_loudly(bundle_path: Path, photo: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)
    manifest = (bundle / "manifest.json").read_text(encoding="utf-8")
    (bundle / "manifest.json").write_text(manifest.replace('"weights": "local"', '"weights": "random"'))
    assert "RANDOM WEIGHTS" in run("score", bundle, photo, "--text", "a").stderr
    assert "RANDOM" in run("inspect", bundle).stdout


def test_evaluate_counts_right_choices(pocket_path: Path) -> None:
    report = json.loads(run("evaluate", pocket_path, "--scenes", 100, "--seed", 3, "--json").stdout)
    assert (report["scenes"], report["seed"], report["precision"]) == (100, 3, "fp32")
    figures = {(figure["measure"], figure["language"]): figure for figure in report["figures"]}
    assert len(figures) == 14
    for figure in figures.values():
        assert figure["share"] == figure["right"] / figure["total"]
    changes = report["true_before_false_by_change"].values()
    assert sum(change["total"] for change in changes) == 200
    assert sum(change["right"] for change in changes) == sum(
        figures["true before false caption", language]["right"] for language in ("en", "zh")
    )
    table = run("evaluate", pocket_path, "--scenes", 100, "--seed", 3).stdout
    assert f"{figures['short text to image', 'zh']['share']:.1%}" in table
    assert "by chance" in table


def test_evaluate_refuses_what_makes_no_hundreds(pocket_path: Path) -> None:
    assert "pass 100, 200 and so on" in error_of("evaluate", pocket_path, "--scenes", 150)


def test_a_scene_and_its_captions_go_together(pocket_path: Path, tmp_path: Path) -> None:
    """Of some scenes, for one may be hard."""
    preferred = 0
    for seed in range(10):
        picture = tmp_path / f"{seed}.png"
        described = json.loads(run("scene", "--output", picture, "--seed", seed, "--json").stdout)
        with Image.open(picture) as image:
            assert list(image.size) == described["size"]
        english = described["captions"]["en"]
        assert len(described["boxes"]) == len(english["names"]) >= 3
        arguments = ["score", pocket_path, picture, "--text", english["short"], "--text", english["false"], "--json"]
        true, false = json.loads(run(*arguments).stdout)["probabilities"][0]
        preferred += true > false
    assert preferred >= 8
    assert english["long"] in run("scene", "--output", tmp_path / "again.png", "--seed", seed).stdout
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()


def test_scene_says_what_it_cannot_write(tmp_path: Path) -> None:
    assert ".png" in error_of("scene", "--output", tmp_path / "scene.gif")
    (tmp_path / "scene.png").touch()
    assert "--overwrite" in error_of("scene", "--output", tmp_path / "scene.png")
    assert "not a folder" in error_of("scene", "--output", tmp_path / "none/scene.png")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_the_pocket_checkpoint_exports_by_name(tmp_path: Path) -> None:
    report = json.loads(run("export", "--model", "fg-clip2-pocket", "--json", cwd=tmp_path).stdout)
    assert (report["bundle"], report["weights"]) == ("fg-clip2-pocket", "shipped")
    assert "leave out --revision" in error_of(
        "export", "--model", "fg-clip2-pocket", "--revision", "main", cwd=tmp_path
    )
