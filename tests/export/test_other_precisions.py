"""Precisions that not every onnxruntime runs on a CPU, and two 8-bit precisions in one bundle."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
from test_precisions import export_masked

import fgclip_rt
from exporting import hasten
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import DeviceError
from fgclip_rt.timing import time_precisions
from helpers import assert_one_sentence, run_command

#: Whether the installed onnxruntime has float8 on a CPU.
RUNS_FP8 = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 32)


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


@pytest.mark.parametrize(
    "precision", ["bf16", pytest.param("fp8", marks=pytest.mark.skipif(RUNS_FP8, reason="this onnxruntime runs it"))]
)
def test_what_cannot_run_here_says_so(bundle: Bundle, precision: str) -> None:
    model = fgclip_rt.load(bundle.path, device="cpu", precision=precision)
    with pytest.raises(DeviceError) as info:
        model.embed_texts("a cat")
    assert_one_sentence(info.value, f"in {precision}", "cpu", "fp32", "int8")


@pytest.mark.skipif(not RUNS_FP8, reason="onnxruntime runs float8 on a CPU from 1.32 on")
def test_fp8_keeps_its_floor_where_it_runs(bundle: Bundle) -> None:
    result = json.loads(run_command("verify", bundle.path, "--precision", "fp8", "--json").stdout)
    assert result["passed"]
    assert max(1 - row["min_cosine"] for row in result["rows"]) > 1e-4, "that is not float8"


def test_the_doctor_times_what_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgclip_rt.timing.ROUNDS", 1)
    timings = time_precisions(bundle.path, "cpu")
    able = {timing.precision for timing in timings if timing.milliseconds is not None}
    assert able == ({"fp32", "int8", "fp8"} if RUNS_FP8 else {"fp32", "int8"})
    assert all(bool(timing.problem) == (timing.ratio is None) for timing in timings)


@pytest.mark.slow
def test_the_pocket_model_keeps_fp8(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    precisions = ("--precision", "fp32", "--precision", "fp8")
    run_command("export", "--model", "fg-clip2-pocket", *precisions, "--output", output)
    manifest = Bundle.open(output).manifest
    assert manifest.precisions == ("fp32", "fp8")
    assert all(row.passed for row in manifest.parity.measured["fp8"])
