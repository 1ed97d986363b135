"""The sdist, the wheel made of it, and the wheel in an environment of its own: no torch, onnx or transformers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Folders and files of a checkout that a distribution is made of.
SOURCES = (
    "benchmarks",
    "docker",
    "docs",
    "engines",
    "examples",
    "export",
    "fgclip_rt",
    "native",
    "serving",
    "tests",
    "tools",
    ".dockerignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "NOTICE",
    "PACKAGE.md",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
)
PHOTO = ROOT / "tests/goldens/fgclip2/images/0_astronaut_200x150.png"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources; building in place would leave traces."""
    folder = tmp_path_factory.mktemp("clean") / "source"
    folder.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(
                path, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "build", "target")
            )
        else:
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    """The archive of the sources."""
    return build(source, "sdist")


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel that is built of that archive and of nothing else."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return build(sdist.with_name(sdist.name.removesuffix(".tar.gz")), "wheel")


@pytest.fixture(scope="module")
def bare(wheel: Path) -> Path:
    """The ``bin`` folder of a new environment that holds the wheel, its requirements and nothing else."""
    venv = wheel.with_name("venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install(venv / "bin", f"{wheel}")
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
    wheel: Path,
    used_bare: dict[str, subprocess.CompletedProcess[str]],  # noqa: ARG001 (it must run first)
) -> Path:
    """The same environment, with the command line."""
    install(bare, f"{wheel}[cli]")
    return bare


def build(folder: Path, kind: str) -> Path:
    """Builds an ``sdist`` or a ``wheel`` of a folder of sources, and gives its path."""
    code = f"import sys; from setuptools.build_meta import build_{kind}; build_{kind}(sys.argv[1])"
    output = folder.with_name(kind)
    subprocess.run([sys.executable, "-c", code, output], cwd=folder, capture_output=True, check=True)
    (path,) = output.iterdir()
    return path


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


def test_the_sdist_holds_the_sources_with_all_that_the_tests_need(source: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {entry.name.partition("/")[2] for entry in archive if entry.isfile()}
    expected = {path.relative_to(source).as_posix() for name in SOURCES for path in files(source / name)}
    assert expected <= names
    assert {"tests/conftest.py", "tests/helpers.py", "tests/goldens/fgclip2/expected.npz"} <= expected
    added = {name for name in names - expected if not name.startswith(("fgclip_rt.egg-info/", "fgclip_rt/"))}
    assert added == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_holds_the_package_and_nothing_else(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = BytesParser().parsebytes(archive.read(metadata))
    own = {name for name in names if ".dist-info/" not in name}
    # The rooms are links in the sources.
    package = {path.relative_to(source).as_posix() for path in files(source / "fgclip_rt")}
    left_out = {name for name in package if name.startswith(("fgclip_rt/models/", "fgclip_rt/benchmarks/page/"))}
    markdown = {name for name in package if name.endswith(".md")}
    results = {name for name in package if name.startswith("fgclip_rt/benchmarks/results/")}
    assert own == package - left_out - markdown - results
    assert {"fgclip_rt/py.typed", "fgclip_rt/bundles/fg-clip2-pocket/weights.fp16.safetensors"} <= own
    assert {Path(name).name for name in names - own} >= {"LICENSE", "NOTICE"}
    assert described["License-Expression"] == "Apache-2.0"
    # An index page knows no other file of the repository.
    assert not re.search(r"\]\((?!https://)", str(described.get_payload()))


def files(path: Path) -> list[Path]:
    """All files below a folder, through links too; a file itself."""
    if path.is_file():
        return [path]
    return [
        Path(folder, name)
        for folder, _, names in os.walk(path, followlinks=True)
        for name in names
        if "__pycache__" not in folder
    ]


def test_the_quick_start_runs_from_the_wheel_alone(clean: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene.png"
    run(clean, "scene", "--seed", "21", "--output", scene)
    run(clean, "verify", "fg-clip2-pocket")
    texts = ["--text", "a big spotted yellow star", "--text", "a green moon"]
    answer = run(clean, "score", "fg-clip2-pocket", scene, "--json", *texts)
    ((star, moon),) = json.loads(answer.stdout)["probabilities"]
    assert star > 2 * moon


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
