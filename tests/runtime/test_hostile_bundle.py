"""A bundle of right form and wrong content, whose digests were made to fit, ends in an error of ours or in numbers."""

from __future__ import annotations

import copy
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fgclip_rt
from fgclip_rt import answers, parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import FgclipError
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe
from helpers import assert_one_sentence, edit_manifest, fit_digests, picture

#: A place in a document: keys and indices from its root.
Place = tuple[str | int, ...]

#: Values to put into every place: other types, and numbers at and past the ends of types.
VALUES: tuple[Any, ...] = (None, True, "", "x", [], {}, -1, 0, 1, 7, 197, 2**31, 2**64, -(2**63), 0.5, -1e300)

#: Number of altered manifests and probes that are tried, of all that could be.
TRIED_MANIFESTS, TRIED_PROBES = 700, 120

ARRAY = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def small(masked_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose probe has one small image and whose manifest one measurement, so that a check takes no time."""
    path = Path(shutil.copytree(masked_bundle_path, tmp_path_factory.mktemp("small") / "bundle"))
    probe = Probe.of(Bundle.open(path))
    index = int(np.argmin([image.rgb.size for image in probe.images]))
    texts = {
        name: replace(
            part,
            texts=part.texts[:2],
            input_ids=part.input_ids[:2],
            attention_mask=part.attention_mask[:2],
            features=part.features[:2],
        )
        for name, part in probe.walk_types.items()
    }
    images, logits = (probe.images[index],), probe.logits[index : index + 1, :2]
    replace(probe, images=images, walk_types=texts, logits=logits).save(path / "probe.safetensors")

    def shorten(document: dict[str, Any]) -> None:
        measured = document["parity"]["measured"]
        measured["fp32"] = measured["fp32"][:1]

    edit_manifest(path, shorten)
    fit_digests(path, "probe.safetensors")
    return path


@pytest.fixture
def bundle(small: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(small, tmp_path / "bundle"))


def use(path: Path) -> None:
    """Asks of a bundle all that its users ask."""
    opened = Bundle.open(path)
    json.dumps(msgspec.to_builtins(answers.inspect(opened)), allow_nan=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fgclip_rt.load(path, device="cpu")
    image = picture(20, 30)
    vectors = model.embed_images([image])
    for walk_type in model.manifest.text.walk_types:
        texts = model.embed_texts(["a cat"], walk_type)
        model.probabilities(vectors, texts)
    if model.graphs.has("region"):
        model.embed_regions(image, [[0, 0, 9, 9]])
    verify(model)


def verify(model: Model) -> None:
    probe = Probe.of(model.bundle)
    rows = parity.check(model, probe, model.manifest.parity.limits[model.precision])
    json.dumps(msgspec.to_builtins(rows), allow_nan=False)


def places(document: Any, place: Place = ()) -> Iterator[Place]:
    """Every place in a document but its root."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*place, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*place, key))


def at(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def retype(path: Path, name: str, dtype: str) -> None:
    """Gives a tensor of a safetensors file a type that NumPy may lack, of as many bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])


def test_the_small_bundle_is_sound(small: Path) -> None:
    use(small)


def test_no_value_in_a_manifest_ends_in_a_foreign_error(bundle: Path) -> None:
    path = bundle / "manifest.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    strings = [value for place in places(whole) if isinstance(value := at(whole, place), str)]
    changes: list[tuple[Place, Any]] = [(place, ...) for place in places(whole)]
    changes += [(place, value) for place in places(whole) for value in (*VALUES, *strings[:40:5])]
    accepted = 0
    for place, value in random.Random(0).sample(changes, TRIED_MANIFESTS):
        document = copy.deepcopy(whole)
        parent = at(document, place[:-1])
        if value is ...:
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        path.write_text(json.dumps(document), encoding="utf-8")
        try:
            use(bundle)
            accepted += 1
        except FgclipError as error:
            assert_one_sentence(error)
        except BaseException as error:
            raise AssertionError(f"{place} = {value!r}: {error!r}") from error
    # Names, versions and measurements may be any.
    assert 0 < accepted < TRIED_MANIFESTS / 4


@pytest.mark.filterwarnings("ignore:overflow")
def test_no_value_in_a_probe_ends_in_a_foreign_error(bundle: Path) -> None:
    path = bundle / "probe.safetensors"
    whole, texts = load_file(path), json.dumps({name: ["a", "b"] for name in ("short", "box", "long")})
    alterations: dict[str, Callable[[ARRAY], ARRAY]] = {
        "float64": lambda array: array.astype(np.float64),
        "int64": lambda array: array.astype(np.int64),
        "float16": lambda array: array.astype(np.float16),
        "bool": lambda array: array.astype(np.bool_),
        "F8_E4M3": lambda array: array.astype(np.uint8),
        "C64": lambda array: array.astype(np.int64),
        "cut": lambda array: array[:-1],
        "empty": lambda array: array[:0],
        "flat": lambda array: array.reshape(-1),
        "deeper": lambda array: array[None],
        "single": lambda array: array.reshape(-1)[0],
        "not a number": lambda array: (array * np.nan).astype(array.dtype),
        "huge": lambda array: np.full_like(array, np.finfo(np.float32).max if array.dtype.kind == "f" else 127),
        "negative": lambda array: -array,
    }
    changes = [(name, alteration) for name in sorted(whole) for alteration in [*alterations, "left out"]]
    for name, alteration in random.Random(0).sample(changes, min(TRIED_PROBES, len(changes))):
        tensors = dict(whole)
        if alteration == "left out":
            del tensors[name]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tensors[name] = np.ascontiguousarray(alterations[alteration](whole[name]))
        save_file(tensors, path, metadata={"texts": texts})
        if alteration in ("F8_E4M3", "C64"):
            retype(path, name, alteration)
        fit_digests(bundle, "probe.safetensors")
        try:
            verify(fgclip_rt.load(bundle, device="cpu"))
        except FgclipError as error:
            assert_one_sentence(error)
        except BaseException as error:
            raise AssertionError(f"{name}, {alteration}: {error!r}") from error
