"""Checks of this machine: the ways to export, build and run that it has, and the reasons why others are missing."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from .machine import INT8_FLAGS, Machine, cuda_gpus, nvidia_gpus, this_machine, vector_extensions, versions
from .packages import CUDA_REMEDY, ENGINE_PACKAGES, EXPORT_PACKAGES, missing_packages

_UNKNOWN_CPU = "unknown: this system does not list the CPU's flags"
_MEASURE = "measure with 'fgclip-rt doctor BUNDLE'"


class Check(msgspec.Struct, frozen=True):
    """One thing that a machine may be able to do.

    Attributes:
        name: the thing, in words.
        ok: whether the machine has it.
        detail: the version or properties that were found, or why the machine lacks it.
        remedy: an action for the user; empty if there is none.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at this machine, and change nothing."""
    machine = this_machine()
    return [
        Check("python", True, f"{versions()['python']} on {machine.system}"),
        _cpu(machine),
        _memory(machine),
        _onnxruntime(),
        _fp16(machine.flags),
        _int8(machine.flags),
        _cuda(),
        *(_engines(library) for library in ("tensorrt", "tensorrt-rtx")),
        _export(),
        _package(
            "parquet output", "pyarrow", "embed --output out.parquet needs pyarrow", "pip install 'fgclip-rt[parquet]'"
        ),
    ]


def _cpu(machine: Machine) -> Check:
    extensions = vector_extensions(machine.flags)
    return Check("cpu", True, f"{machine.architecture}, {machine.cores} usable cores, vector extensions: {extensions}")


def _fp16(flags: Collection[str]) -> Check:
    """Whether fp16 saves time on this CPU. It runs on every CPU, so the check never fails."""
    if not flags:
        detail, remedy = f"{_UNKNOWN_CPU}; on most, onnxruntime computes fp16 in fp32", _MEASURE
    elif "asimdhp" in flags:
        detail, remedy = "runs; with asimdhp partly in fp16, which may be faster or slower than fp32", _MEASURE
    else:
        detail = "runs; onnxruntime computes it in fp32 here, so fp16 saves disk and no time"
        remedy = "take fp16 on the CPU only to save disk"
    return Check("fp16 on the CPU", True, detail, remedy)


def _int8(flags: Collection[str]) -> Check:
    """Whether INT8 saves time on this CPU. It runs on every CPU, so the check never fails."""
    hardware = next((name for name in INT8_FLAGS if name in flags), None)
    if not flags:
        detail = _UNKNOWN_CPU
    elif hardware:
        detail = f"{hardware}: 8-bit products in hardware, INT8 should be clearly faster than fp32"
    elif "avx2" in flags:
        detail = "runs; AVX2 without VNNI: INT8 is somewhat faster than fp32, or not at all"
    else:
        detail = "runs; this CPU lists nothing that speeds it up: INT8 may be slower than fp32"
    return Check("INT8 on the CPU", True, detail, _MEASURE)


def _memory(machine: Machine) -> Check:
    if machine.memory is None:
        return Check("memory", True, "unknown on this system")
    return Check("memory", True, f"{machine.memory / 1e9:.1f} GB available")


def _onnxruntime() -> Check:
    import onnxruntime as ort

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in ort.get_available_providers())
    return Check("bundles on the CPU", True, f"onnxruntime {ort.__version__}, providers: {providers}")


def _cuda() -> Check:
    import onnxruntime as ort

    name = "bundles on an NVIDIA GPU"
    gpus = cuda_gpus()
    if not gpus and (hidden := nvidia_gpus()):
        detail = f"{'; '.join(hidden)}, but CUDA gives this process none"
        return Check(name, False, detail, "look at CUDA_VISIBLE_DEVICES, and update the driver")
    if not gpus:
        return Check(name, False, "no NVIDIA driver answers on this machine", "install the driver, or use device='cpu'")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return Check(
            name,
            False,
            f"{'; '.join(gpus)}, but this onnxruntime has no CUDA provider",
            CUDA_REMEDY,
        )
    return Check(name, True, f"{'; '.join(gpus)}; fp16 is the fastest, and INT8 and FP8 need TensorRT engines")


def _export() -> Check:
    if missing := missing_packages(EXPORT_PACKAGES):
        return Check("export", False, f"not installed: {', '.join(missing)}", "pip install 'fgclip-rt[export]'")
    return Check("export", True, f"torch {_version('torch')}")


def _engines(library: str) -> Check:
    """Whether engines of a library can be built. Running them also needs a GPU, which is another check."""
    name = f"{library} engines"
    if missing := missing_packages(ENGINE_PACKAGES[library]):
        return Check(name, False, f"not installed: {', '.join(missing)}", f"pip install 'fgclip-rt[{library}]'")
    module, *_ = ENGINE_PACKAGES[library]
    return Check(name, True, f"{library} {_version(module)}")


def _package(name: str, package: str, reason: str, remedy: str) -> Check:
    if missing_packages([package]):
        return Check(name, False, reason, remedy)
    return Check(name, True, f"{package} {_version(package)}")


def _version(package: str) -> str:
    return versions(package).get(package, "installed")  # not installed by pip
