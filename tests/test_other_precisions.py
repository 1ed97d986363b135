"""Precisions that onnxruntime does not run on a CPU, and two of eight bits in one bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_precisions import export_masked

import fgclip_rt
from fgclip_rt.bundle import Bundle
from fgclip_rt.doctor import time_precisions
from fgclip_rt.errors import DeviceError
from helpers import assert_one_sentence, hasten


@pytest.fixture(scope="module")
def bundle(masked_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch, masked_bundle_path)
        return export_masked(tmp_path_factory.mktemp("eight") / "bundle", ["fp32", "bf16", "int8", "fp8"])


def test_they_keep_their_floors_beside_each_other(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.precisions == ("fp32", "bf16", "int8", "fp8")
    assert all(row.passed for rows in manifest.parity.measured.values() for row in rows)
    kinds = {name: (entry.linear, entry.other) for name, entry in manifest.lowering.items()}
    assert kinds == {
        "bf16": ("bfloat16", "bfloat16"),
        "int8": ("int8", "float16"),
        "fp8": ("float8_e4m3fn", "float16"),
    }
    assert manifest.lowering["int8"].smoothed == manifest.lowering["fp8"].smoothed
    assert manifest.lowering["int8"].calibration == manifest.lowering["fp8"].calibration


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_what_cannot_run_here_says_so(bundle: Bundle, precision: str) -> None:
    model = fgclip_rt.load(bundle.path, device="cpu", precision=precision)
    with pytest.raises(DeviceError) as info:
        model.embed_texts("a cat")
    assert_one_sentence(info.value, f"in {precision}", "cpu", "fp32", "int8")


def test_the_doctor_times_the_others(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgclip_rt.doctor.ROUNDS", 1)
    timings = time_precisions(bundle.path, "cpu")
    able = {timing.precision for timing in timings if timing.milliseconds is not None}
    assert able == {"fp32", "int8"}
    assert all(bool(timing.problem) == (timing.ratio is None) for timing in timings)
