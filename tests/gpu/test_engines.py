"""Engines on an NVIDIA GPU: their numbers, their batches, threads and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fgclip_rt
from fgclip_rt import parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import find_engines
from fgclip_rt.engines import Shapes, build
from fgclip_rt.engines.cuda import Cuda, OutOfMemoryError, find_gpu
from fgclip_rt.engines.libraries import TensorRtRtx
from fgclip_rt.errors import DeviceError, EngineError
from fgclip_rt.machine import nvidia_gpus
from fgclip_rt.model import Model
from fgclip_rt.packages import ENGINE_PACKAGES, missing_packages
from fgclip_rt.probe import Probe
from helpers import SQUARE_NAMES, picture

pytestmark = pytest.mark.skipif(not nvidia_gpus(), reason="no NVIDIA GPU on this machine")

PRECISIONS = ("fp32", "fp16", "int8")
IMAGES = [picture(*size, seed) for seed, size in enumerate([(100, 100), (200, 250), (300, 420), (480, 640), (40, 90)])]
TEXTS = ["a big spotted yellow star", "大大的圆点黄色五角星", "", "a cat on a mat"]


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest) -> str:
    """Each library that is installed."""
    name: str = request.param
    if missing := missing_packages(ENGINE_PACKAGES[name]):
        pytest.skip(f"{name} needs {', '.join(missing)}")
    return name


@pytest.fixture(scope="module")
def built(library: str, pocket_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket bundle with engines for this GPU in three precisions."""
    folder = shutil.copytree(pocket_path, tmp_path_factory.mktemp(library) / "pocket")
    try:
        build(Bundle.open(folder), library, PRECISIONS, targets=["current"], jobs=os.cpu_count() or 1)
    except EngineError as error:
        # TensorRT-RTX lists no Hopper GPU; the report shows the library's own reason.
        pytest.skip(f"{library} builds nothing for {find_gpu()}: {error}")
    return folder


def load(folder: Path, library: str, precision: str = "fp16") -> Model:
    return fgclip_rt.load(folder, precision=precision, backend=library)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_engine_keeps_the_limits(built: Path, library: str, precision: str) -> None:
    model = load(built, library, precision)
    probe = Probe.load(built / model.manifest.parity.probe)
    rows = parity.check(model, probe, model.manifest.parity.limits[precision])
    assert len(rows) == len(model.manifest.parity.measured["fp32"])
    assert [row for row in rows if not row.passed] == []


@pytest.mark.parametrize("name", SQUARE_NAMES)
def test_engines_of_the_other_families_keep_the_limits(
    name: str, library: str, square_path: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(square_path(name), tmp_path / name)
    try:
        build(Bundle.open(folder), library, PRECISIONS, targets=["current"], jobs=os.cpu_count() or 1)
    except EngineError as error:
        pytest.skip(f"{library} builds nothing for {find_gpu()}: {error}")
    for precision in PRECISIONS:
        model = load(folder, library, precision)
        probe = Probe.load(folder / model.manifest.parity.probe)
        rows = parity.check(model, probe, model.manifest.parity.limits[precision])
        assert [row for row in rows if not row.passed] == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_does_not_depend_on_its_batch(built: Path, library: str, precision: str) -> None:
    """Kernels differ with the batch's size, so sums are rounded in another order, but nothing else changes."""
    model = load(built, library, precision)
    alone = np.concatenate([model.embed_images([image]) for image in IMAGES])
    tolerance = {"fp32": 1e-4, "fp16": 5e-3, "int8": 5e-2}[precision]
    for batch_size in (2, 5, 32):
        np.testing.assert_allclose(model.embed_images(IMAGES * 3, batch_size=batch_size)[:5], alone, atol=tolerance)
    texts = np.concatenate([model.embed_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(model.embed_texts(TEXTS * 5)[:4], texts, atol=tolerance)


def test_weights_that_were_left_out_come_from_the_bundle(built: Path, library: str, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "stripped", ignore=shutil.ignore_patterns("engines"))
    engines = build(Bundle.open(folder), library, ["fp16", "int8"], targets=["current"], strip_weights=True)
    whole = {engine.key.graph: engine.size for engine in find_engines(Bundle.open(built))}
    assert sum(entry.engine.size for entry in engines) < sum(whole.values()) / 2
    for precision in ("fp16", "int8"):
        model = load(folder, library, precision)
        probe = Probe.load(folder / model.manifest.parity.probe)
        rows = parity.check(model, probe, model.manifest.parity.limits[precision])
        assert [row for row in rows if not row.passed] == []


def test_threads_share_a_model(built: Path, library: str) -> None:
    model = load(built, library)
    images, texts = model.embed_images(IMAGES), model.embed_texts(TEXTS)

    def work(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(IMAGES))
        found = model.embed_images([IMAGES[i] for i in order], batch_size=1 + number % 4)
        np.testing.assert_allclose(found, images[order], atol=5e-3)
        np.testing.assert_allclose(model.embed_texts(TEXTS[number % 4 :]), texts[number % 4 :], atol=5e-3)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(200)))


def test_memory_stays_flat_over_ten_thousand_requests(built: Path, library: str) -> None:
    model, cuda = load(built, library), Cuda()
    for count in range(1, 9):
        model.embed_texts(TEXTS[:1] * count)
    before, resident = cuda.free_memory(), _resident()
    for number in range(10_000):
        model.embed_texts(TEXTS[:1] * (1 + number % 8))
    assert before - cuda.free_memory() < 8 << 20
    assert _resident() - resident < 64 << 20


def test_engines_and_onnxruntime_agree(built: Path, library: str) -> None:
    model = load(built, library, "fp32")
    on_cpu = fgclip_rt.load(built, device="cpu")
    np.testing.assert_allclose(model.embed_images(IMAGES), on_cpu.embed_images(IMAGES), atol=1e-4)
    boxes = [[5, 5, 60, 80], [0, 0, 99, 99]] * 200
    np.testing.assert_allclose(model.embed_regions(IMAGES[0], boxes), on_cpu.embed_regions(IMAGES[0], boxes), atol=1e-4)


def test_too_large_a_batch_is_told_what_fits(built: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(built, library)
    device_memory = Cuda.device_memory

    def scarce(self: Cuda, size: int) -> Any:
        if size > 1 << 20:
            raise OutOfMemoryError
        return device_memory(self, size)

    monkeypatch.setattr(Cuda, "device_memory", scarce)
    monkeypatch.setattr(Cuda, "free_memory", lambda _: 8 << 20)
    with pytest.raises(DeviceError, match="memory ran out"):
        model.embed_images(IMAGES * 6, max_num_patches=1024, batch_size=30)


def test_a_target_by_name_runs_where_it_says(library: str, pocket_path: Path, tmp_path: Path) -> None:
    gpu = find_gpu()
    if library != "tensorrt-rtx" or gpu is None or gpu.capability not in TensorRtRtx().targets:
        pytest.skip(f"{library} has no target by name for {gpu}")
    folder = shutil.copytree(pocket_path, tmp_path / "pocket")
    build(Bundle.open(folder), library, ["fp16"], targets=[gpu.capability], graphs=["text"], shapes=Shapes())
    assert load(folder, library).embed_texts(TEXTS).shape == (4, 160)


def _resident() -> int:
    """Bytes of this process in memory, without swapped pages."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
