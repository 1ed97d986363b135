"""What this machine can run, and why not for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

#: The two packages install the same module, so the CPU one has to go first.
CUDA_REMEDY = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"

#: What the ``export`` extra installs, by the names they are imported by.
EXPORT_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "huggingface_hub")


class Check(msgspec.Struct, frozen=True):
    """One thing that a machine may be able to do.

    Attributes:
        name: what it is.
        ok: whether it is there.
        detail: what was found, or why it is not there.
        remedy: what to do about it; empty where nothing is to be done.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at this machine, and change nothing."""
    return [
        Check("python", True, f"{platform.python_version()} on {platform.platform()}"),
        _cpu(),
        _memory(),
        _onnxruntime(),
        _cuda(),
        _export(),
        _package(
            "parquet output", "pyarrow", "embed --output out.parquet needs pyarrow", "pip install 'fgclip-rt[parquet]'"
        ),
    ]


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


def _cpu() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = _cpu_flags()
    extensions = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    found = ", ".join(extensions) if extensions else "none that this program looks for"
    return Check("cpu", True, f"{platform.machine()}, {cores} usable cores, vector extensions: {found}")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _memory() -> Check:
    available = available_memory()
    if available is None:
        return Check("memory", True, "unknown on this system")
    return Check("memory", True, f"{available / 1e9:.1f} GB available")


def available_memory() -> int | None:
    """Bytes that a process may still take, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _onnxruntime() -> Check:
    import onnxruntime as ort

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in ort.get_available_providers())
    return Check("bundles on the CPU", True, f"onnxruntime {ort.__version__}, providers: {providers}")


def _cuda() -> Check:
    import onnxruntime as ort

    name = "bundles on an NVIDIA GPU"
    gpus = nvidia_gpus()
    if not gpus:
        return Check(name, False, "no NVIDIA driver answers on this machine", "install the driver, or use device='cpu'")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return Check(
            name,
            False,
            f"{'; '.join(gpus)}, but this onnxruntime has no CUDA provider",
            CUDA_REMEDY,
        )
    return Check(name, True, "; ".join(gpus))


def _export() -> Check:
    if missing := missing_packages(EXPORT_PACKAGES):
        return Check("export", False, f"not installed: {', '.join(missing)}", "pip install 'fgclip-rt[export]'")
    return Check("export", True, f"torch {importlib.metadata.version('torch')}")


def missing_packages(packages: Iterable[str]) -> list[str]:
    """Those of ``packages`` that are not installed; nothing is imported."""
    return [package for package in packages if not _installed(package)]


def _package(name: str, package: str, reason: str, remedy: str) -> Check:
    if not _installed(package):
        return Check(name, False, reason, remedy)
    return Check(name, True, f"{package} {importlib.metadata.version(package)}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
