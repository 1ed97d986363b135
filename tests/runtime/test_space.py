"""The fingerprint of a space: which bundles share one, what changes it, and how others compute it."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import BundleError
from fgclip_rt.shipped import locate
from fgclip_rt.space import Origin, fingerprint
from helpers import another_export, another_space, assert_one_sentence, edit_manifest, run_command

SHIPPED = locate(Path("fg-clip2-pocket"))


def space(folder: Path, precision: str = "fp16") -> str:
    return fingerprint(Bundle.open(folder, check_hashes=False), precision)


def test_exports_and_precisions_of_a_checkpoint_share_a_space_unless_they_are_calibrated(
    pocket_path: Path, tmp_path: Path
) -> None:
    # That of the package was exported by itself, with another probe.
    assert space(pocket_path, "fp32") == space(pocket_path, "fp16") == space(SHIPPED)
    assert space(another_export(pocket_path, tmp_path / "again"), "fp32") == space(SHIPPED)
    assert len({space(pocket_path, "fp32"), space(pocket_path, "int8"), space(tmp_path / "again", "int8")}) == 3


def test_inspect_shows_the_spaces(pocket_path: Path) -> None:
    printed = run_command("inspect", pocket_path).stdout
    assert f"space        {space(SHIPPED)}, of fp32, fp16\n" in printed
    assert f"space        {space(pocket_path, 'int8')}, of int8\n" in printed


def test_models_have_spaces_of_their_own(bundle_path: Path, masked_bundle_path: Path) -> None:
    assert len({space(bundle_path, "fp32"), space(masked_bundle_path, "fp32"), space(SHIPPED)}) == 3


def test_a_program_of_another_language_finds_the_same() -> None:
    """By the rule of docs/bundle/index.md, from the files themselves."""
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    logits = load_file(SHIPPED / "probe.safetensors")["logits"][0].tolist()
    scale, bias = math.exp(manifest["score"]["logit_scale"]), manifest["score"]["logit_bias"]
    document = {
        "family": "fgclip2",
        "weights": manifest["model"]["checkpoint_sha256"],
        "image": manifest["image"],
        "box_shares": manifest["box_shares"],
        "text": {**manifest["text"], "tokenizer": manifest["files"]["tokenizer.json"]["sha256"]},
        "cosines": [round(500 * (logit - bias) / scale) for logit in logits],
        "bundle": None,
        "precision": None,
    }
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    assert space(SHIPPED) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["model"].update(checkpoint_sha256="0" * 64),
        lambda document: document["model"].update(family="siglip2"),
        lambda document: document["image"].update(exif_transpose=True),
        lambda document: document["image"]["buckets"].remove(784),
        lambda document: document["text"].update(lowercase=False),
        lambda document: document["text"]["walk_types"]["long"].update(length=200),
        lambda document: document["files"]["tokenizer.json"].update(sha256="0" * 64),
    ],
    ids=["weights", "family", "orientation", "buckets", "case", "length", "tokenizer"],
)
def test_whatever_changes_vectors_changes_the_space(edit: Callable[[Any], None], tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    edit_manifest(tmp_path / "bundle", edit)
    assert space(tmp_path / "bundle") != space(SHIPPED)


@pytest.mark.parametrize(("change", "same"), [("rounding", True), ("another activation", False)])
def test_the_reference_tells_settings_apart_and_not_machines(change: str, same: bool, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    path = tmp_path / "bundle" / "probe.safetensors"
    tensors = load_file(path)
    score = Bundle.open(SHIPPED).manifest.score
    scale = math.exp(score.logit_scale)
    steps = 500 * (tensors["logits"][0] - score.logit_bias) / scale
    # None of these cosines lies so near to a border that rounding crosses it.
    assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-3
    tensors["logits"][0, 4] += scale * (1e-6 if change == "rounding" else 2e-3)
    save_file(tensors, path, {"texts": "{}"})
    edit_manifest(tmp_path / "bundle", lambda document: document["files"][path.name].update(size=path.stat().st_size))
    assert (space(tmp_path / "bundle") == space(SHIPPED)) is same


def test_a_probe_without_logits_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    path = tmp_path / "bundle" / "probe.safetensors"
    save_file({"logits": np.full((2, 2), np.nan, np.float32)}, path)
    edit_manifest(tmp_path / "bundle", lambda document: document["files"][path.name].update(size=path.stat().st_size))
    with pytest.raises(BundleError) as refused:
        space(tmp_path / "bundle")
    assert_one_sentence(refused.value, str(path), "no table of numbers", code="bundle_invalid")


def test_bundles_of_random_weights_share_nothing(tmp_path: Path) -> None:
    spaces = set()
    for name in ("one", "two"):
        copy = another_export(SHIPPED, tmp_path / name)

        def edit(document: Any, name: str = name) -> None:
            document["producer"]["fgclip_rt"] = name
            document["model"]["checkpoint_sha256"] = None

        edit_manifest(copy, edit)
        spaces.add(space(copy))
    assert len(spaces) == 2


def test_origins_are_unlike_by_space_and_those_of_earlier_versions_by_bundle(tmp_path: Path) -> None:
    own = Origin.of(Bundle.open(SHIPPED), "fp16")
    exported = Origin.of(Bundle.open(another_export(SHIPPED, tmp_path / "exported"), check_hashes=False), "fp16")
    other = Origin.of(Bundle.open(another_space(SHIPPED, tmp_path / "other"), check_hashes=False), "fp16")
    assert own.unlike(own) is own.unlike(exported) is None
    names = own.unlike(other)
    assert names is not None
    assert own.space_sha256 is not None
    assert names[0] == f"fg-clip2-pocket in fp16 (space {own.space_sha256[:12]})"
    assert names[1].startswith("another in fp16 (space ")
    old = Origin(own.model, own.precision, None, own.manifest_sha256)
    assert old.unlike(own) is None
    assert old.unlike(exported) == (
        f"fg-clip2-pocket in fp16 (bundle {own.manifest_sha256[:12]})",
        f"fg-clip2-pocket in fp16 (bundle {exported.manifest_sha256[:12]})",
    )
