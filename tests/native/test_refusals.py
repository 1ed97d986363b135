"""Malformed bundles: both readers give the same verdict, an acceptance or the same code."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fgclip_rt
from fgclip_rt.errors import FgclipError, NativeError
from fgclip_rt.native.library import Library
from helpers import fit_digests

Place = tuple[str | int, ...]

#: Values that stand in turn for every value of a manifest. One of them is right in most places, by chance.
VALUES: tuple[object, ...] = (
    None,
    True,
    "x",
    "",
    0,
    1,
    -1,
    1.5,
    2**31,
    2**63,
    2**64,
    1e300,
    [],
    {},
    ["x"],
    [1],
    {"x": 1},
    "a\u200bb",
)

#: Texts in place of a manifest, or of a part of one.
TEXTS = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"fgclip-rt-bundle"',
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"format": "fgclip-rt-bundle"}',
    b'{"format": "fgclip-rt-bundle", "format_version": 3}',
    b'{"format": "fgclip-rt-bundle", "format_version": 1}',
    b'{"format": "fgclip-rt-bundle", "format_version": 0}',
    b'{"format": "fgclip-rt-bundle", "format_version": 2.0}',
    b'{"format": "fgclip-rt-bundle", "format_version": true}',
    b'{"format": "fgclip-rt-bundle", "format_version": "3"}',
    b'{"format": "other"}',
)


@pytest.fixture(scope="module")
def small(masked_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle whose manifest lists few measurements and has a value in each optional place."""
    bundle = tmp_path_factory.mktemp("small") / "bundle"
    shutil.copytree(masked_bundle_path, bundle)
    document = json.loads((bundle / "manifest.json").read_text())
    for precision, rows in document["parity"]["measured"].items():
        document["parity"]["measured"][precision] = rows[:2]
    for graph in document["graphs"].values():
        graph["int8"] = deepcopy(graph["fp32"])
    limits = document["parity"]["limits"]
    limits["int8"] = {**limits["fp32"], "max_error": None}
    document["lowering"]["int8"] = {
        "linear": "int8",
        "other": "float32",
        "moved": {"a": "float32"},
        "residual": [{"first": "a.0", "last": "a.1"}],
        "smoothed": 1,
        "calibration": {
            "method": "minmax",
            "images": 1,
            "texts": 1,
            "held_out_images": 1,
            "held_out_texts": 1,
            "sha256": "0",
        },
    }
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


def copied(bundle: Path, target: Path) -> Path:
    """A copy whose files are symbolic links to those of the other, but for the manifest; onnx refuses hard ones."""
    shutil.copytree(bundle, target, copy_function=os.symlink)
    manifest = target / "manifest.json"
    manifest.unlink()
    shutil.copyfile(bundle / "manifest.json", manifest)
    return target


def python_verdict(bundle: Path, check_hashes: bool = True) -> str:
    try:
        fgclip_rt.load(bundle, device="cpu", threads=1, check_hashes=check_hashes)
    except FgclipError as error:
        return error.code
    return "accepted"


@contextmanager
def silent() -> Iterator[None]:
    """Makes sure that the process prints nothing, in whatever language."""
    with tempfile.TemporaryFile() as printed:
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(printed.fileno(), number)
            yield
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
        printed.seek(0)
        assert printed.read() == b""


def native_verdict(library: Library, bundle: Path, check_hashes: bool = True) -> str:
    try:
        with silent():
            library.open(bundle, threads=1, check=0 if check_hashes else 1).close()
    except NativeError as error:
        return error.code
    return "accepted"


def places(document: Any, place: Place = ()) -> Iterator[Place]:
    """The way to every value in a document."""
    yield place
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*place, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*place, index))


def with_change(document: Any, place: Place, change: Callable[[Any, Any], object]) -> Any:
    """A copy of a document, with a change of one place; the change is given the parent and the key."""
    copy = deepcopy(document)
    parent = copy
    for key in place[:-1]:
        parent = parent[key]
    change(parent, place[-1])
    return copy


def remove_key(parent: Any, key: Any) -> None:
    del parent[key]


def add_colour(parent: Any, key: Any) -> None:
    parent[key]["colour"] = 1


def make_list(parent: Any, key: Any) -> None:
    parent[key] = list(parent[key].values())


def repeat(parent: Any, key: Any) -> None:
    parent[key] = parent[key] * 2


def mutations(document: Any) -> Iterator[tuple[str, Any]]:
    """Documents that differ from a sound one in one place, each with a name."""
    for place in list(places(document))[1:]:
        name = ".".join(map(str, place))
        for value in VALUES:
            yield f"{name} = {value!r}", with_change(document, place, partial(setitem, value))
        yield f"without {name}", with_change(document, place, remove_key)
        at = document
        for key in place:
            at = at[key]
        if isinstance(at, dict):
            yield f"{name} with colour", with_change(document, place, add_colour)
            yield f"{name} as a list", with_change(document, place, make_list)
        if isinstance(at, list):
            yield f"{name} twice", with_change(document, place, repeat)


def setitem(value: Any, parent: Any, key: Any) -> None:
    parent[key] = value


def test_every_place_of_a_manifest(library: Library, small: Path, tmp_path: Path) -> None:
    bundle = copied(small, tmp_path / "bundle")
    document = json.loads((small / "manifest.json").read_text())
    assert python_verdict(bundle) == native_verdict(library, bundle) == "accepted"
    verdicts: dict[str, tuple[str, str]] = {}
    for name, mutated in mutations(document):
        (bundle / "manifest.json").write_text(json.dumps(mutated))
        # Digests of the other files are compared elsewhere.
        verdicts[name] = python_verdict(bundle, False), native_verdict(library, bundle, False)
    # A JSON number of more than 64 bits is a float to the C library, and so not a version.
    assert verdicts.pop(f"format_version = {2**64}") == ("bundle_newer", "bundle_invalid")
    assert len(verdicts) > 3000
    assert {name: both for name, both in verdicts.items() if both[0] != both[1]} == {}
    assert {python for python, _ in verdicts.values()} >= {"accepted", "bundle_invalid", "bundle_older", "bundle_newer"}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:60]))
def test_texts_that_are_no_manifest(library: Library, small: Path, tmp_path: Path, text: bytes) -> None:
    bundle = copied(small, tmp_path / "bundle")
    (bundle / "manifest.json").write_bytes(text)
    verdict = python_verdict(bundle)
    assert verdict != "accepted"
    assert native_verdict(library, bundle) == verdict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"embedding_size":', '"embedding_size": 1, "embedding_size":'),
        ('"model": {', '"model": {"name": 1, '),
        ('"logit_scale": ', '"logit_scale": NaN, "logit_scale": '),
        ('"logit_bias": ', '"logit_bias": 1e400, "logit_bias": '),
        ('"family": "', '"family": "\\ud800'),
        ('"family": "', '"family": "\\ud83d\\ude00'),
        ('"family": "', '"family": "\\u0000'),
        ('"family": "', '"family": "\x01'),
        ('"source": ', '"source": null,, "source": '),
        ('{"format"', '{ /* comment */ "format"'),
        ('{"format"', '{"FORMAT": 1, "format"'),
    ],
)
def test_manifests_that_json_libraries_read_differently(
    library: Library, small: Path, tmp_path: Path, old: str, new: str
) -> None:
    bundle = copied(small, tmp_path / "bundle")
    text = (bundle / "manifest.json").read_text()
    assert old in text
    (bundle / "manifest.json").write_text(text.replace(old, new, 1))
    assert native_verdict(library, bundle, False) == python_verdict(bundle, False)


@pytest.mark.parametrize(
    "name", ["../x", "engines/../../x", "/etc/hostname", "..", "", ".", "..\\x", "a\0b", "manifest.json", "./x", "a//b"]
)
def test_names_of_files(library: Library, small: Path, tmp_path: Path, name: str) -> None:
    bundle = copied(small, tmp_path / "bundle")
    (tmp_path / "x").write_bytes(b"")
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"][name] = {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    (bundle / "manifest.json").write_text(json.dumps(document))
    verdict = python_verdict(bundle)
    assert verdict != "accepted"
    assert native_verdict(library, bundle) == verdict


def remove(path: Path) -> None:
    path.unlink()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def write(path: Path, data: bytes) -> None:
    """Writes without a change of the file that other bundles share."""
    path.unlink()
    path.write_bytes(data)


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    write(path, bytes(data))


def truncate(path: Path) -> None:
    write(path, path.read_bytes()[:-1])


def link(path: Path) -> None:
    target = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("change", [remove, make_folder, make_pipe, alter, truncate, link])
@pytest.mark.parametrize("name", ["manifest.json", "text.onnx", "weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("check_hashes", [True, False], ids=["hashes", "sizes"])
def test_files_of_a_bundle(
    library: Library, small: Path, tmp_path: Path, change: Callable[[Path], None], name: str, check_hashes: bool
) -> None:
    if change is make_pipe and name == "manifest.json":
        pytest.skip("both would wait for a writer")
    bundle = copied(small, tmp_path / "bundle")
    change(bundle / name)
    assert native_verdict(library, bundle, check_hashes) == python_verdict(bundle, check_hashes)


def test_folders_that_are_no_bundle(library: Library, small: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty", small / "manifest.json", tmp_path / ("long" * 100)):
        assert native_verdict(library, path) == python_verdict(path)
    (tmp_path / "empty/manifest.json").mkdir()
    assert native_verdict(library, tmp_path / "empty") == python_verdict(tmp_path / "empty") == "bundle_unreadable"


def test_a_bundle_of_links_runs(library: Library, small: Path, tmp_path: Path) -> None:
    bundle = copied(small, tmp_path / "bundle")
    for name in ("weights.safetensors", "vision.onnx", "text.onnx"):
        link(bundle / name)
    expected = library.open(small).embed_texts(["a cat"])
    assert (library.open(bundle).embed_texts(["a cat"]) == expected).all()


def test_a_bundle_that_changes_is_noticed(library: Library, small: Path, tmp_path: Path) -> None:
    bundle = copied(small, tmp_path / "bundle")
    weights = bundle / "weights.safetensors"
    write(weights, weights.read_bytes())
    model = library.open(bundle)
    model.embed_texts(["a cat"])
    # Touched, but not changed.
    os.utime(weights)
    model.embed_texts(["a cat"])
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(NativeError, match="was changed while") as caught:
        model.embed_texts(["a cat"])
    assert caught.value.code == "bundle_replaced"
    other = library.open(bundle, check=1)
    alter(bundle / "manifest.json")
    with pytest.raises(NativeError, match="was replaced, changed or removed") as caught:
        other.embed_texts(["a cat"])
    assert caught.value.code == "bundle_replaced"


def test_a_graph_of_other_weights_or_tensors_is_refused(library: Library, small: Path, tmp_path: Path) -> None:
    bundle = copied(small, tmp_path / "bundle")
    graph = (bundle / "text.onnx").read_bytes()
    write(bundle / "text.onnx", graph.replace(b"weights.safetensors", b"wEights.safetensors"))
    fit_digests(bundle, "text.onnx")
    with pytest.raises(NativeError, match="which the manifest does not list") as caught:
        library.open(bundle).embed_texts(["a cat"])
    assert caught.value.code == "bundle_invalid"
    write(bundle / "text.onnx", (bundle / "vision.onnx").read_bytes())
    fit_digests(bundle, "text.onnx")
    with pytest.raises(NativeError, match="its manifest says") as caught:
        library.open(bundle).embed_texts(["a cat"])
    assert caught.value.code == "bundle_invalid"
    write(bundle / "weights.safetensors", (bundle / "weights.safetensors").read_bytes()[:1000])
    write(bundle / "text.onnx", graph)
    fit_digests(bundle, "text.onnx", "weights.safetensors")
    with pytest.raises(NativeError, match="reads past the end of") as caught:
        library.open(bundle).embed_texts(["a cat"])
    assert caught.value.code == "bundle_invalid"
