"""The runtime in an environment that holds its own requirements and nothing else: no torch, onnx or transformers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "tests/goldens/fgclip2/images/0_astronaut_200x150.png"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources; building in place would leave traces."""
    folder = tmp_path_factory.mktemp("clean") / "source"
    for name in ("fgclip_rt", "benchmarks", "engines", "export"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def bare(source: Path) -> Path:
    """The ``bin`` folder of a new environment that holds the runtime and nothing else."""
    venv = source.with_name("venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install(venv / "bin", f"{source}")
    return venv / "bin"


@pytest.fixture(scope="module")
def used_bare(bare: Path, bundle_path: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """Results of the runtime and of its commands there, before the command line is installed."""
    use = (
        "import sys, fgclip_rt; model = fgclip_rt.load(sys.argv[1]); "
        "print(model.embed_images([sys.argv[2]]).shape, model.embed_texts(['a cat']).shape)"
    )
    commands = {
        "library": [bare / "python", "-c", use, bundle_path, PHOTO],
        "command": [bare / "fgclip-rt", "inspect", bundle_path],
        "module": [bare / "python", "-m", "fgclip_rt", "--help"],
    }
    return {
        name: subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=bare, check=False)
        for name, command in commands.items()
    }


@pytest.fixture(scope="module")
def clean(
    bare: Path,
    source: Path,
    used_bare: dict[str, subprocess.CompletedProcess[str]],  # noqa: ARG001 (it must run first)
) -> Path:
    """The same environment, with the command line."""
    install(bare, f"{source}[cli]")
    return bare


def install(programs: Path, what: str) -> None:
    command = [programs / "pip", "install", "--quiet", what]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode and "No matching distribution" in result.stderr:
        pytest.skip("needs a package index to install from")
    assert result.returncode == 0, result.stderr


def run(clean: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [clean / "fgclip-rt", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=clean, check=False)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_the_bare_runtime_embeds_and_its_command_says_what_it_needs(
    used_bare: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    library = used_bare.pop("library")
    assert (library.stdout, library.stderr) == ("(1, 96) (1, 96)\n", "")
    for command in used_bare.values():
        assert (command.returncode, command.stdout) == (1, "")
        # A package of the runtime may bring one of the two.
        assert re.fullmatch(
            r"fgclip-rt: the command line needs .*rich, which (is|are) not installed; "
            r"run pip install 'fgclip-rt\[cli\]'\.\n",
            command.stderr,
        )


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
        ["models"],
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
