"""Fixtures that tests share: the goldens, and the bundles exported from them once a session."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import onnx_ir as ir
import pytest

import fgclip_rt
from fgclip_rt import export
from fgclip_rt.model import Model
from fgclip_rt.pocket.evaluation import Evaluation, evaluate
from helpers import GOLDEN_NAMES, GOLDENS, MODULES, Completed, Golden, Trace, hasten, run_program

# How long an example takes says nothing here, and a run must not depend on luck.
hypothesis.settings.register_profile("fgclip-rt", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fgclip-rt")


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of golden checkpoints and results."""
    return GOLDENS


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, exported."""
    return _export("fgclip2", tmp_path_factory)


@pytest.fixture(scope="session")
def masked_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint whose tokenizer makes an attention mask, exported."""
    return _export("fgclip2-masked", tmp_path_factory)


@pytest.fixture(scope="session")
def pocket_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Completed]:
    """The one export that is made just as a user makes it, and the folder that it is made in."""
    folder = tmp_path_factory.mktemp("pocket")
    precisions = [part for precision in ("fp32", "fp16", "int8") for part in ("--precision", precision)]
    return folder, run_program("export", "--model", "fg-clip2-pocket", *precisions, "--json", cwd=folder)


@pytest.fixture(scope="session")
def pocket_path(pocket_export: tuple[Path, Completed]) -> Path:
    """The checkpoint that comes with the package, in three precisions."""
    folder, result = pocket_export
    assert result.returncode == 0, result.stderr
    return folder / "fg-clip2-pocket"


@pytest.fixture(scope="session")
def pocket(pocket_path: Path) -> Model:
    """The one model here whose answers mean something."""
    return fgclip_rt.load(pocket_path, device="cpu")


@pytest.fixture(scope="session")
def hundred(pocket: Model) -> Evaluation:
    """What it answers on a hundred scenes."""
    return evaluate(pocket, scenes=100)


def _export(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = export.checkpoint_source(str(GOLDENS / name / "checkpoint"))
    return export.export(source, tmp_path_factory.mktemp(name) / "bundle").path


@pytest.fixture(scope="session")
def model(bundle_path: Path) -> Model:
    return fgclip_rt.load(bundle_path, device="cpu")


@pytest.fixture(scope="session")
def masked_model(masked_bundle_path: Path) -> Model:
    return fgclip_rt.load(masked_bundle_path, device="cpu")


@pytest.fixture(scope="session", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden checkpoint in turn."""
    return Golden(request.param)


@pytest.fixture(scope="session")
def golden_model(golden: Golden, request: pytest.FixtureRequest) -> Model:
    """The model of ``golden``."""
    return request.getfixturevalue("model" if golden.name == "fgclip2" else "masked_model")


@pytest.fixture(scope="session")
def masked_graphs(masked_bundle_path: Path) -> dict[str, ir.Model]:
    """The graphs of the masked checkpoint, by name; not to be changed."""
    return {name: ir.load(masked_bundle_path / f"{name}.onnx") for name in MODULES.values()}


@pytest.fixture
def quick(masked_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Quick exports of the masked golden checkpoint, and of others of its sizes."""
    return hasten(monkeypatch, masked_bundle_path)
