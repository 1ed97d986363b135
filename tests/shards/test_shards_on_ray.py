"""``embed-shards --ray`` on a cluster of several nodes, of which one dies and one loses its worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fgclip_rt
from fgclip_rt.bundle import Bundle
from fgclip_rt.shards import Marker, find_shards, make_job, open_store
from fgclip_rt.shards.ray import run_ray
from fgclip_rt.shards.task import Failed, Setup, Task
from helpers import run_command
from sharding import NAME, letters_of, rows_of, write_folder

ray = pytest.importorskip("ray", reason="ray is an extra of its own: pip install '.[ray]'")
pytest.importorskip("pandas", reason="Ray Data needs it: pip install '.[ray]'")


class Report:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Marker | Failed] = []

    def step(self, rows: int, errors: int) -> None:
        pass

    def ended(self, outcome: Marker | Failed) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose head has no CPU for actors, and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(fgclip_rt.__file__).parents[1]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    try:
        cluster.nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def photos(tmp_path: Path, images: list[bytes]) -> Path:
    """A folder of 48 images, of which two are broken."""
    folder = write_folder(tmp_path / "photos", images * 4)
    for number in (5, 30):
        (folder / f"{number:03d}.jpg").write_bytes(b"broken")
    return folder


def actors_of(node: Any) -> list[int]:
    """Process ids of the actors on a node, which are children of its raylet."""
    (raylet,) = node.all_processes["raylet"]
    children = [path.read_text().split() for path in Path(f"/proc/{raylet.process.pid}/task").glob("*/children")]
    pids = [int(pid) for found in children for pid in found]
    return [pid for pid in pids if b"Actor" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_node_lose_nothing(cluster: Any, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    bundle = Bundle.open(Path(NAME))
    setup = Setup(str(output), make_job(bundle), NAME, "cpu", 1)
    open_store(str(output)).claim(setup.job)
    tasks = [Task(shard) for shard in find_shards([str(photos)], 2)]
    assert len(tasks) == 24

    killed: list[int] = []

    def disturb() -> None:
        def wait_for(count: int) -> None:
            while len(list(output.glob("photos*.json"))) < count:
                time.sleep(0.05)

        wait_for(3)
        pid, *_ = actors_of(cluster.nodes[0]) + actors_of(cluster.nodes[1])
        os.kill(pid, signal.SIGKILL)
        wait_for(8)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)
        killed.append(pid)

    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    thread = threading.Thread(target=disturb)
    thread.start()
    report = Report()
    run_ray(setup, tasks, report, actors=2)
    thread.join(10)
    assert len(killed) == 1
    assert sorted(outcome.shard for outcome in report.outcomes) == [task.shard.name for task in tasks]
    assert all(isinstance(outcome, Marker) for outcome in report.outcomes)

    run_command("embed-shards", NAME, photos, "--output", tmp_path / "plain", "--shard-size", 2, "--threads", 1)
    for task in tasks:
        for folder in (output, tmp_path / "plain"):
            assert (folder / f"{task.shard.name}.json").exists()
        name = task.shard.name
        assert rows_of(output / f"{name}.parquet") == rows_of(tmp_path / f"plain/{name}.parquet")
        assert letters_of(output / f"{name}.errors.parquet") == letters_of(tmp_path / f"plain/{name}.errors.parquet")


@pytest.mark.slow
def test_the_command_does_a_job_on_ray(cluster: Any, photos: Path, tmp_path: Path) -> None:
    words = ["embed-shards", NAME, photos, "--output", tmp_path / "out", "--shard-size", 16, "--processes", 2]
    result = run_command(*words, "--ray", cluster.address)
    assert "3 of 3 shards, 46 rows; items without: 2 image_unsupported" in result.stdout
    assert "3 of 3 shards, 46 rows" in run_command(*words).stdout
