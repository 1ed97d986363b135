"""Hardware of this machine, and the share of it that this process may use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_CUDA_DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"

#: Flags of CPUs that multiply 8-bit numbers and add the products in one instruction, on x86 and on ARM.
INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")

#: Other vector extensions that change the speed of onnxruntime's matrix products.
_OTHER_FLAGS = ("avx2", "avx512f", "asimdhp")

#: The parameter of glibc's mallopt that says from how many bytes on a block is large, and those bytes. Each such block
#: costs a call of the system, some microseconds and a page fault for each 4 KiB, which small ones should be spared.
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 2**20

#: Other names by which pip may have installed a package.
_OTHER_NAMES = {"onnxruntime": "onnxruntime-gpu"}


@dataclass(frozen=True)
class Machine:
    """Properties of a machine that affect the speed of a model.

    Attributes:
        system: operating system.
        architecture: architecture of its CPU, such as ``x86_64``.
        cpu: model name of the CPU, or its architecture.
        flags: features of the CPU.
        cores: number of cores that this process can keep busy.
        memory: bytes that a process may still take; None if the system does not tell it.
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
    """Versions of Python and of the installed ones of ``packages``, by name."""
    import importlib.metadata  # 35 ms, which a start to a first vector need not take

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

    Counts the cores that the process may run on; the threads of one core count once. The CPU quota of the container
    (Linux control groups, version 1 or 2) is an upper limit. More threads would only wait for each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux, so affinity and quotas are unknown
        return os.cpu_count() or 1
    cores = len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    return max(1, min([cores, *map(int, _quotas())]))


def keep_to_share(number: int, count: int) -> None:
    """Keep this process to its share of the cores that it may run on, as one of ``count`` processes.

    Threads that run already are not moved. Outside Linux nothing is done.

    Args:
        number: its number among the processes, from zero on.
        count: number of processes; if there are more than cores, some share one.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_siblings(cpu), []).append(cpu)
    groups = list(cores.values())
    share = groups[number * len(groups) // count : (number + 1) * len(groups) // count]
    os.sched_setaffinity(0, {cpu for group in share or [groups[number % len(groups)]] for cpu in group})


def cpu_name() -> str:
    """The CPU's model name; empty if the system does not tell it."""
    return _cpuinfo(("model name", "Model")).strip()


def cpu_flags() -> set[str]:
    """The CPU's features by Linux's names; Linux lists them as flags on x86 and as features on ARM."""
    return set(_cpuinfo(("flags", "Features")).split())


def vector_extensions(flags: Collection[str]) -> str:
    """The names in ``flags`` that affect the speed of a model, joined by commas, or a phrase if there are none."""
    return ", ".join(name for name in _OTHER_FLAGS + INT8_FLAGS if name in flags) or "none that this program looks for"


def available_memory() -> int | None:
    """Memory in bytes that a process may still take; None if the system does not tell it."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def release_free_memory() -> None:
    """Give memory that this process has freed back to the system.

    glibc keeps what a thread has freed for that thread, up to the largest image that each of them decoded. Other C
    libraries return large pieces by themselves, and nothing is done.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def keep_no_large_blocks() -> None:
    """Have each large block of memory go back to the system when it is freed, in this process from now on.

    glibc raises its notion of large to the largest block that was ever freed, up to 32 MiB. From then on it cuts blocks
    for photos from the heaps of threads, which they leave in pieces: a server of photos grew for minutes, by 100 MB.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def cuda_gpus() -> list[str]:
    """Names of the GPUs that CUDA gives this process, in its order; CUDA_VISIBLE_DEVICES may hide and reorder them.

    The driver is asked in another process. CUDA does not survive a fork, and a process that has not used it yet may
    still be forked.
    """
    import ctypes

    try:
        ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return []
    return _printed([sys.executable, "-I", "-S", "-c", _ASK_DRIVER, _CUDA_DRIVER], 60)


#: Prints the name of each GPU that the driver lists.
_ASK_DRIVER = """
import ctypes, sys
driver = ctypes.CDLL(sys.argv[1])
count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
    for index in range(count.value):
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        print(name.value.decode(errors="replace"))
"""


def nvidia_gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU of the machine, as ``nvidia-smi`` lists them; empty if it fails.

    It lists GPUs that CUDA_VISIBLE_DEVICES hides, and in some containers it is missing; :func:`cuda_gpus` decides what
    runs.
    """
    listing = _printed(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"], 10)
    return [line.strip() for line in listing if line.strip()]


def _printed(command: list[str], seconds: float) -> list[str]:
    """Lines that a program prints; none if it cannot be run, fails or takes longer."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()


def _siblings(cpu: int) -> str:
    """The threads of the core that ``cpu`` belongs to; ``cpu`` alone if the system does not tell them."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quotas() -> Iterator[float]:
    """The CPU quota, in CPUs, of each control group around this process that has one."""
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
        # Inside a container, its own group may be the root, without the path that the group has outside.
        below = PurePosixPath(own.lstrip("/"))
        for group in (below, *below.parents):
            try:
                quota, period = " ".join((root / group / limit).read_text() for limit in limits).split()
            except OSError:
                continue
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def _cpuinfo(keys: tuple[str, ...]) -> str:
    """The value of the first line of ``/proc/cpuinfo`` that begins with one of ``keys``; empty if there is none."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1] for line in lines if line.startswith(keys)), "")


@cache
def _glibc(name: str) -> Callable[..., int] | None:
    """One of glibc's own functions of memory; None if the process has another C library."""
    if sys.platform != "linux":
        return None
    import ctypes

    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return function
