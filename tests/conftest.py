"""Fixtures that tests share: the goldens, and the bundles exported from them once a session."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import onnx_ir as ir
import pytest
from filelock import FileLock
from PIL import Image

import fgclip_rt
from fgclip_rt import export
from fgclip_rt.evaluation.scenes import Evaluation, evaluate
from fgclip_rt.export import CalibrationInputs
from fgclip_rt.model import Model
from helpers import (
    GOLDEN_NAMES,
    GOLDENS,
    MODULES,
    SQUARE_CHECKPOINTS,
    Completed,
    Golden,
    Trace,
    hasten,
    picture,
    run_program,
)

# The time of an example means nothing here, and a run must not depend on chance.
hypothesis.settings.register_profile("fgclip-rt", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fgclip-rt")


#: Whether this is one of several processes that share the tests.
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ

if PARALLEL:
    # onnxruntime's threads spin while they wait, so more threads than cores would slow each other down.
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(_cores)]})

#: Type of the fixture :func:`once`.
Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of golden checkpoints and results."""
    return GOLDENS


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder that all processes of a test run share: the first to ask for it fills it, and none changes it."""
    root = tmp_path_factory.getbasetemp()
    if PARALLEL:
        root = root.parent

    def folder(name: str, fill: Callable[[Path], None]) -> Path:
        path = root / f"shared-{name}"
        with FileLock(root / f"{name}.lock"):
            if not path.exists():
                unfinished = root / f"unfinished-{name}"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(path)
        return path

    return folder


@pytest.fixture(scope="session")
def bundle_path(once: Once) -> Path:
    """The golden checkpoint, exported."""
    return once("fgclip2", _exporter("fgclip2")) / "bundle"


@pytest.fixture(scope="session")
def masked_bundle_path(once: Once) -> Path:
    """The golden checkpoint whose tokenizer makes an attention mask, exported."""
    return once("fgclip2-masked", _exporter("fgclip2-masked")) / "bundle"


@pytest.fixture(scope="session")
def square_path(once: Once) -> Callable[[str], Path]:
    """Exports a golden checkpoint that takes square images, by its name, in three precisions."""

    def path(name: str) -> Path:
        return once(name, lambda folder: _export_square(name, folder)) / name

    return path


@pytest.fixture(scope="session")
def pocket_export(once: Once) -> tuple[Path, Completed]:
    """The folder and the result of the one export that runs the installed program, as users do."""
    precisions = [part for precision in ("fp32", "fp16", "int8") for part in ("--precision", precision)]

    def fill(folder: Path) -> None:
        (folder / "made").mkdir()
        result = run_program("export", "--model", "fg-clip2-pocket", *precisions, "--json", cwd=folder / "made")
        (folder / "result.json").write_text(json.dumps({**vars(result), "args": []}))

    folder = once("pocket", fill)
    return folder / "made", Completed(**json.loads((folder / "result.json").read_text()))


@pytest.fixture(scope="session")
def pocket_path(pocket_export: tuple[Path, Completed]) -> Path:
    """The checkpoint that comes with the package, in three precisions."""
    folder, result = pocket_export
    assert result.returncode == 0, result.stderr
    return folder / "fg-clip2-pocket"


@pytest.fixture(scope="session")
def pocket(pocket_path: Path) -> Model:
    """The model of ``pocket_path``, the only one here whose answers mean something."""
    return fgclip_rt.load(pocket_path, device="cpu")


@pytest.fixture(scope="session")
def hundred(pocket: Model, once: Once) -> Evaluation:
    """The evaluation of ``pocket`` on a hundred scenes."""

    def fill(folder: Path) -> None:
        (folder / "evaluation").write_bytes(pickle.dumps(evaluate(pocket, scenes=100)))

    evaluation: Evaluation = pickle.loads((once("hundred", fill) / "evaluation").read_bytes())
    return evaluation


def _export_square(name: str, folder: Path) -> None:
    checkpoint, files = SQUARE_CHECKPOINTS[name]
    pictures = [Image.fromarray(picture(40 + 3 * seed, 90 - seed, seed)) for seed in range(16)]
    texts = [
        f"{count} {thing}" for count in ("a photo of one", "two", "nine") for thing in ("cat", "DOG!", "blue", "猫")
    ]
    inputs = CalibrationInputs(pictures, [*texts, "", "a", "naïve café", "end of it"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgclip_rt.export.bundle.probe.IMAGE_SIZES", ((150, 200), (20, 1500), (1, 1)))
        source = export.checkpoint_source(checkpoint, files=files)
        export.export(source, folder / name, ("fp32", "fp16", "int8"), inputs=inputs)


def _exporter(name: str) -> Callable[[Path], None]:
    source = export.checkpoint_source(str(GOLDENS / name / "checkpoint"))

    def fill(folder: Path) -> None:
        export.export(source, folder / "bundle")

    return fill


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
