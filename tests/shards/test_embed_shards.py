"""``fgclip-rt embed-shards``: processes that share a job, and die."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fgclip_rt.bundle import Bundle
from fgclip_rt.shards import find_shards, make_job, open_store
from fgclip_rt.shards.task import Done, Setup, Task, Worker
from helpers import edit_manifest, run_command
from sharding import NAME, letters_of, rows_of, write_folder, write_tar


@pytest.fixture
def inputs(tmp_path: Path, images: list[bytes]) -> list[Path]:
    """A folder of six shards, of which two have a broken image, and a tar."""
    folder = write_folder(tmp_path / "photos", [image for image in images for _ in range(2)])
    (folder / "005.jpg").write_bytes(b"broken")
    (folder / "017.jpg").write_bytes(images[0][:300])
    tar = write_tar(tmp_path / "t.tar", [(f"{number}.jpg", image) for number, image in enumerate(images[:5])])
    return [folder, tar]


def arguments(inputs: list[Path], output: Path, *more: object) -> list[object]:
    return ["embed-shards", NAME, *inputs, "--output", output, "--shard-size", 4, *more]


def report(*words: object, status: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run_command(*words, "--json", status=status).stdout)
    return document


def everything(output: Path) -> dict[str, Any]:
    """Rows, dead letters, and what the markers say but the times."""
    found: dict[str, Any] = {}
    for path in sorted(output.glob("*.json")):
        if path.name != "job.json":
            marker = json.loads(path.read_bytes())
            del marker["seconds"], marker["images_per_second"]
            name = marker["shard"]
            found[name] = (marker, rows_of(output / f"{name}.parquet"), letters_of(output / f"{name}.errors.parquet"))
    return found


def test_processes_share_a_job_and_give_the_same(inputs: list[Path], tmp_path: Path) -> None:
    one = report(*arguments(inputs, tmp_path / "one"))
    assert (one["shards"], one["before"], one["rows"], one["failed"]) == (7, 0, 27, [])
    assert one["errors"] == {"image_damaged": 1, "image_unsupported": 1}
    run_command(*arguments(inputs, tmp_path / "two", "--part", "1/2", "--processes", 2))
    assert len(everything(tmp_path / "two")) == 4
    second = report(*arguments(inputs, tmp_path / "two", "--part", "2/2"))
    assert (second["shards"], second["before"]) == (3, 0)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    again = report(*arguments(inputs, tmp_path / "one"))
    assert (again["before"], again["rows"], again["images_per_second"]) == (7, 27, None)


def test_a_finished_job_loads_no_model(inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_command(*arguments(inputs[1:], tmp_path / "out"))
    monkeypatch.setattr("fgclip_rt.shards.pool.WorkerProcess.do", lambda *_: pytest.fail("a worker was begun"))
    assert report(*arguments(inputs[1:], tmp_path / "out"))["before"] == 1


def test_errors_are_tried_again_when_asked(inputs: list[Path], images: list[bytes], tmp_path: Path) -> None:
    run_command(*arguments(inputs, tmp_path / "out"))
    (inputs[0] / "005.jpg").write_bytes(images[2])
    assert report(*arguments(inputs, tmp_path / "out"))["rows"] == 27
    again = report(*arguments(inputs, tmp_path / "out", "--retry-errors"))
    assert (again["before"], again["rows"], again["errors"]) == (5, 28, {"image_damaged": 1})


def test_a_shard_that_vanishes_leaves_the_others(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar, data = inputs[1], inputs[1].read_bytes()

    def vanish(*given: Any) -> Any:
        shards = find_shards(*given)
        tar.unlink()
        return shards

    with monkeypatch.context() as patch:
        patch.setattr("fgclip_rt.shards.find_shards", vanish)
        result = run_command(*arguments(inputs, tmp_path / "out", "--json"), status=1)
    document = json.loads(result.stdout)
    assert [(each["input"], each["code"]) for each in document["failed"]] == [("t", "shard_unreadable")]
    assert (document["rows"], document["error"]["code"]) == (22, "shard_unreadable")
    assert "fgclip-rt: not done: " in result.stderr
    tar.write_bytes(data)
    assert report(*arguments(inputs, tmp_path / "out"))["rows"] == 27


def test_a_tar_that_was_cut_is_done_anew_once_it_is_whole(inputs: list[Path], tmp_path: Path) -> None:
    whole = inputs[1].read_bytes()
    inputs[1].write_bytes(whole[:3000])
    assert report(*arguments(inputs[1:], tmp_path / "out"))["errors"] == {"shard_damaged": 1}
    inputs[1].write_bytes(whole)
    assert report(*arguments(inputs[1:], tmp_path / "out"))["rows"] == 5
    inputs[1].write_bytes(whole + bytes(10240))
    error = report(*arguments(inputs[1:], tmp_path / "out"), status=1)["error"]
    assert error["code"] == "shard_mismatch"
    assert "remove t.json" in error["message"]


def test_another_bundle_is_refused(inputs: list[Path], tmp_path: Path, bundle_path: Path) -> None:
    run_command(*arguments(inputs[1:], tmp_path / "out"))
    words = ["embed-shards", bundle_path, inputs[1], "--output", tmp_path / "out"]
    assert report(*words, status=1)["error"]["code"] == "shard_mismatch"


def test_random_weights_are_told_of_before_the_work(inputs: list[Path], tmp_path: Path, bundle_path: Path) -> None:
    bundle = shutil.copytree(bundle_path, tmp_path / "bundle")
    assert "RANDOM" not in run_command(*arguments(inputs[1:], tmp_path / "shipped")).stderr
    edit_manifest(bundle, lambda manifest: manifest["model"].update(weights="random", checkpoint_sha256=None))
    # Once, whatever the number of workers.
    words = ["embed-shards", bundle, *inputs, "--output", tmp_path / "out", "--shard-size", 9, "--processes", 2]
    assert run_command(*words).stderr.count("RANDOM WEIGHTS") == 1


def test_an_output_that_cannot_be_written_ends_the_job(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = report(*arguments(inputs, tmp_path / "file/out"), status=1)["error"]
    assert error["code"] == "output_unwritable"


class Job:
    """The command in a process of its own."""

    def __init__(self, words: list[object]) -> None:
        command = [sys.executable, "-m", "fgclip_rt", *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        listed = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for path in listed for pid in path.read_text().split()]

    def end(self) -> tuple[int, str]:
        """Its status, and what it said."""
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said


def kill_and_resume(words: list[object], output: Path, times: int, seed: int) -> None:
    """Kill a job, or a worker of it, at random moments, and then let it end."""
    draw = random.Random(seed)
    for _ in range(times):
        job = Job(words)
        time.sleep(draw.uniform(0.1, 2.5))
        victims = job.workers() if draw.random() < 0.4 else []
        for pid in [draw.choice(victims)] if victims else [job.process.pid]:
            os.kill(pid, signal.SIGKILL)
        if victims:
            status, said = job.end()
            assert status == 0, said
            # Another life for the shards of this one.
            for path in draw.sample(sorted(output.glob("[pt]*.json")), 3):
                path.unlink()
        else:
            job.end()
    status, said = Job(words).end()
    assert status == 0, said


def undisturbed(inputs: list[Path], output: Path) -> dict[str, Any]:
    run_command(*arguments(inputs, output))
    found = everything(output)
    assert len(found) == 7
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
def test_a_job_that_is_killed_goes_on(inputs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    kill_and_resume(arguments(inputs, output, "--processes", 2), output, 3, seed=3)
    assert everything(output) == undisturbed(inputs, tmp_path / "whole")
    assert list((output / ".unfinished").iterdir()) == []


@pytest.mark.slow
def test_fifty_kills_change_nothing(inputs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    whole = undisturbed(inputs, tmp_path / "whole")
    for seed in range(10):
        kill_and_resume(arguments(inputs, output, "--processes", 2), output, 5, seed)
        assert everything(output) == whole
        for path in output.glob("[pt]*.json"):
            path.unlink()


def test_an_interrupt_tells_what_is_done(inputs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = Job(arguments(inputs, output))
    while not list(output.glob("photos*.json")):
        time.sleep(0.02)
        assert job.process.poll() is None
    workers = job.workers()
    assert len(workers) == 1
    job.process.send_signal(signal.SIGINT)
    status, said = job.end()
    assert status == 130
    assert "of 7 shards are done; the same command goes on." in said
    assert not Path(f"/proc/{workers[0]}").exists()


def test_an_image_that_kills_its_worker_cannot_stop_the_job(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies whenever it meets a certain image, as by a fault of a decoder."""
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin/sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'fgclip_rt.shards.worker' in ' '.join(sys.orig_argv):\n"
        "    import PIL.Image, io\n"
        "    real = PIL.Image.open\n"
        "    def deadly(file, *a, **k):\n"
        "        image = real(file, *a, **k)\n"
        "        if image.size == (333, 111): os.kill(os.getpid(), 11)\n"
        "        return image\n"
        "    PIL.Image.open = deadly\n"
    )
    from PIL import Image

    Image.new("RGB", (333, 111)).save(inputs[0] / "009.jpg")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'plugin'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    document = report(*arguments(inputs, tmp_path / "out"), status=1)
    assert [(each["input"], each["code"]) for each in document["failed"]] == [("photos-00002", "worker_died")]
    assert len(everything(tmp_path / "out")) == 6


def test_gpus_of_workers_need_ray(inputs: list[Path], tmp_path: Path) -> None:
    for more in (("--num-gpus", 0.5), ("--num-gpus", 0, "--ray")):
        error = report(*arguments(inputs, tmp_path / "out"), *more, status=1)["error"]
        assert error["code"] == "argument_invalid"
        assert not (tmp_path / "out").exists()


def test_a_shard_that_another_run_did_meanwhile_is_not_done_again(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(*arguments(inputs[1:], tmp_path / "out"))
    setup = Setup(str(tmp_path / "out"), make_job(Bundle.open(Path(NAME))), NAME)
    (shard,) = find_shards([str(inputs[1])], 9)
    marker = open_store(setup.output).marker("t")
    worker = Worker(setup)
    with monkeypatch.context() as patch:
        patch.setattr("fgclip_rt.shards.task.embed_shard", lambda *_, **__: pytest.fail("it was done again"))
        assert worker.do(Task(shard)) == Done(marker)
        with pytest.raises(pytest.fail.Exception):
            worker.do(Task(shard, marker))
