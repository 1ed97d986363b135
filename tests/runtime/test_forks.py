"""Models in other processes: forked children compute and end, and a pickled model is loaded again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fgclip_rt
from fgclip_rt import backends, forks
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.errors import BundleError, DeviceError
from fgclip_rt.model import Model
from fgclip_rt.recent import Recent
from fgclip_rt.text import Tokenizer
from helpers import assert_one_sentence, edit_manifest, picture

TEXTS = ["a cat", "一只黑猫"]
IMAGE = picture(40, 60)

Vectors = np.ndarray[Any, Any]

#: Seconds after which a child counts as hanging.
LIMIT = 30


def in_child(work: Callable[[], bool]) -> None:
    """Check in a forked child that ``work`` returns True, before a time limit."""
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def vectors(model: Model) -> list[Vectors]:
    dense = model.dense(IMAGE)
    return [model.embed_texts(TEXTS), model.embed_images([IMAGE]), dense.regions([[0, 0, 9, 9]]), dense.map(TEXTS)]


def same(actual: list[Vectors], expected: list[Vectors]) -> bool:
    return all(np.allclose(*pair, rtol=0, atol=1e-6) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_computes_with_sessions_of_its_own(bundle_path: Path, threads: int) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu", threads=threads)
    expected = vectors(model)
    backend = model.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    session = backend.session("text")

    def work() -> bool:
        # Texts of the parent are known; others are not.
        known, new = model.embed_texts(TEXTS), model.embed_texts(["another"])
        return same([known], expected[:1]) and len(new) == 1 and backend.session("text") is not session

    in_child(work)
    in_child(lambda: same(vectors(model), expected))
    assert backend.session("text") is session
    assert same(vectors(model), expected)


def test_a_child_of_a_process_whose_threads_embed_does_not_hang(bundle_path: Path) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu", threads=2)
    expected = vectors(model)
    stop = threading.Event()

    def embed() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            model.embed_texts([f"text {number}", *TEXTS])
            fgclip_rt.load(bundle_path, device="cpu", check_hashes=False).embed_images([IMAGE])

    threads = [threading.Thread(target=embed) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            in_child(lambda: same(vectors(model), expected))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_every_lock_that_was_held_is_new_in_a_child(model: Model) -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    dense = model.dense(IMAGE)
    expected = dense.features()
    dense = model.dense(IMAGE)
    with recent._lock, dense._lock:
        in_child(lambda: recent.get("a") == 1 and same([dense.features()], [expected]))


def test_a_fork_waits_for_a_graph_that_is_being_opened() -> None:
    """In the child the lock is free, whoever held it in the parent."""
    opened = threading.Event()
    order: list[str] = []

    def open_slowly() -> None:
        with forks.opening:
            opened.set()
            signal_free.wait(LIMIT)
            order.append("opened")

    signal_free = threading.Event()
    thread = threading.Thread(target=open_slowly)
    thread.start()
    opened.wait()
    threading.Timer(0.2, signal_free.set).start()
    in_child(lambda: order == ["opened"] and forks.opening.acquire(blocking=False))
    thread.join()
    assert forks.opening.acquire(blocking=False)
    forks.opening.release()


SCRIPT = """
import gc, os, signal, sys
import fgclip_rt
model = fgclip_rt.load(sys.argv[1], device="cpu", threads=int(sys.argv[2]))
model.embed_texts(["a cat"])
child = os.fork()
if child == 0:
    signal.alarm(30)
    assert model.embed_texts(["a dog"]).shape == (1, model.dim)
    if sys.argv[3] == "drop":
        del model
        gc.collect()
    sys.exit(7)
sys.exit(0 if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7 else 1)
"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("way", ["drop", "leave"])
def test_a_child_can_drop_the_model_and_end_like_any_process(bundle_path: Path, threads: int, way: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    # From 3.12 on, Python warns of any fork of a process with threads, as onnxruntime's are.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT, bundle_path, str(threads), way]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def embed(model: Model, texts: list[str]) -> Vectors:
    return model.embed_texts(texts)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_takes_the_model_with_the_work(bundle_path: Path, method: str) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu", threads=2)
    expected = model.embed_texts(TEXTS)
    with multiprocessing.get_context(method).Pool(1) as pool:
        result = pool.apply_async(embed, (model, TEXTS)).get(timeout=2 * LIMIT)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_a_child_of_a_process_that_used_cuda_is_told_so(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fgclip_rt.load(bundle_path, device="cpu")
    monkeypatch.setattr(model.backend, "device", "cuda")

    def is_refused() -> bool:
        try:
            model.embed_texts(["another"])
        except DeviceError as error:
            return str(error) == str(backends.lost_cuda())
        return False

    # As long as no graph was opened, CUDA was not used, and the child opens one as the parent would.
    monkeypatch.setattr(OnnxRuntimeBackend, "_load", lambda *_: "a session")
    in_child(lambda: model.backend.session("text") == "a session")  # type: ignore[attr-defined]
    monkeypatch.undo()
    model.embed_texts(TEXTS)
    monkeypatch.setattr(model.backend, "device", "cuda")
    in_child(is_refused)
    assert_one_sentence(backends.lost_cuda(), "fork", "spawn", code="device_failed")


def test_a_pickled_model_is_loaded_by_its_path_and_options(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle_path.parent)
    model = fgclip_rt.load(bundle_path.name, device="cpu", threads=3, check_hashes=False)
    data = pickle.dumps(model)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    assert pickle.dumps(model) == data
    again = pickle.loads(data)
    assert again._options == model._options
    assert again.backend._threads == 3
    assert repr(again) == repr(model)
    monkeypatch.chdir(bundle_path.parent)
    assert same(vectors(again), vectors(model))


def test_a_pickled_model_keeps_its_precision(pocket_path: Path) -> None:
    model = fgclip_rt.load(pocket_path, device="cpu", precision="int8")
    assert pickle.loads(pickle.dumps(model)).precision == "int8"


def test_a_replaced_bundle_is_not_the_pickled_models(bundle_path: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)
    data = pickle.dumps(fgclip_rt.load(bundle, device="cpu"))
    edit_manifest(bundle, lambda document: document["model"].update(name="another"))
    with pytest.raises(BundleError) as info:
        pickle.loads(data)
    assert_one_sentence(info.value, str(bundle), "replaced", code="bundle_replaced")
    shutil.rmtree(bundle)
    with pytest.raises(BundleError) as gone:
        pickle.loads(data)
    assert gone.value.code == "bundle_missing"


def test_files_are_checked_again_if_they_were_checked_before(bundle_path: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)
    checked, trusted = (
        pickle.dumps(fgclip_rt.load(bundle, device="cpu", check_hashes=check)) for check in (True, False)
    )
    weights = bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert pickle.loads(trusted).dim == 96
    with pytest.raises(BundleError) as info:
        pickle.loads(checked)
    assert info.value.code == "bundle_altered"


def test_what_cannot_be_pickled_says_so(model: Model) -> None:
    by_hand = Model(model.bundle, model.backend)
    for value, part in ((by_hand, "fgclip_rt.load"), (model.dense(IMAGE), "DenseImage")):
        with pytest.raises(TypeError) as info:
            pickle.dumps(value)
        assert_one_sentence(info.value, part, "cannot be pickled")


def test_a_tokenizer_is_pickled_whole(model: Model) -> None:
    again = pickle.loads(pickle.dumps(model.tokenizer))
    assert isinstance(again, Tokenizer)
    text = "A Photo of <eos> 猫 " * 40
    for field in ("input_ids", "attention_mask", "truncated"):
        actual, expected = (getattr(tokenizer([text, "x"], "long"), field) for tokenizer in (again, model.tokenizer))
        np.testing.assert_array_equal(actual, expected)


def test_onnxruntime_reports_nothing_to_its_makers() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    keep = "import os, fgclip_rt; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    result = subprocess.run([sys.executable, "-c", keep], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "0\n"
