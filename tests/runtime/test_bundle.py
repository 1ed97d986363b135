"""A bundle opens only if it is whole, unaltered and without other files, and messages name the fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import fgclip_rt
from fgclip_rt.bundle import Bundle, decode_manifest
from fgclip_rt.errors import BundleError
from fgclip_rt.manifest import FORMAT_VERSION
from fgclip_rt.probe import Probe
from helpers import LOWERING, Json, add_int8, assert_one_sentence, edit_manifest

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


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "old/vision.onnx", "vision.onnx.bak"])
def test_an_extra_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()
    refused(bundle, name, code="bundle_extra_file")


def test_engines_may_come_and_go(bundle: Path) -> None:
    engine = bundle / "engines" / "0123abcd" / "vision.engine"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"anything")
    assert Bundle.open(bundle).manifest == decode_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")


def test_a_linked_folder_is_named(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle / "more").symlink_to(tmp_path / "elsewhere")
    refused(bundle, "more", code="bundle_extra_file")


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
        (delete("files", "weights.safetensors"), ["weights.safetensors"], "bundle_extra_file"),
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


@pytest.mark.parametrize("name", ["../x", "engines/../../x", "/etc/hostname", "..", "", "..\\x", "manifest.json"])
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


@pytest.mark.parametrize("texts", [["a cat"], None, {"tall": ["a cat"]}, {"short": None}])
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
