"""The public interface is decided: a name appears in it, or leaves it, on purpose only."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import fgclip_rt
from fgclip_rt import errors
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import FgclipError
from fgclip_rt.model import Model
from helpers import picture

#: Methods, properties and attributes of the objects that users hold.
MODEL = (
    "backend",
    "bundle",
    "dense",
    "dense_features",
    "dense_image",
    "dim",
    "embed_images",
    "embed_masks",
    "embed_regions",
    "embed_texts",
    "graphs",
    "has_random_weights",
    "iter_images",
    "iter_patches",
    "iter_texts",
    "load_image",
    "logit_bias",
    "logit_scale",
    "logits",
    "manifest",
    "precision",
    "preparation",
    "prepare",
    "probabilities",
    "recent_texts",
    "space_sha256",
    "tokenizer",
    "truncated",
)
DENSE_IMAGE = ("features", "grid", "image_size", "map", "masks", "patches", "regions")
BUNDLE = (
    "check_precision",
    "check_unchanged",
    "file",
    "manifest",
    "manifest_sha256",
    "open",
    "other_files",
    "path",
    "read_text",
    "size",
)


def public(value: object) -> list[str]:
    return sorted(name for name in dir(value) if not name.startswith("_"))


def test_every_public_name_is_exported_and_nothing_else() -> None:
    bound = {
        name
        for name, value in vars(fgclip_rt).items()
        if name == "__version__" or not (name.startswith("_") or isinstance(value, ModuleType))
    }
    assert fgclip_rt.__all__ == sorted(bound | set(fgclip_rt._HOMES))
    assert set(fgclip_rt.__all__) <= set(dir(fgclip_rt))


@pytest.mark.parametrize("name", fgclip_rt.__all__)
def test_an_exported_name_is_of_this_package(name: str) -> None:
    value = getattr(fgclip_rt, name)
    assert name == "__version__" or value.__module__.startswith("fgclip_rt.")


def test_every_kind_of_error_is_exported() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, FgclipError)}
    assert kinds == {name for name in fgclip_rt.__all__ if name.endswith("Error")}


def test_a_model_has_these_public_attributes(model: Model) -> None:
    assert public(model) == list(MODEL)


def test_a_dense_image_has_these_public_attributes(model: Model) -> None:
    assert public(model.dense(picture(20, 30))) == list(DENSE_IMAGE)


def test_a_bundle_has_these_public_attributes(bundle_path: Path) -> None:
    assert public(Bundle.open(bundle_path, check_hashes=False)) == list(BUNDLE)
