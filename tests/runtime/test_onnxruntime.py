"""onnxruntime behind its seam: its errors become ours, its memory comes back, and files under it are watched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as kinds

import fgclip_rt
from fgclip_rt.backends import onnxruntime as backend
from fgclip_rt.backends.onnxruntime import run_session
from fgclip_rt.errors import BundleError, DeviceError, FgclipError
from fgclip_rt.model import Model
from helpers import add_int8, assert_one_sentence, edit_manifest, embed_anew, fit_digests

#: Every class of errors that onnxruntime has, and those that its bindings let through.
RAISED = [
    *(value for value in vars(kinds).values() if isinstance(value, type) and issubclass(value, Exception)),
    MemoryError,
    RuntimeError,
    ValueError,
]


@pytest.fixture
def bundle(masked_bundle_path: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(masked_bundle_path, tmp_path / "bundle"))


def error_of(path: Path, precision: str | None = None) -> FgclipError:
    """The error of the first text of a bundle that opens."""
    model = fgclip_rt.load(path, device="cpu", precision=precision)
    with pytest.raises(FgclipError) as info:
        model.embed_texts(["a cat"])
    return info.value


# Files that are not what they should be, with digests that fit


@pytest.mark.parametrize("damage", ["other bytes", "cut", "empty", "other field"])
def test_a_file_that_is_no_graph_is_refused(bundle: Path, damage: str) -> None:
    path = bundle / "text.onnx"
    content = path.read_bytes()
    damaged = {"other bytes": b"no graph", "cut": content[:-100], "empty": b"", "other field": b"\x08\x01"}
    path.write_bytes(damaged[damage])
    fit_digests(bundle, "text.onnx")
    assert_one_sentence(error_of(bundle), "text.onnx", code="bundle_invalid")


def test_a_graph_of_another_interface_is_refused(bundle: Path) -> None:
    edit_manifest(bundle, lambda document: document["graphs"]["text"]["fp32"].update(file="vision.onnx"))
    error = error_of(bundle)
    assert_one_sentence(error, "vision.onnx", "inputs patches uint8 [batch, patches, 768]", "input_ids int32")
    assert error.code == "bundle_invalid"


def test_weights_that_are_too_short_are_refused(bundle: Path) -> None:
    path = bundle / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:10_000])
    fit_digests(bundle, path.name)
    assert_one_sentence(error_of(bundle), "text.onnx", code="bundle_invalid")


@pytest.mark.parametrize(
    ("where", "value"), [("index", 7), ("length", 197), ("length", 3000)], ids=["index", "length", "long"]
)
def test_numbers_that_the_graph_does_not_take_are_refused(bundle: Path, where: str, value: int) -> None:
    edit_manifest(bundle, lambda document: document["text"]["walk_types"]["short"].update({where: value}))
    assert_one_sentence(error_of(bundle), "text graph", "manifest", code="bundle_invalid")


def test_a_precision_that_cannot_run_is_told_from_a_damaged_graph(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_manifest(bundle, add_int8)

    def refuse(*_: object, **__: object) -> None:
        raise kinds.InvalidGraph("Type Error")

    monkeypatch.setattr(backend, "open_session", refuse)
    assert_one_sentence(error_of(bundle, "int8"), "int8", "fp32", code="precision_unsupported")
    assert_one_sentence(error_of(bundle, "fp32"), "text.onnx", code="bundle_invalid")


# Errors


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", RAISED)
def test_every_error_at_opening_is_ours(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], device: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("[ONNXRuntimeError] : 1 : FAIL : Something broke. And more.\nAnd more")

    monkeypatch.setattr(backend, "open_session", fail)
    model = fgclip_rt.load(bundle, device="cpu")
    model.backend.device = device  # type: ignore[misc]
    with pytest.raises(FgclipError) as info:
        model.embed_texts(["a cat"])
    assert_one_sentence(info.value, "text")
    assert "ONNXRuntimeError" not in str(info.value)
    damaged = (kinds.InvalidArgument, kinds.InvalidGraph, kinds.InvalidProtobuf)
    at_fault = "bundle_invalid" if device == "cpu" or kind in damaged else "device_failed"
    expected = {MemoryError: "out_of_memory", kinds.NotImplemented: "precision_unsupported"}
    assert info.value.code == expected.get(kind, at_fault)


class Recorded:
    """A session that keeps the options of its runs, and fails if it has an error."""

    def __init__(self, error: Exception | None = None, *providers: str) -> None:
        self.error = error
        self.providers = [*providers, "CPUExecutionProvider"]
        self.given: list[ort.RunOptions | None] = []

    def get_providers(self) -> list[str]:
        return self.providers

    def run(self, _outputs: object, _inputs: object, options: ort.RunOptions | None) -> list[object]:
        self.given.append(options)
        if self.error is not None:
            raise self.error
        return []


def run(recorded: Recorded, patches: int = 4) -> None:
    session: Any = recorded
    run_session(session, "vision", {"patches": np.zeros((1, patches, 768), np.uint8)}, ["image_embeds"])


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", None])
@pytest.mark.parametrize("kind", RAISED)
def test_every_error_of_a_run_is_ours(kind: type[Exception], provider: str | None) -> None:
    error = kind("[ONNXRuntimeError] : 1 : FAIL : Something broke. And more.\nAnd more")
    with pytest.raises(FgclipError) as info:
        run(Recorded(error, *filter(None, [provider])))
    assert_one_sentence(info.value, "vision graph")
    assert "ONNXRuntimeError" not in str(info.value)
    at_fault = "bundle_invalid" if provider is None or kind is kinds.InvalidArgument else "device_failed"
    assert info.value.code == ("out_of_memory" if kind is MemoryError else at_fault)


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:376 Failed to allocate memory for requested buffer",
        "std::bad_alloc",
        "CUDA failure 2: out of memory",
    ],
)
@pytest.mark.parametrize("kind", [kinds.RuntimeException, kinds.Fail, RuntimeError])
def test_memory_that_ran_out_is_told_as_such(kind: type[Exception], message: str) -> None:
    with pytest.raises(DeviceError) as info:
        run(Recorded(kind(message)))
    assert_one_sentence(info.value, "memory ran out", "vision", code="out_of_memory")


# Memory

ROOT = Path(__file__).parents[2]

#: Prints the program's own memory in MB before ever new shapes and one large one, and after them.
MEMORY = """
import random, sys
import numpy as np
import fgclip_rt
from fgclip_rt.graphs import ImageInputs

model = fgclip_rt.load(sys.argv[1], device="cpu", threads=1)

def run(rows, columns):
    patches = np.full((1, rows * columns, 768), 7, np.uint8)
    model.graphs.vision(ImageInputs(patches, np.array([[rows, columns]], np.int32))).result()

def memory():
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

run(32, 32)
before = memory()
for _ in range(100):
    run(random.randint(1, 32), random.randint(1, 32))
run(96, 96)
print(before, memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_comes_back_after_ever_new_shapes_and_a_large_image(masked_bundle_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, masked_bundle_path], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    # The large image alone takes 80 MB, which a session that keeps its memory would still have.
    assert after < before + 20


@pytest.mark.parametrize(("patches", "gives_back"), [(2048, False), (2049, True)])
def test_only_large_runs_give_their_memory_back(patches: int, gives_back: bool) -> None:
    recorded = Recorded()
    run(recorded, patches)
    [options] = recorded.given
    assert (options is not None) is gives_back
    if options is not None:
        assert options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"


def test_no_plan_is_kept_for_each_shape(model: Model) -> None:
    model.embed_texts(["a cat"])
    assert not model.backend.session("text").get_session_options().enable_mem_pattern  # type: ignore[attr-defined]


# Files that change under a loaded model


@pytest.fixture
def loaded(bundle: Path) -> Model:
    """A model of ``bundle`` whose text graph is loaded, and no other."""
    model = fgclip_rt.load(bundle, device="cpu")
    model.embed_texts(["a cat"])
    return model


def write_zeros(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(500_000))


def cut(path: Path) -> None:
    os.truncate(path, 5000)


@pytest.mark.parametrize("change", [write_zeros, cut])
def test_weights_that_are_changed_in_place_are_noticed(
    bundle: Path, loaded: Model, change: Callable[[Path], None]
) -> None:
    change(bundle / "weights.safetensors")
    with pytest.raises(BundleError) as info:
        loaded.embed_texts(["a dog"])
    assert_one_sentence(info.value, "weights.safetensors", "load the model again", code="bundle_replaced")


@pytest.mark.parametrize("name", ["vision.onnx", "weights.safetensors"])
def test_a_file_that_is_changed_before_its_first_use_is_noticed(bundle: Path, loaded: Model, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError) as info:
        loaded.embed_images([np.zeros((9, 9, 3), np.uint8)])
    assert_one_sentence(info.value, str(bundle), code="bundle_replaced")


@pytest.mark.parametrize("name", ["weights.safetensors", "vision.onnx"])
def test_new_times_alone_change_nothing(bundle: Path, loaded: Model, name: str) -> None:
    """``touch``, and tools that set times after a copy."""
    os.utime(bundle / name, (1, 1))
    assert loaded.embed_texts(["a dog"]).shape == (1, 64)
    assert loaded.embed_images([np.zeros((9, 9, 3), np.uint8)]).shape == (1, 64)


def test_loaded_graphs_outlive_a_bundle_that_another_replaces(bundle: Path, loaded: Model, tmp_path: Path) -> None:
    expected = embed_anew(loaded, ["a cat"])
    bundle.rename(tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    bundle.mkdir()
    np.testing.assert_array_equal(embed_anew(loaded, ["a cat"]), expected)
    with pytest.raises(BundleError) as info:
        loaded.embed_images([np.zeros((9, 9, 3), np.uint8)])
    assert_one_sentence(info.value, str(bundle), code="bundle_replaced")
