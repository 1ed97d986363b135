"""The bundle that comes with the package: named instead of a folder, small, and what an export makes today."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fgclip_rt
from fgclip_rt import shipped
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import BundleError

NAME = "fg-clip2-pocket"


def test_it_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = fgclip_rt.load(NAME)
    assert model.manifest.model.name == NAME
    assert model.embed_texts(["a red star"]).shape == (1, 160)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir()
    with pytest.raises(BundleError, match="no manifest"):
        fgclip_rt.load(NAME)


def test_so_does_a_link_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).symlink_to("gone")
    with pytest.raises(BundleError, match="does not exist"):
        fgclip_rt.load(NAME)


def test_its_folder_is_known_by_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shipped.locate(NAME)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    assert all(map(shipped.is_shipped, (folder, Path(NAME).absolute(), Path("..", "bundles", NAME), tmp_path / "link")))
    assert not shipped.is_shipped(tmp_path)


def test_only_the_bare_name_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (f"other/{NAME}", tmp_path / NAME, "fg-clip2-packet", ".", ".."):
        with pytest.raises(BundleError):
            fgclip_rt.load(path)
    with pytest.raises(BundleError, match=f"fg-clip2-packet does not exist; .* or {NAME}, which comes"):
        fgclip_rt.load("fg-clip2-packet")


def test_it_is_small() -> None:
    assert shipped.names() == [NAME]
    assert sum(path.stat().st_size for path in shipped.locate(NAME).iterdir()) <= 8_000_000


def test_it_is_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installation that belongs to another user; a root user may write anywhere, so the files are compared."""
    folder = tmp_path / "bundles"
    shutil.copytree(shipped.locate(NAME), folder / NAME)
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / NAME).iterdir()}
    model = fgclip_rt.load(NAME)
    model.dense(np.zeros((32, 32, 3), np.uint8)).regions([[0, 0, 9, 9]])
    assert {path.name: path.stat().st_mtime_ns for path in (folder / NAME).iterdir()} == before


def test_it_is_what_an_export_makes(pocket_path: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    # A copy, because onnx refuses files with several names, and other tests give these some.
    made, kept = Bundle.open(shutil.copytree(pocket_path, tmp_path / "made")), Bundle.open(Path(NAME))
    for part in ("model", "embedding_size", "score", "image", "box_shares"):
        assert getattr(made.manifest, part) == getattr(kept.manifest, part)
    assert made.read_text("tokenizer.json") == kept.read_text("tokenizer.json")
    for graph, files in kept.manifest.graphs.items():
        both = [onnx.load(bundle.file(bundle.manifest.graphs[graph]["fp16"].file)) for bundle in (made, kept)]
        nodes = [[(node.op_type, node.input, node.output, node.attribute) for node in each.graph.node] for each in both]
        assert nodes[0] == nodes[1], f"{graph} changed: run make pocket-bundle"
        weights = [{each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer} for model in both]
        assert weights[0].keys() == weights[1].keys()
        for name, values in weights[0].items():
            assert_array_equal(values, weights[1][name], err_msg=f"{name} changed: run make pocket-bundle")
        assert files.keys() == {"fp16"}
