"""A short run of fuzzing: the seeds of every target, and changes of them that are the same every time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from native import oracle
from native.conftest import NATIVE

REASON = oracle.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

#: Changes of the seeds of each target, a second or two of each.
RUNS = {"manifest": 4000, "tokenizer": 3000, "text": 200, "resize": 1000, "calls": 400}


@pytest.fixture(scope="module")
def short() -> Path:
    # What the tests of the library have built is not built again.
    build = ["cargo", "build", "--quiet", "--locked", "--bin", "short", "--target-dir", NATIVE / "target"]
    subprocess.run(build, cwd=NATIVE / "fuzz", check=True)
    return NATIVE / "target/debug/short"


@pytest.mark.parametrize("target", RUNS)
def test_a_target_keeps_its_promises(short: Path, onnxruntime_path: Path, tmp_path: Path, target: str) -> None:
    seeds = NATIVE / "fuzz/corpus" / target
    result = subprocess.run(
        [short, target, seeds, str(RUNS[target])],
        cwd=tmp_path,
        env={**os.environ, "FGCLIP_RT_ONNXRUNTIME": str(onnxruntime_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert result.stdout == f"{target}: {len(list(seeds.iterdir()))} seeds and {RUNS[target]} changes of them\n"


def test_every_target_has_seeds_and_runs() -> None:
    assert {path.name for path in (NATIVE / "fuzz/corpus").iterdir()} == set(RUNS)
