"""``fgclip-rt embed`` on the folders that people have, on names that are no text, and through interruptions."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fgclip_rt
from fgclip_rt import folders
from fgclip_rt.journal import Journal
from helpers import contents, picture, run_command

PROGRAM = Path(sys.executable).with_name("fgclip-rt")

#: Sizes of three buckets.
SIZES = ((40, 60), (300, 330), (64, 64), (200, 280), (480, 400))


def save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(*SIZES[seed % len(SIZES)], seed)).save(path, format="PNG")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 24 images of three buckets, and one that is damaged."""
    folder = tmp_path / "photos"
    for index in range(24):
        save(folder / f"{index:02d}.png", index)
    (folder / "05x.png").write_bytes((folder / "05.png").read_bytes()[:1000])
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of 60 different texts, of which some come again in other cases."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"{'A text' if index % 3 else 'a TEXT'} {index % 60}" for index in range(80)))
    return path


@pytest.fixture(autouse=True)
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests mean the same whether pillow-heif is installed or not."""
    monkeypatch.setattr(folders, "missing_packages", list)


def test_a_folder_of_all_that_people_have_is_reported(bundle_path: Path, tmp_path: Path) -> None:
    folder, elsewhere, output = tmp_path / "photos", tmp_path / "elsewhere", tmp_path / "out.npz"
    for index, name in enumerate(("a.png", "sub/no suffix", "._a.png", "@eaDir/a.png/thumbnail.png")):
        save(folder / name, index)
    save(elsewhere / "b.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub/up").symlink_to(folder)
    (folder / "broken.png").symlink_to("absent")
    for name in ("a.HEIC", "b.heic", "c.nef", "d.jxl", "e.mp4", "f.txt"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe.png")
    result = run_command("embed", bundle_path, folder, "--output", output, "--json")
    expected = {
        "HEIC": 2, "JPEG XL": 1, "RAW": 1, "broken links": 1, "hidden": 2, "linked again": 1, "other": 1, "special": 1,
        "video": 1,
    }  # fmt: skip
    report = json.loads(result.stdout)
    assert report["passed_over"] == expected
    assert report["unreadable"] == []
    assert [row["input"] for row in report["rows"]] == [
        str(folder / name) for name in ("a.png", "linked/b.png", "sub/no suffix")
    ]
    assert result.stderr == (
        f"fgclip-rt: {folder}: 3 images; passed over: 2 HEIC (install pillow-heif), 1 JPEG XL (convert them), 1 RAW "
        "(convert them), 1 broken links, 2 hidden, 1 linked again, 1 other, 1 special, 1 video.\n"
    )


def test_folders_that_cannot_be_read_are_named(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything, so that the refusal is made up."""
    folder = tmp_path / "photos"
    save(folder / "a.png")
    for index in range(7):
        save(folder / f"closed{index}/a.png")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    arguments = ["embed", bundle_path, folder, "--output", tmp_path / "out.npz", "--json"]
    error = json.loads(run_command(*arguments, "--strict", status=1).stdout)["error"]
    assert f"{folder}/closed0 could not be read" in error["message"]
    assert not (tmp_path / "out.npz").exists()
    result = run_command(*arguments)
    shown = ", ".join(f"{folder}/closed{index}" for index in range(5))
    counted, named = result.stderr.splitlines()
    assert counted == f"fgclip-rt: {folder}: 1 image; passed over: 7 unreadable."
    assert named == f"fgclip-rt: unreadable: {shown}, …"
    report = json.loads(result.stdout)
    assert report["unreadable"] == [f"{folder}/closed{index}" for index in range(7)]
    assert report["shape"] == [1, 96]
    message = run_command("embed", bundle_path, folder / "closed0", "--output", "x.npz", status=1).stderr
    assert "closed0 cannot be read (Permission denied)" in message


def test_a_folder_without_images_says_what_it_holds(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    (tmp_path / "empty").mkdir()
    for folder, part in ((tmp_path, "(passed over: 1 HEIC (install pillow-heif))"), (tmp_path / "empty", "read; give")):
        message = run_command("embed", bundle_path, folder, "--output", tmp_path / "out.npz", status=1).stderr
        assert f"{folder} holds no image files that can be read" in message
        assert part in message


def test_a_pipe_that_is_named_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", os.devnull):
        message = run_command("embed", bundle_path, path, "--output", tmp_path / "out.npz", status=1).stderr
        assert f"{path} is no file but a pipe, socket or device" in message


def test_a_pipe_that_the_shell_has_opened_is_read(bundle_path: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    command = f"{PROGRAM} embed {bundle_path} <(cat a.png) --output out.npz"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "out.npz: float32 [1, 96], 1 of images and 0 of texts\n", result.stderr


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_names_are_spelled_alike_everywhere_and_read_back(suffix: str, bundle_path: Path, tmp_path: Path) -> None:
    names = [b"caf\xe8.png", b"caf\xe9.png", b"line\nfeed\t\x1b[31m.png", rb"slash\xe9.png", "猫.png".encode()]
    spelled = [r"caf\xe8.png", r"caf\xe9.png", r"line\x0afeed\x09\x1b[31m.png", r"slash\x5cxe9.png", "猫.png"]
    folder = tmp_path / "photos"
    for index, name in enumerate(names):
        save(folder / os.fsdecode(name), index)
    (folder / os.fsdecode(b"bad\xff\x9b.png")).write_bytes(b"no image")
    output = tmp_path / f"out{suffix}"
    result = run_command("embed", bundle_path, folder, "--output", output, "--json")
    report = json.loads(result.stdout)
    rows = [row["input"] for row in report["rows"]]
    assert rows == [f"{folder}/{name}" for name in spelled]
    assert _inputs(output) == rows
    assert [os.fsencode(Path(fgclip_rt.unspell_path(row)).name) for row in rows] == names
    assert [entry["input"] for entry in report["skipped"]] == [rf"{folder}/bad\xff\x9b.png"]
    assert report["skipped"][0]["error"].startswith(rf"{folder}/bad\xff\x9b.png is not an image")
    assert rf"skipped: {folder}/bad\xff\x9b.png is not an image" in result.stderr


def _inputs(output: Path) -> list[str]:
    if output.suffix == ".npz":
        with np.load(output) as file:
            inputs: list[str] = file["inputs"].tolist()
            return inputs
    if output.suffix == ".npy":
        rows = json.loads(output.with_name(output.name + ".json").read_text(encoding="utf-8"))["rows"]
        return [row["input"] for row in rows]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(output)["input"].to_pylist()  # type: ignore[no-any-return]


def test_an_npz_that_would_be_mostly_padding_is_refused_before_any_work(bundle_path: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    before = contents(tmp_path)
    for lines, part in (
        ([*"ab" * 2000, "c" * 100_000], "1,600,400,000 bytes"),
        (["a\0"], "input number 1 ends in a NUL"),
    ):
        texts.write_text("\n".join(lines))
        output = tmp_path / "out.npz"
        message = run_command("embed", bundle_path, "--texts", texts, "--output", output, status=1).stderr
        assert part in message
        assert "write .parquet or .npy" in message
        assert contents(tmp_path).keys() == {*before, texts}


def interrupted(error: BaseException, batches: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Run a command in which ``error`` arises when a batch is to be kept after ``batches`` that were."""
    add, left = Journal.add, batches

    def stop(*arguments: Any) -> None:
        nonlocal left
        if not left:
            raise error
        left -= 1
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stop)
        run()


@pytest.mark.parametrize(("suffix", "precision"), [(".npy", "fp32"), (".npz", "int8"), (".parquet", "fp32")])
def test_an_interrupted_run_goes_on_to_the_same_file(
    suffix: str, precision: str, pocket_path: Path, photos: Path, texts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = ["embed", pocket_path, photos, "--texts", texts, "--batch-size", 4, "--precision", precision]
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    report = json.loads(run_command(*arguments, "--output", whole, "--json").stdout)
    shown = []
    # Interrupted before, between and in images and texts.
    for batches in (0, 1, 3, 2, 1):
        interrupted(
            KeyboardInterrupt(), batches, monkeypatch,
            lambda: shown.append(run_command(*arguments, "--output", output, "--resume", status=130).stderr),
        )  # fmt: skip
        assert not output.exists()
    assert shown[0].endswith("fgclip-rt: interrupted; nothing was written.\n")
    for before, after in pairwise(shown[1:]):
        _, kept, remedy = before.splitlines()[-1].split("; ")
        assert remedy == "add --resume to the same command to go on."
        kept = kept.removesuffix(" are kept")
        assert kept.endswith(" of 85 vectors")
        assert f"fgclip-rt: {kept} are there from the interrupted run.\n" in after
    resumed = json.loads(run_command(*arguments, "--output", output, "--resume", "--json").stdout)
    assert output.read_bytes() == whole.read_bytes()
    assert resumed == report | {"output": str(output)}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    # Texts that are one to the model have one vector, and each line has its row.
    assert resumed["shape"][0] == 24 + 80


def test_a_killed_run_goes_on_to_the_same_file(bundle_path: Path, photos: Path, texts: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.npz", tmp_path / "out.npz"
    command = [PROGRAM, "embed", bundle_path, photos, "--texts", texts, "--batch-size", "1", "--output"]
    subprocess.run([*command, whole], check=True, capture_output=True)
    generator = random.Random(0)
    journal = tmp_path / ".out.npz.unfinished/journal"
    grown = []
    for _ in range(4):
        size = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen([*command, output, "--resume"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > size):
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.03))
        process.kill()
        process.wait()
        grown.append(journal.exists())
    assert grown[0], "the run must end before it is done for this to mean anything"
    subprocess.run([*command, output, "--resume", "--overwrite"], check=True, capture_output=True)
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "texts.txt", "whole.npz", "out.npz"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_says_what_it_keeps(
    number: signal.Signals, status: int, bundle_path: Path, photos: Path, texts: Path, tmp_path: Path
) -> None:
    command = [PROGRAM, "embed", bundle_path, photos, "--texts", texts, "--batch-size", "1", "--output", "out.npz"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.npz.unfinished/journal"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.001)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == status
    assert "vectors are kept; add --resume to the same command to go on" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_a_run_that_was_interrupted_is_not_passed_over(
    bundle_path: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npz"
    arguments: Sequence[object] = ["embed", bundle_path, photos, "--output", output, "--batch-size", 2]
    interrupted(KeyboardInterrupt(), 2, monkeypatch, lambda: run_command(*arguments, status=130))
    before = contents(tmp_path)
    for more, part in (
        ([], "was begun by a run that did not end; go on with --resume, or begin anew with --overwrite"),
        (["--resume", "--no-normalize"], "was begun with --normalize True, and now it is False"),
        (["--resume", "--batch-size", 3], "was begun with --batch-size 2, and now it is 3"),
        (["--resume", photos / "01.png"], "was begun for other inputs (25 then, 26 now)"),
    ):
        assert part in run_command(*arguments, *more, status=1).stderr
        assert contents(tmp_path) == before
    result = run_command(*arguments, "--overwrite")
    assert "interrupted run" not in result.stderr
    assert contents(tmp_path).keys() == {*contents(photos), photos, output}


def test_a_file_that_changed_meanwhile_is_embedded_again(
    bundle_path: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npy"
    arguments = ["embed", bundle_path, photos, "--output", output, "--batch-size", 1]
    interrupted(KeyboardInterrupt(), 12, monkeypatch, lambda: run_command(*arguments, status=130))
    # The one was done, and the other could not be read.
    shutil.copy(photos / "20.png", photos / "02.png")
    shutil.copy(photos / "21.png", photos / "05x.png")
    assert "fgclip-rt: 11 of 25 vectors are there" in run_command(*arguments, "--resume").stderr
    vectors = np.load(output)
    files = sorted(photos.iterdir())
    expected = fgclip_rt.load(bundle_path, device="cpu").embed_images(files, batch_size=1)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_what_was_done_before_an_error_is_kept(bundle_path: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    arguments = ["embed", bundle_path, photos, "--output", output, "--batch-size", 1]
    kept, error = run_command(*arguments, "--strict", status=1).stderr.splitlines()
    assert "of 25 vectors are kept; add --resume to the same command to go on." in kept
    assert "05x.png is damaged" in error
    (photos / "05x.png").unlink()
    save(photos / "05x.png")
    run_command(*arguments, "--strict", "--resume")
    assert np.load(output).shape == (25, 96)


@pytest.mark.parametrize("kept", [False, True])
def test_a_disk_that_fills_up_keeps_the_vectors(kept: bool, bundle_path: Path, photos: Path, tmp_path: Path) -> None:
    """A file may take one block of 1,024 bytes: two vectors of 96, and then no more."""
    run = f"ulimit -f {int(kept)}; exec {PROGRAM} embed {bundle_path} {photos} --batch-size 1 --output out.npz"
    result = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {run}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "out.npz cannot be written" in result.stderr.splitlines()[-1]
    assert ("fgclip-rt: 2 of 25 vectors are kept;" in result.stderr) == kept
    assert (tmp_path / ".out.npz.unfinished").exists() == kept
    if kept:
        command = ["embed", bundle_path, photos, "--batch-size", 1, "--output", "out.npz", "--resume"]
        assert "2 of 25 vectors are there" in run_command(*command, cwd=tmp_path).stderr


def test_what_is_printed_cannot_act_on_the_terminal(bundle_path: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202egpj"
    shown = r"\x1b]0;owned\x07\xc2\x9b31m\xe2\x80\xaegpj"
    photo = tmp_path / f"{evil}.png"
    save(photo)
    (tmp_path / f"bad{evil}.png").write_bytes(b"")
    result = run_command("score", bundle_path, photo, "--text", f"a {evil}", "--text", "two\ttabs")
    assert f"a {shown}" in result.stdout
    assert r"two\x09tabs" in result.stdout
    results = [
        result,
        run_command("score", bundle_path, photo, "--text", evil, "--json"),
        run_command("score", bundle_path, tmp_path / f"bad{evil}.png", "--text", "a", status=1),
        run_command("score", bundle_path, tmp_path / f"bad{evil}.png", "--text", "a", "--json", status=1),
        run_command("inspect", tmp_path / evil, status=1),
        run_command("inspect", bundle_path, evil, status=2),
        # click itself escapes these.
        run_command("inspect", f"--{evil}", "--json", status=2),
        run_command(evil, status=2),
    ]
    for result in results:
        for stream in (result.stdout, result.stderr):
            assert not set(stream) & set("\x1b\x07\x9b\u202e"), stream
            if stream.startswith("{"):
                assert json.loads(stream)
    assert json.loads(results[1].stdout)["texts"] == [evil]
    for result in results[2:6]:
        assert shown in result.stderr
