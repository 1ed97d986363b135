"""A bundle opens if all that its manifest lists is whole and unaltered, and messages name the fault."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fgclip_rt
from fgclip_rt.bundle import Bundle, decode_manifest
from fgclip_rt.errors import BundleError
from fgclip_rt.manifest import FORMAT_VERSION
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe
from helpers import LOWERING, Json, add_int8, assert_one_sentence, edit_manifest

LIMITS = {"max_error": None, "min_cosine": 0.99, "dense_share": 1.0}

FILES = (
    "dense.onnx",
    "probe.safetensors",
    "region.onnx",
    "text.onnx",
    "tokenizer.json",
    "vision.onnx",
    "weights.safetensors",
)


@pytest.fixture
def bundle(masked_bundle_path: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that tests may damage."""
    copy = tmp_path / "bundle"
    shutil.copytree(masked_bundle_path, copy)
    yield copy
    shutil.rmtree(copy)


def refused(path: Path, *parts: str, code: str = "bundle_invalid") -> None:
    for open_bundle in (Bundle.open, fgclip_rt.load):
        with pytest.raises(BundleError) as info:
            open_bundle(path)
        assert_one_sentence(info.value, *parts, code=code)


def test_an_intact_bundle_opens(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert sorted(opened.manifest.files) == sorted(FILES)
    assert opened.size == sum((bundle / name).stat().st_size for name in FILES)
    assert opened.file("vision.onnx") == bundle / "vision.onnx"


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, name, code="bundle_missing" if name == "manifest.json" else "bundle_incomplete")


@pytest.mark.parametrize("name", FILES)
def test_an_altered_byte_is_noticed_unless_hashes_are_not_checked(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    refused(bundle, name, code="bundle_altered")
    assert Bundle.open(bundle, check_hashes=False).manifest


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_noticed_even_without_hashes(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])
    refused(bundle, name, code="bundle_altered")
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle, check_hashes=False)


#: What a hub, git, a Mac, a NAS, a disk and a person add, in the order of names; folders end in a slash.
OTHERS = (
    "..2026_01_01/",
    "._vision.onnx",
    ".DS_Store",
    ".cache/",
    ".gitattributes",
    "@eaDir/",
    "README.md",
    "Thumbs.db",
    "lost+found/",
    "vision.onnx.bak",
)


def add_others(bundle: Path) -> None:
    """Adds :data:`OTHERS` to a bundle, each folder with a file in it."""
    for name in OTHERS:
        path = bundle / name
        if name.endswith("/"):
            path.mkdir()
            path /= "file"
        path.write_bytes(b"anything")


def test_other_files_are_none_of_our_business(bundle: Path, masked_model: Model) -> None:
    add_others(bundle)
    opened = Bundle.open(bundle)
    assert list(opened.other_files()) == sorted(OTHERS)
    assert opened.size == sum((bundle / name).stat().st_size for name in FILES)
    vectors = fgclip_rt.load(bundle, device="cpu").embed_texts(["a cat"])
    np.testing.assert_array_equal(vectors, masked_model.embed_texts(["a cat"]))


def test_a_bundle_as_it_was_exported_has_no_other_files(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    assert list(Bundle.open(bundle).other_files()) == []


def test_a_folder_of_a_listed_file_is_looked_into(bundle: Path) -> None:
    (bundle / "text").mkdir()
    (bundle / "tokenizer.json").rename(bundle / "text" / "tokenizer.json")
    (bundle / "text" / "notes.txt").touch()

    def move(document: Json) -> None:
        document["text"]["tokenizer"] = "text/tokenizer.json"
        document["files"]["text/tokenizer.json"] = document["files"].pop("tokenizer.json")

    edit_manifest(bundle, move)
    assert list(Bundle.open(bundle).other_files()) == ["text/notes.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_stops_nothing(bundle: Path) -> None:
    (bundle / "lost+found").mkdir(mode=0)
    assert list(Bundle.open(bundle).other_files()) == ["lost+found/"]


def test_no_other_folder_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be unreadable, or a whole disk; root may read every folder, so that permissions do not show this."""
    add_others(bundle)
    read: list[Path] = []
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: read.append(path) or listed(path))
    opened = Bundle.open(bundle)
    assert not read
    list(opened.other_files())
    assert read == [bundle]


def test_engines_may_come_and_go(bundle: Path) -> None:
    engine = bundle / "engines" / "0123abcd" / "vision.engine"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"anything")
    assert Bundle.open(bundle).manifest == decode_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_no_listed_file(bundle: Path, kind: str) -> None:
    (bundle / "text.onnx").unlink()
    if kind == "folder":
        (bundle / "text.onnx").mkdir()
    else:
        os.mkfifo(bundle / "text.onnx")
    refused(bundle, "text.onnx", code="bundle_altered")


def assign(*keys: str | int, value: Any) -> Callable[[Json], None]:
    def edit(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return edit


def delete(*keys: str | int) -> Callable[[Json], None]:
    def edit(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return edit


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (assign("colour", value="red"), ["colour"]),
        (assign("model", "colour", value="red"), ["colour", "model"]),
        (assign("text", "walk_types", "long", "colour", value=1), ["colour", "walk_types"]),
        (assign("graphs", "vision", "fp32", "inputs", 0, "colour", value=1), ["colour", "inputs"]),
        (assign("files", "text.onnx", "colour", value=1), ["colour", "files"]),
        (delete("score"), ["score"]),
        (delete("format_version"), ["format_version"]),
        (delete("image", "patch_size"), ["patch_size", "image"]),
        (delete("parity", "probe"), ["probe", "parity"]),
        (delete("text", "walk_types", "short", "length"), ["length", "walk_types"]),
        (assign("embedding_size", value="64"), ["embedding_size"]),
        (assign("format_version", value="1"), ["format_version"]),
        (assign("format_version", value=1.5), ["format_version"]),
        (assign("text", "lowercase", value="yes"), ["lowercase"]),
        (assign("score", "activation", value="relu"), ["activation"]),
        (assign("score", "logit_scale", value=None), ["logit_scale"]),
        (assign("image", "buckets", value=[128, "256"]), ["buckets"]),
        (assign("model", "weights", value="stolen"), ["weights"]),
        (assign("graphs", value=[]), ["graphs"]),
        (assign("graphs", value={}), ["precision"]),
        (assign("graphs", "text", value={}), ["precision"]),
        (assign("files", value=None), ["files"]),
        (delete("files", "text.onnx"), ["text.onnx"]),
        (delete("files", "tokenizer.json"), ["tokenizer.json"]),
        (delete("files", "probe.safetensors"), ["probe.safetensors"]),
        (assign("graphs", "text", "fp32", "file", value="other.onnx"), ["other.onnx"]),
        (assign("format_version", value=-3), ["format_version"]),
        (assign("image", "buckets", value=[]), ["buckets"]),
        (assign("image", "patch_size", value=0), ["patch_size"]),
        (assign("text", "pad_token_id", value=-1), ["pad_token_id"]),
        (assign("text", "pad_token_id", value=2**31), ["pad_token_id"]),
        (assign("text", "walk_types", "long", "length", value=10**6), ["length", "walk_types"]),
        (assign("text", "walk_types", "long", "index", value=2**64), ["index", "walk_types"]),
        (delete("text", "walk_types", "short"), ["walk type 'short'"]),
        (assign("image", "buckets", value=[128, 2**64]), ["buckets"]),
        (assign("image", "buckets", value=[256, 128]), ["buckets 256, 128", "ascend"]),
        (assign("image", "buckets", value=[128, 128]), ["buckets 128, 128", "ascend"]),
        (assign("image", "buckets", value=[128, 20000]), ["20000", "max_num_patches"]),
        (assign("image", "patch_size", value=30000), ["1,024 patches of 30000 pixels", "memory"]),
        (assign("image", "patch_size", value=8), ["input patches 'uint8'", "768", "192"]),
        (assign("image", "channels", value=4), ["4 channels"]),
        (assign("score", "logit_scale", value=1e4), ["logit_scale"]),
        (assign("score", "logit_bias", value=-1e300), ["logit_bias"]),
        (assign("embedding_size", value=32), ["image_features", "64", "32"]),
        (assign("files", "text.onnx", "sha256", value="0"), ["sha256"]),
        (assign("files", "text.onnx", "size", value=2**63), ["size"]),
        (assign("graphs", "audio", value={"fp32": {"file": "text.onnx", "inputs": [], "outputs": []}}), ["'audio'"]),
        (delete("graphs", "text"), ["no text graph"]),
        (delete("graphs", "dense"), ["no dense graph"]),
        (delete("graphs", "text", "fp32", "inputs", 0), ["text graph in 'fp32'", "no input input_ids"]),
        (delete("graphs", "text", "fp32", "inputs", 1), ["text graph in 'fp32'", "no input walk_type"]),
        (delete("graphs", "text", "fp32", "outputs", 0), ["no output text_features"]),
        (assign("graphs", "text", "fp32", "inputs", 0, "name", value="ids"), ["unknown input 'ids'"]),
        (assign("graphs", "text", "fp32", "inputs", 0, "name", value="walk_type"), ["walk_type"]),
        (assign("graphs", "text", "fp32", "inputs", 0, "dtype", value="int64"), ["input_ids 'int64'", "not 'int32'"]),
        (assign("graphs", "vision", "fp32", "inputs", 0, "shape", value=["batch", 768]), ["patches", "['batch', 768]"]),
        (assign("text", "attention_mask", value=False), ["attention_mask"]),
        (assign("parity", "limits", "int8", value=LIMITS), ["int8", "parity.limits", "no such precision"]),
        (assign("parity", "measured", "int8", value=[]), ["int8", "parity.measured", "no such precision"]),
        (assign("parity", "limits", "fp32", "min_cosine", value=2), ["min_cosine"]),
        (assign("score", "logit_scale", value=float("nan")), ["manifest.json", "not JSON"]),
        (assign("parity", "limits", value={}), ["limits", "fp32"]),
        (delete("lowering"), ["lowering"]),
        (delete("box_shares"), ["box_shares"]),
        (assign("box_shares", value="float16"), ["box_shares"]),
        (assign("box_shares", value=None), ["box_shares", "regions"]),
        (delete("graphs", "region"), ["box_shares", "regions"]),
        (assign("format_version", value=True), ["format_version"]),
        (assign("format_version", value=0), ["format_version"]),
        (assign("lowering", "int8", value=LOWERING), ["int8", "no such precision"]),
        (assign("lowering", "fp32", value={}), ["linear", "lowering"]),
        (assign("lowering", "fp32", value=LOWERING | {"smoothed": -1}), ["smoothed", "lowering"]),
        (assign("lowering", "fp32", value=LOWERING | {"moved": {"text_heads": 16}}), ["moved", "lowering"]),
        (assign("lowering", "fp32", value=LOWERING | {"residual": [{"first": "a"}]}), ["last", "residual"]),
        (assign("lowering", "fp32", value=LOWERING | {"calibration": {}}), ["method", "calibration"]),
        (assign("parity", "limits", "fp32", "max_error", value="none"), ["max_error", "limits"]),
        (assign("parity", "limits", "fp32", "min_cosine", value=None), ["min_cosine", "limits"]),
        (delete("parity", "limits", "fp32", "max_error"), ["max_error", "limits"]),
        (delete("parity", "measured", "fp32", 0, "count"), ["count", "measured"]),
        (delete("parity", "measured", "fp32", 0, "flips"), ["flips", "measured"]),
        (assign("parity", "measured", "fp32", 0, "flips", value=-1), ["flips", "measured"]),
        (assign("parity", "measured", "fp32", 0, "mean_cosine", value=None), ["mean_cosine", "measured"]),
        (assign("format", value="another-bundle"), ["manifest.json", "not the manifest"]),
        (delete("format"), ["manifest.json", "not the manifest"]),
    ],
)
def test_a_manifest_that_is_not_as_specified_is_refused(
    bundle: Path, edit: Callable[[Json], None], parts: list[str]
) -> None:
    edit_manifest(bundle, edit)
    refused(bundle, *parts)


@pytest.mark.parametrize(
    ("edit", "parts", "code"),
    [
        (assign("files", "text.onnx", "sha256", value="0" * 64), ["text.onnx"], "bundle_altered"),
        (assign("files", "text.onnx", "size", value=1), ["text.onnx"], "bundle_altered"),
        (
            assign("format_version", value=FORMAT_VERSION + 1),
            [f"version {FORMAT_VERSION + 1}", "upgrade"],
            "bundle_newer",
        ),
        (assign("format_version", value=1), ["version 1", "export the bundle again"], "bundle_older"),
    ],
)
def test_a_manifest_of_other_files_or_another_version_is_refused(
    bundle: Path, edit: Callable[[Json], None], parts: list[str], code: str
) -> None:
    edit_manifest(bundle, edit)
    refused(bundle, *parts, code=code)


@pytest.mark.parametrize(
    "name", ["../x", "engines/../../x", "/etc/hostname", "..", "", ".", "..\\x", "a\0b", "manifest.json"]
)
def test_a_file_outside_the_bundle_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "x").write_bytes(b"")
    info = {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    edit_manifest(bundle, assign("files", name, value=info))
    refused(bundle, repr(name))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"manifest", b"[]", b"null", b'"fgclip-rt-bundle"', b"[" * 99999]
)
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    refused(bundle, "manifest.json")


def test_what_is_no_bundle_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "absent", "absent", "does not exist", code="bundle_missing")
    refused(bundle / "manifest.json", "manifest.json", "is a file", code="bundle_missing")
    refused(tmp_path / "empty", "empty", "no manifest.json", code="bundle_missing")
    (tmp_path / "empty" / "manifest.json").mkdir()
    refused(tmp_path / "empty", "manifest.json", "cannot be read", code="bundle_unreadable")
    refused(tmp_path / ("long" * 100), "cannot be read", code="bundle_unreadable")


def test_the_manifest_survives_a_round_trip(bundle_path: Path, masked_bundle_path: Path) -> None:
    for path in (bundle_path, masked_bundle_path):
        text = (path / "manifest.json").read_bytes()
        manifest = decode_manifest(text, "manifest.json")
        assert manifest.to_json().encode() == text
        assert decode_manifest(manifest.to_json().encode(), "manifest.json") == manifest


def test_a_lower_precision_survives_a_round_trip(bundle: Path) -> None:
    edit_manifest(bundle, add_int8)
    manifest = Bundle.open(bundle).manifest
    assert manifest.precisions == ("fp32", "int8")
    assert manifest.parity.limits["int8"].max_error is None
    lowering = manifest.lowering["int8"]
    assert lowering.moved == LOWERING["moved"]
    assert lowering.calibration is not None
    assert (lowering.calibration.images, lowering.calibration.held_out_texts) == (96, 33)
    assert decode_manifest(manifest.to_json().encode(), "manifest.json") == manifest
    edit_manifest(bundle, assign("lowering", "int8", "calibration", value=None))
    assert Bundle.open(bundle).manifest.lowering["int8"].calibration is None


@pytest.mark.parametrize(
    "texts",
    [["a cat"], None, {"tall": ["a cat"]}, {"short": None}, {"short": "ab"}, {"short": [1]}, [["short", ["a"]]]],
)
def test_a_probe_without_texts_by_walk_type_is_refused(bundle: Path, texts: Any) -> None:
    path = bundle / "probe.safetensors"
    save_file(load_file(path), path, metadata={"texts": json.dumps(texts)})
    with pytest.raises(BundleError, match="is not a probe") as info:
        Probe.load(path)
    assert_one_sentence(info.value, "probe.safetensors", code="bundle_invalid")


@pytest.mark.parametrize("damage", ["truncate", "tokens", "text"])
def test_a_damaged_probe_is_refused(bundle: Path, damage: str) -> None:
    path = bundle / "probe.safetensors"
    other = {"truncate": path.read_bytes()[:1000], "text": b"no tensors", "tokens": None}[damage]
    path.write_bytes((bundle / "weights.safetensors").read_bytes() if other is None else other)
    with pytest.raises(BundleError, match="is not a probe") as info:
        Probe.load(path)
    assert_one_sentence(info.value, "probe.safetensors", code="bundle_invalid")
