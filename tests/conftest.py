"""Fixtures that tests share: the goldens, and the bundles exported from them once a session."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from filelock import FileLock

import fgclip_rt
from fgclip_rt.evaluation.scenes import Evaluation, evaluate
from fgclip_rt.model import Model
from helpers import GOLDEN_NAMES, GOLDENS, Completed, Golden

if TYPE_CHECKING:
    from exporting import Trace

# The time of an example means nothing here, and a run must not depend on chance.
hypothesis.settings.register_profile("fgclip-rt", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fgclip-rt")


# A shell that runs the tests in the background has them ignore Ctrl-C, and programs that they start would do so too.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Whether this is one of several processes that share the tests.
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ

if PARALLEL:
    # onnxruntime's threads spin while they wait, so more threads than cores would slow each other down.
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(_cores)]})

#: A folder of bundles that ``bundles.py`` made in another environment, so that they need not be made here.
HANDED_OVER = os.environ.get("FGCLIP_RT_TEST_BUNDLES")

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
def made(once: Once) -> Callable[[str], Path]:
    """Gives the folder that the maker of some name in ``bundles.py`` has filled."""

    def fill(name: str, folder: Path) -> None:
        if importlib.util.find_spec("torch") is None:
            pytest.skip("torch is not installed, so no bundle can be exported (FGCLIP_RT_TEST_BUNDLES can name some)")
        from bundles import MAKERS

        MAKERS[name](folder)

    def path(name: str) -> Path:
        return once(name, partial(fill, name)) if HANDED_OVER is None else Path(HANDED_OVER, name).resolve()

    return path


@pytest.fixture(scope="session")
def bundle_path(made: Callable[[str], Path]) -> Path:
    """The golden checkpoint, exported."""
    return made("fgclip2") / "bundle"


@pytest.fixture(scope="session")
def masked_bundle_path(made: Callable[[str], Path]) -> Path:
    """The golden checkpoint whose tokenizer makes an attention mask, exported."""
    return made("fgclip2-masked") / "bundle"


@pytest.fixture(scope="session")
def square_path(made: Callable[[str], Path]) -> Callable[[str], Path]:
    """Gives a golden checkpoint that takes square images, exported in three precisions, by its name."""
    return lambda name: made(name) / name


@pytest.fixture(scope="session")
def pocket_export(made: Callable[[str], Path]) -> tuple[Path, Completed]:
    """The one export that is made just as a user makes it, and the folder that it is made in."""
    folder = made("pocket")
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


@pytest.fixture
def quick(masked_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Quick exports of the masked golden checkpoint, and of others of its sizes."""
    from exporting import hasten

    return hasten(monkeypatch, masked_bundle_path)
