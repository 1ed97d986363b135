"""Whether the benchmarks still run. What they measure here is of no use."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from helpers import run_command

GPU = Path(__file__).parents[2] / "benchmarks/page/gpu.py"


def test_the_gpu_benchmark_runs_on_a_cpu(pocket_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    options = ["--device", "cpu", "--buckets", "128", "--batch", "2", "--rounds", "2", "--repeats", "1"]
    runpy.run_path(str(GPU))["main"]([str(pocket_path), *options, "--output", str(output)])
    result = json.loads(output.read_text())
    names = ["pytorch", "onnxruntime fp32", "onnxruntime fp16", "onnxruntime int8"]
    assert [row["contender"] for row in result["rows"]] == names
    for row, samples in zip(result["rows"], result["samples"], strict=True):
        assert (row["bucket"], row["batch"], row["problem"]) == (128, 2, "")
        assert len(samples["model"]) == len(samples["end_to_end"]) == 2
        assert row["model_images_per_second"] == pytest.approx(2000 / row["model_ms"])
        assert row["share_of_matmul_rate"] > 0
    assert "trial of the plumbing" in result["machine"]["device"]
    manifest = json.loads(run_command("inspect", pocket_path, "--json").stdout)["manifest"]
    assert result["bundle"]["name"] == manifest["model"]["name"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_without_a_gpu_it_says_so(pocket_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit, match="no NVIDIA GPU"):
        runpy.run_path(str(GPU))["main"]([str(pocket_path)])
