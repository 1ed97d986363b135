"""Fixtures that tests share: the goldens, and the bundles exported from them once a session."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import onnx_ir as ir
import pytest

import fgclip_rt
from fgclip_rt import export
from fgclip_rt.export.fgclip2 import graphs
from fgclip_rt.export.onnx_writer import GraphSource
from fgclip_rt.model import Model
from helpers import GOLDEN_NAMES, GOLDENS, Golden, Trace

MODULES = {
    graphs.VisionGraph: "vision",
    graphs.DenseGraph: "dense",
    graphs.TextGraph: "text",
    graphs.RegionGraph: "region",
}

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
def pocket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that comes with the package, exported."""
    return export.export(export.checkpoint_source("fg-clip2-pocket"), tmp_path_factory.mktemp("pocket") / "bundle").path


@pytest.fixture(scope="session")
def pocket(pocket_path: Path) -> Model:
    """The one model here whose answers mean something."""
    return fgclip_rt.load(pocket_path, device="cpu")


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
    """Exports of the masked checkpoint that take its graphs from the session's bundle and probe two images only."""

    def trace(source: GraphSource) -> ir.Model:
        model = ir.load(masked_bundle_path / f"{MODULES[type(source.module)]}.onnx")
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=name)
        return model

    monkeypatch.setattr("fgclip_rt.export.pipeline.trace", trace)
    monkeypatch.setattr("fgclip_rt.export.probe.IMAGE_SIZES", ((60, 80), (20, 300)))
    return trace
