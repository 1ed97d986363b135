"""Facts of a machine: cores that a process may keep busy, in containers too, and versions of packages."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fgclip_rt import machine
from fgclip_rt.machine import this_machine, usable_cores, versions


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four cores with two threads each, all of them usable, and no control groups."""
    for cpu in range(8):
        folder = tmp_path / f"cpus/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "cpus")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def limit(host: Path, group: str, **files: str) -> None:
    """Write files of a control group."""
    folder = host / "cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(content + "\n")


def test_threads_of_a_core_count_once(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 2})
    assert usable_cores() == 2
    monkeypatch.setattr(machine, "_CPUS", host / "missing")
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)],
)
def test_a_container_has_its_share_of_time(host: Path, quota: str, cores: int) -> None:
    (host / "own").write_text("0::/pod/box\n")
    limit(host, "pod/box", cpu_max=quota)
    assert usable_cores() == cores


def test_the_smallest_share_of_all_groups_counts(host: Path) -> None:
    (host / "own").write_text("0::/pod/box\n")
    limit(host, "pod/box", cpu_max="300000 100000")
    limit(host, "pod", cpu_max="100000 50000")
    assert usable_cores() == 2


def test_a_group_may_see_itself_as_the_root(host: Path) -> None:
    (host / "own").write_text("0::/docker/0123\n")
    limit(host, ".", cpu_max="100000 100000")
    assert usable_cores() == 1


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("200000", 2)])
def test_groups_of_version_one(host: Path, quota: str, cores: int) -> None:
    (host / "own").write_text("9:name=systemd:/\n4:memory:/box\n2:cpu,cpuacct:/box\n")
    limit(host, "cpu/box", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    assert usable_cores() == cores


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


def test_here() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_the_machine_is_described_as_it_is(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "cpuinfo").write_text("model name\t: Fast CPU @ 3 GHz\nflags\t\t: fpu avx2\n")
    (host / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    2000 kB\n")
    monkeypatch.setattr(machine, "_CPUINFO", host / "cpuinfo")
    monkeypatch.setattr(machine, "_MEMINFO", host / "meminfo")
    found = this_machine()
    assert (found.cpu, found.flags, found.cores, found.memory) == ("Fast CPU @ 3 GHz", {"fpu", "avx2"}, 4, 2_048_000)
    assert (found.architecture, found.system) == (platform.machine(), platform.platform())
    monkeypatch.setattr(machine, "_CPUINFO", host / "missing")
    monkeypatch.setattr(machine, "_MEMINFO", host / "missing")
    assert this_machine().memory is None
    assert this_machine().cpu in (platform.processor(), platform.machine())


def test_versions_are_those_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"numpy": "2.0", "onnxruntime-gpu": "1.22"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    # onnxruntime-gpu counts as onnxruntime.
    assert versions("onnxruntime", "tea", "numpy") == {
        "python": platform.python_version(),
        "onnxruntime": "1.22",
        "numpy": "2.0",
    }


def test_free_memory_is_given_back_where_the_c_library_can() -> None:
    machine.release_free_memory()
    assert (machine._glibc("malloc_trim") is not None) == (platform.libc_ver()[0] == "glibc")


#: Frees sixty blocks of 4 MiB between small ones that stay, and prints by how many bytes the process has grown.
LARGE_BLOCKS = """
import numpy as np
from fgclip_rt.benchmarks.memory import resident_memory
from fgclip_rt.machine import keep_no_large_blocks
{first}
np.ones(2**23, np.uint8)
before = resident_memory()
blocks, small = [], []
for _ in range(60):
    blocks.append(np.ones(2**22, np.uint8))
    small.append(np.ones(2**16, np.uint8))
blocks.clear()
print(resident_memory() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps large blocks")
@pytest.mark.parametrize(("first", "least", "most"), [("", 2**27, 2**29), ("keep_no_large_blocks()", -(2**24), 2**24)])
def test_large_blocks_go_back_to_the_system_at_once_and_not_by_themselves(first: str, least: int, most: int) -> None:
    command = [sys.executable, "-c", LARGE_BLOCKS.format(first=first)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert least <= grown < most


def test_cuda_is_asked_in_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library with the driver's functions stands in. This process must not begin to use CUDA: it may fork."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    monkeypatch.setattr(machine, "_CUDA_DRIVER", str(library))
    assert machine.cuda_gpus() == ["GPU number 0", "GPU number 1"]
    assert ctypes.CDLL(str(library)).was_started() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.cuda_gpus() == []


#: The part of a driver that names GPUs: two, unless CUDA_VISIBLE_DEVICES is set.
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
static int started;
int was_started(void) { return started; }
int cuInit(unsigned flags) { started = 1; return flags; }
int cuDeviceGetCount(int *count) { *count = getenv("CUDA_VISIBLE_DEVICES") ? 0 : 2; return !started; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "GPU number %d", device - 40); return 0; }
"""


def test_without_a_driver_there_is_no_gpu_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CUDA_DRIVER", "libnothing.so.1")
    monkeypatch.setattr(machine.subprocess, "run", None)
    assert machine.cuda_gpus() == []
