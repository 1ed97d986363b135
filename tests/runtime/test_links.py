"""A bundle whose files are links, as in hubs' caches and mounts, gives the same vectors; weights are not copied."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fgclip_rt
from fgclip_rt.backends.external_data import locations, renamed, without_links
from fgclip_rt.errors import BundleError
from fgclip_rt.model import Model
from helpers import assert_one_sentence, fit_digests, picture

IMAGE = picture(60, 80)


def hub(files: list[Path], folder: Path) -> Path:
    """``snapshots/1/NAME`` leads to ``blobs/DIGEST``, as in the cache of Hugging Face's hub."""
    snapshot = folder / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for file in files:
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def folder_each(files: list[Path], folder: Path) -> Path:
    """Every file in a folder of its own, as DVC and Nix have it; the links are absolute."""
    bundle = folder / "bundle"
    bundle.mkdir()
    for number, file in enumerate(files):
        place = folder / "cache" / f"{number:02x}"
        place.mkdir(parents=True)
        shutil.copy(file, place / "data")
        (bundle / file.name).symlink_to(place / "data")
    return bundle


def kubernetes(files: list[Path], folder: Path) -> Path:
    """``NAME`` leads to ``..data/NAME``, and ``..data`` to a folder named after a time."""
    bundle = folder / "mount"
    (bundle / "..2026_01_01").mkdir(parents=True)
    (bundle / "..data").symlink_to("..2026_01_01")
    for file in files:
        shutil.copy(file, bundle / "..2026_01_01")
        (bundle / file.name).symlink_to(f"..data/{file.name}")
    return bundle


def weights_alone(files: list[Path], folder: Path) -> Path:
    """Only the weights are a link, to another folder."""
    bundle = folder / "bundle"
    bundle.mkdir()
    for file in files:
        shutil.copy(file, bundle)
    (folder / "elsewhere").mkdir()
    (bundle / "weights.safetensors").rename(folder / "elsewhere" / "weights.safetensors")
    (bundle / "weights.safetensors").symlink_to("../elsewhere/weights.safetensors")
    return bundle


def linked_folder(files: list[Path], folder: Path) -> Path:
    """The folder itself is a link."""
    (folder / "real").mkdir()
    for file in files:
        shutil.copy(file, folder / "real")
    (folder / "bundle").symlink_to("real")
    return folder / "bundle"


LAYOUTS = (hub, folder_each, kubernetes, weights_alone, linked_folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_linked_bundle_gives_the_same_vectors(
    masked_bundle_path: Path, masked_model: Model, tmp_path: Path, layout: Callable[[list[Path], Path], Path]
) -> None:
    linked = fgclip_rt.load(layout(sorted(masked_bundle_path.iterdir()), tmp_path), device="cpu")
    np.testing.assert_array_equal(linked.embed_texts(["a cat"]), masked_model.embed_texts(["a cat"]))
    np.testing.assert_array_equal(linked.embed_images([IMAGE]), masked_model.embed_images([IMAGE]))
    boxes = [[0, 0, 30, 40]]
    np.testing.assert_array_equal(linked.embed_regions(IMAGE, boxes), masked_model.embed_regions(IMAGE, boxes))


def test_a_graph_that_reads_several_files_of_weights_finds_each(pocket_path: Path, tmp_path: Path) -> None:
    files = sorted(path for path in pocket_path.iterdir() if path.is_file())
    linked = fgclip_rt.load(folder_each(files, tmp_path), device="cpu", precision="int8")
    expected = fgclip_rt.load(pocket_path, device="cpu", precision="int8").embed_texts(["a red star"])
    np.testing.assert_array_equal(linked.embed_texts(["a red star"]), expected)


def test_weights_outside_the_manifest_are_refused(masked_bundle_path: Path, tmp_path: Path) -> None:
    """A graph whose digest was made to fit may name any file of the machine."""
    bundle = Path(shutil.copytree(masked_bundle_path, tmp_path / "bundle"))
    path = bundle / "text.onnx"
    path.write_bytes(renamed(path.read_bytes(), lambda _: "../../etc/passwd"))
    fit_digests(bundle, "text.onnx")
    with pytest.raises(BundleError) as info:
        fgclip_rt.load(bundle, device="cpu").embed_texts(["a cat"])
    assert_one_sentence(info.value, "text.onnx", "../../etc/passwd", "manifest", code="bundle_invalid")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_linked_weights_are_mapped_and_not_copied(pocket_path: Path, tmp_path: Path) -> None:
    files = sorted(path for path in pocket_path.iterdir() if path.is_file())
    path = folder_each(files, tmp_path)
    model = fgclip_rt.load(path, device="cpu")
    model.embed_texts(["a red star"])
    assert str(path.joinpath("weights.safetensors").resolve()) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes UTF-8 only")
def test_a_folder_whose_name_is_not_utf_8_is_told_of(masked_bundle_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(masked_bundle_path, tmp_path / os.fsdecode(b"caf\xe9")))
    with pytest.raises(BundleError) as info:
        fgclip_rt.load(path, device="cpu").embed_texts(["a cat"])
    assert_one_sentence(info.value, "not UTF-8", "rename the folder", code="bundle_unreadable")


# The names of weights in a model


def graph_files(folders: list[Path]) -> list[Path]:
    return sorted(path for folder in folders for path in folder.glob("*.onnx"))


def test_a_model_whose_names_stay_is_the_same_to_the_byte(pocket_path: Path, masked_bundle_path: Path) -> None:
    for path in graph_files([pocket_path, masked_bundle_path]):
        content = path.read_bytes()
        model = without_links(content, path.parent)
        assert (model.content, model.folder) == (content, path.parent.resolve())


@given(st.binary(max_size=60))
def test_other_bytes_are_no_model_or_one_without_weights(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert locations(content) == set()


def test_a_cut_model_is_no_model_or_a_shorter_one(masked_bundle_path: Path) -> None:
    content = (masked_bundle_path / "vision.onnx").read_bytes()
    for length in range(1, len(content), 97):
        with contextlib.suppress(ValueError):
            assert renamed(content[:length], lambda name: name) == content[:length]
