"""The runtime in an environment that holds its own requirements and nothing else: no torch, onnx or transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "tests/goldens/fgclip2/images/0_astronaut_200x150.png"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a new environment with the package installed from a copy of its sources."""
    folder = tmp_path_factory.mktemp("clean")
    for name in ("fgclip_rt", "benchmarks", "engines", "export"):
        shutil.copytree(
            ROOT / name, folder / "source" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    install = subprocess.run(
        [folder / "venv/bin/pip", "install", "--quiet", folder / "source"], capture_output=True, text=True, check=False
    )
    if install.returncode and "No matching distribution" in install.stderr:
        pytest.skip("needs a package index to install from")
    assert install.returncode == 0, install.stderr
    return folder / "venv/bin"


def run(clean: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [clean / "fgclip-rt", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=clean, check=False)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_nothing_heavy_is_installed(clean: Path) -> None:
    listed = subprocess.run([clean / "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    installed = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert "fgclip-rt" in installed
    assert not installed & {"torch", "transformers", "onnx", "onnxscript", "tensorrt", "tensorrt-rtx", "pyarrow"}


def test_every_command_but_export_runs(clean: Path, bundle_path: Path, tmp_path: Path) -> None:
    for arguments in (
        ["verify", bundle_path],
        ["inspect", bundle_path],
        ["embed", bundle_path, PHOTO, "--output", tmp_path / "out.npz"],
        ["score", bundle_path, PHOTO, "--text", "a cat"],
        ["regions", bundle_path, PHOTO, "--box", "0,0,99,99", "--text", "a cat"],
        ["heatmap", bundle_path, PHOTO, "--text", "a cat", "--output", tmp_path / "map.png"],
        ["evaluate", bundle_path, "--scenes", "100"],
        ["scene", "--output", tmp_path / "scene.png"],
        ["doctor"],
    ):
        assert run(clean, *arguments).stdout


def test_what_needs_an_extra_says_which(clean: Path, bundle_path: Path, tmp_path: Path) -> None:
    for arguments, extra in (
        (["export", "--model", "fg-clip2-base"], "fgclip-rt[export]"),
        (["verify", bundle_path, "--checkpoint", tmp_path], "fgclip-rt[export]"),
        (["embed", bundle_path, PHOTO, "--output", tmp_path / "out.parquet"], "fgclip-rt[parquet]"),
        (["build", bundle_path, "--backend", "tensorrt"], "fgclip-rt[tensorrt]"),
        (["build", bundle_path, "--backend", "tensorrt-rtx"], "fgclip-rt[tensorrt-rtx]"),
    ):
        assert extra in run(clean, *arguments, status=1).stderr
    checks = {check["name"]: check for check in json.loads(run(clean, "doctor", "--json").stdout)}
    assert not checks["export"]["ok"]
    assert "fgclip-rt[export]" in checks["export"]["remedy"]
