"""The doctor's checks of a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgclip_rt import doctor, machine
from helpers import run_command

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 {}\nbugs\t\t: spectre_v1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\n"


def checks(monkeypatch: pytest.MonkeyPatch, path: Path, cpuinfo: str) -> dict[str, doctor.Check]:
    """The checks of a machine whose /proc/cpuinfo reads ``cpuinfo``."""
    path.write_text(cpuinfo)
    monkeypatch.setattr(machine, "_CPUINFO", path)
    return {check.name: check for check in doctor.examine()}


@pytest.mark.parametrize(
    ("cpuinfo", "int8", "fp16"),
    [
        (X86.format("avx2 avx512f avx512_vnni"), "avx512_vnni: 8-bit products in hardware", "saves disk and no time"),
        (X86.format("avx2 avx_vnni"), "avx_vnni: 8-bit products in hardware", "saves disk and no time"),
        (X86.format("avx2 avx512f"), "AVX2 without VNNI", "saves disk and no time"),
        (X86.format("avx"), "may be slower", "saves disk and no time"),
        (ARM.format("asimdhp asimddp"), "asimddp: 8-bit products in hardware", "faster or slower"),
        (ARM.format(""), "may be slower", "saves disk and no time"),
        ("processor\t: 0\n", "unknown", "unknown"),
    ],
)
def test_the_flags_of_a_cpu_tell_what_precisions_are_worth(
    cpuinfo: str, int8: str, fp16: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = checks(monkeypatch, tmp_path / "cpuinfo", cpuinfo)
    assert int8 in found["INT8 on the CPU"].detail
    assert fp16 in found["fp16 on the CPU"].detail
    assert "fgclip-rt doctor BUNDLE" in found["INT8 on the CPU"].remedy
    # Both run on every CPU; a low speed is no fault.
    assert found["INT8 on the CPU"].ok
    assert found["fp16 on the CPU"].ok


def test_a_system_that_lists_no_flags_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "missing")
    details = {check.name: check.detail for check in doctor.examine()}
    assert "none that this program looks for" in details["cpu"]
    assert details["INT8 on the CPU"].startswith("unknown")


def test_it_says_what_is_missing() -> None:
    found = {check["name"]: check for check in json.loads(run_command("doctor", "--json").stdout)}
    assert found["bundles on the CPU"]["ok"]
    assert all(check["ok"] or check["remedy"] for check in found.values())
    assert "bundles on an NVIDIA GPU" in run_command("doctor").stdout


@pytest.mark.parametrize(
    ("visible", "listed", "ok", "parts"),
    [
        (["H200"], [], True, ["H200", "INT8 and FP8 need TensorRT engines"]),
        ([], ["H200, 143771 MiB"], False, ["H200", "gives this process none", "CUDA_VISIBLE_DEVICES"]),
        ([], [], False, ["no NVIDIA driver answers"]),
    ],
)
def test_a_gpu_counts_if_cuda_gives_it_to_this_process(
    visible: list[str], listed: list[str], ok: bool, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "cuda_gpus", lambda: visible)
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: listed)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    check = next(check for check in doctor.examine() if check.name == "bundles on an NVIDIA GPU")
    assert check.ok == ok
    assert all(part in f"{check.detail}; {check.remedy}" for part in parts)
