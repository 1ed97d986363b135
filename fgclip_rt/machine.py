"""What this machine has, and how much of it this process may use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")

#: Flags of CPUs that multiply 8-bit numbers and add the products in one instruction, on x86 and on ARM.
INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")

#: Of their other vector extensions, those that change what onnxruntime's products cost.
_OTHER_FLAGS = ("avx2", "avx512f", "asimdhp")

#: Other names by which pip may have installed a package.
_OTHER_NAMES = {"onnxruntime": "onnxruntime-gpu"}


@dataclass(frozen=True)
class Machine:
    """A machine, as far as the speed of a model depends on it.

    Attributes:
        system: operating system.
        architecture: of its CPU, such as ``x86_64``.
        cpu: name of the CPU, or its architecture.
        flags: capabilities of the CPU, by Linux's names.
        cores: number of cores that this process can keep busy.
        memory: bytes that a process may still take; None if the system does not say.
    """

    system: str
    architecture: str
    cpu: str
    flags: frozenset[str]
    cores: int
    memory: int | None


def this_machine() -> Machine:
    """The machine that this process runs on, as it is now."""
    return Machine(
        system=platform.platform(),
        architecture=platform.machine(),
        cpu=cpu_name() or platform.processor() or platform.machine(),
        flags=frozenset(cpu_flags()),
        cores=usable_cores(),
        memory=available_memory(),
    )


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those ``packages`` that pip has installed, by name."""
    found = {"python": platform.python_version()}
    for package in packages:
        for name in (package, _OTHER_NAMES.get(package, package)):
            try:
                found[package] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return found


def usable_cores() -> int:
    """Cores that this process can keep busy, at least one.

    Those it may run on, with the threads of one core counted once, and no more than the share of time that its
    container has (Linux control groups of either version). Threads beyond that would only wait for each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux, and nothing to ask
        return os.cpu_count() or 1
    cores = len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    return max(1, min([cores, *map(int, _quotas())]))


def cpu_name() -> str:
    """What the CPU calls itself; empty where the system does not say."""
    return _cpuinfo(("model name", "Model")).strip()


def cpu_flags() -> set[str]:
    """What the CPU can do, by Linux's names, which it lists as flags on x86 and as features on ARM."""
    return set(_cpuinfo(("flags", "Features")).split())


def vector_extensions(flags: Collection[str]) -> str:
    """Those of ``flags`` that matter to the speed of a model, in words."""
    return ", ".join(name for name in _OTHER_FLAGS + INT8_FLAGS if name in flags) or "none that this program looks for"


def available_memory() -> int | None:
    """Bytes that a process may still take, or None where the system does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def nvidia_gpus() -> list[str]:
    """Names of the NVIDIA GPUs whose driver answers."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _siblings(cpu: int) -> str:
    """The threads of the core that ``cpu`` belongs to, or itself where the system does not say."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quotas() -> Iterator[float]:
    """How many CPUs' time each control group that holds this process may take, where it has a limit."""
    try:
        entries = [line.split(":", 2) for line in _OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, own in entries:
        if not controllers:  # version 2
            root, limits = _CGROUPS, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            root, limits = _CGROUPS / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # A container may see its own group as the root, and not the path that it has outside.
        below = PurePosixPath(own.lstrip("/"))
        for group in (below, *below.parents):
            try:
                quota, period = " ".join((root / group / limit).read_text() for limit in limits).split()
            except OSError:
                continue
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def _cpuinfo(keys: tuple[str, ...]) -> str:
    """The first line of Linux's description of its CPUs that begins with one of ``keys``, without that."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1] for line in lines if line.startswith(keys)), "")
