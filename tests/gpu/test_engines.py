"""Engines on an NVIDIA GPU: their numbers, their batches, threads and memory.

Every test counts what the engines ran. A model keeps the vectors of recent texts, so texts are embedded past them.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import fgclip_rt
from fgclip_rt import parity
from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import find_engines
from fgclip_rt.engines import Shapes, build
from fgclip_rt.engines.cuda import Cuda, OutOfMemoryError, find_gpu
from fgclip_rt.engines.execution import TensorRtPlan
from fgclip_rt.engines.lane import Lane
from fgclip_rt.engines.libraries import LIBRARIES, TensorRtLibrary, TensorRtRtx
from fgclip_rt.engines.runner import EngineBackend
from fgclip_rt.errors import DeviceError, EngineError
from fgclip_rt.machine import cuda_gpus
from fgclip_rt.model import Model
from fgclip_rt.packages import ENGINE_PACKAGES, missing_packages
from fgclip_rt.probe import Probe
from helpers import SQUARE_NAMES, embed_anew, picture

pytestmark = pytest.mark.skipif(not cuda_gpus(), reason="no NVIDIA GPU that CUDA gives this process")

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


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of runs of each engine, by the name of its folder."""
    counted: Counter[str] = Counter()
    begin = Lane.begin

    def counting(lane: Lane, *arguments: Any) -> Any:
        counted[lane._name] += 1
        return begin(lane, *arguments)

    monkeypatch.setattr(Lane, "begin", counting)
    return counted


@pytest.fixture(scope="module")
def built(library: str, pocket_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket bundle with engines for this GPU in three precisions."""
    folder = shutil.copytree(pocket_path, tmp_path_factory.mktemp(library) / "pocket")
    build_here(folder, library)
    return folder


def build_here(folder: Path, library: str) -> None:
    """Build engines for this GPU in three precisions, unless the library has nothing for it."""
    try:
        build(Bundle.open(folder), library, PRECISIONS, targets=["current"], jobs=os.cpu_count() or 1)
    except EngineError as error:
        # TensorRT-RTX lists no Hopper GPU; the report shows the library's own reason.
        pytest.skip(f"{library} builds nothing for {find_gpu()}: {error}")


def load(folder: Path, library: str, precision: str = "fp16") -> Model:
    return fgclip_rt.load(folder, precision=precision, backend=library)


def check_limits(folder: Path, library: str, precision: str, runs: Counter[str]) -> None:
    """Check that every comparison of the probe keeps its limits, and that every engine of the precision ran."""
    model = load(folder, library, precision)
    probe = Probe.load(folder / model.manifest.parity.probe)
    runs.clear()
    rows = parity.check(model, probe, model.manifest.parity.limits[precision])
    assert len(rows) == len(model.manifest.parity.measured["fp32"])
    assert [row for row in rows if not row.passed] == []
    assert isinstance(model.backend, EngineBackend)
    assert set(runs) == {candidate.engine.path.name for candidate in model.backend._candidates}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_engine_keeps_the_limits(built: Path, library: str, precision: str, runs: Counter[str]) -> None:
    check_limits(built, library, precision, runs)


@pytest.mark.parametrize("name", SQUARE_NAMES)
def test_engines_of_the_other_families_keep_the_limits(
    name: str, library: str, square_path: Callable[[str], Path], tmp_path: Path, runs: Counter[str]
) -> None:
    folder = shutil.copytree(square_path(name), tmp_path / name)
    build_here(folder, library)
    for precision in PRECISIONS:
        check_limits(folder, library, precision, runs)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_does_not_depend_on_its_batch(built: Path, library: str, precision: str, runs: Counter[str]) -> None:
    """Kernels differ with the batch's size, so sums are rounded in another order, but nothing else changes."""
    model = load(built, library, precision)
    alone = np.concatenate([model.embed_images([image]) for image in IMAGES])
    tolerance = {"fp32": 1e-4, "fp16": 5e-3, "int8": 5e-2}[precision]
    for batch_size in (2, 5, 32):
        np.testing.assert_allclose(model.embed_images(IMAGES * 3, batch_size=batch_size)[:5], alone, atol=tolerance)
    runs.clear()
    texts = np.concatenate([embed_anew(model, [text]) for text in TEXTS])
    np.testing.assert_allclose(embed_anew(model, TEXTS * 5), np.tile(texts, (5, 1)), atol=tolerance)
    assert runs.total() == len(TEXTS) + 1


def test_weights_that_were_left_out_come_from_the_bundle(
    built: Path, library: str, tmp_path: Path, runs: Counter[str]
) -> None:
    folder = shutil.copytree(built, tmp_path / "stripped", ignore=shutil.ignore_patterns("engines"))
    build(Bundle.open(folder), library, ["fp16", "int8"], targets=["current"], strip_weights=True)
    whole = {engine.key.digest: engine for engine in find_engines(Bundle.open(built))}
    stripped = [engine for engine in find_engines(Bundle.open(folder)) if engine.key.stripped]
    assert {engine.key.graph for engine in stripped} == {"vision", "dense", "text"}
    for engine in stripped:
        same = whole[msgspec.structs.replace(engine.key, stripped=False).digest]
        assert engine.record.files["engine.plan"].size < same.record.files["engine.plan"].size, engine.path.name
    for precision in ("fp16", "int8"):
        check_limits(folder, library, precision, runs)


def test_threads_share_a_model(built: Path, library: str, runs: Counter[str]) -> None:
    model = load(built, library)
    images, texts = model.embed_images(IMAGES), embed_anew(model, TEXTS)
    runs.clear()

    def work(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(IMAGES))
        found = model.embed_images([IMAGES[i] for i in order], batch_size=1 + number % 4)
        np.testing.assert_allclose(found, images[order], atol=5e-3)
        np.testing.assert_allclose(embed_anew(model, TEXTS[number % 4 :]), texts[number % 4 :], atol=5e-3)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(200)))
    assert sum(count for name, count in runs.items() if name.startswith("text")) == 200
    assert sum(count for name, count in runs.items() if name.startswith("vision")) >= 2 * 200


def test_memory_stays_flat_over_ten_thousand_requests(built: Path, library: str, runs: Counter[str]) -> None:
    model, cuda = load(built, library), Cuda()
    rows = (1, 2, 3, 4, 5, 6, 7, 8)

    def request(number: int) -> None:
        if number % 10:
            embed_anew(model, TEXTS[:1] * rows[number % 8])
        else:
            model.embed_images(IMAGES[number // 10 % 2 : 2], batch_size=2)

    # Each shape is set up, run and captured in each of two slots.
    for number in range(8 * 10 * 3):
        request(number)
    before, resident = cuda.free_memory(), _resident()
    runs.clear()
    for number in range(10_000):
        request(number)
    assert runs.total() >= 10_000
    assert before - cuda.free_memory() < 8 << 20
    assert _resident() - resident < 64 << 20


def test_engines_and_onnxruntime_agree(built: Path, library: str, runs: Counter[str]) -> None:
    model = load(built, library, "fp32")
    on_cpu = fgclip_rt.load(built, device="cpu")
    np.testing.assert_allclose(model.embed_images(IMAGES), on_cpu.embed_images(IMAGES), atol=1e-4)
    boxes = [[5, 5, 60, 80], [0, 0, 99, 99]] * 200
    np.testing.assert_allclose(model.embed_regions(IMAGES[0], boxes), on_cpu.embed_regions(IMAGES[0], boxes), atol=1e-4)
    np.testing.assert_allclose(embed_anew(model, TEXTS), embed_anew(on_cpu, TEXTS), atol=1e-4)
    assert {name.split("-")[0] for name in runs} == {"vision", "dense", "region", "text"}


def test_a_small_batch_takes_little_memory_and_can_be_captured(built: Path, library: str) -> None:
    """Without the builder's flags each shape takes the profile's maximum, and RTX captures nothing, silently."""
    made = LIBRARIES[library]()
    assert isinstance(made, TensorRtLibrary)
    cuda = Cuda()
    (engine,) = (
        engine
        for engine in find_engines(Bundle.open(built))
        if engine.path.name.startswith("vision-fp16-1024-") and engine.key.library.name == library
    )
    with cuda.current():
        stream, plan = cuda.stream(), TensorRtPlan(made, engine, "test")
        memory = []
        for batch in (1, 8, 32):
            shapes = {name: (batch, *profile.max[1:]) for name, profile in engine.key.profiles.items()}
            execution: Any = plan.execution(shapes, stream)
            memory.append(execution.memory)
            if hasattr(execution._context, "is_stream_capturable"):
                assert execution._context.is_stream_capturable(int(stream))
    assert memory[0] < memory[1] < memory[2]
    assert memory[0] < memory[2] / 8


def test_kernels_compiled_at_work_are_kept(built: Path, library: str) -> None:
    if library != "tensorrt-rtx":
        pytest.skip(f"{library} compiles none at work")
    model = load(built, library)
    embed_anew(model, TEXTS)
    del model
    files = list((built / "engines").glob("text-fp16-*/runtime-*.cache"))
    assert files
    assert all(file.stat().st_size > 1000 for file in files)


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


def test_a_target_by_name_runs_where_it_says(
    library: str, pocket_path: Path, tmp_path: Path, runs: Counter[str]
) -> None:
    gpu = find_gpu()
    if library != "tensorrt-rtx" or gpu is None or gpu.capability not in TensorRtRtx().targets:
        pytest.skip(f"{library} has no target by name for {gpu}")
    folder = shutil.copytree(pocket_path, tmp_path / "pocket")
    build(Bundle.open(folder), library, ["fp16"], targets=[gpu.capability], graphs=["text"], shapes=Shapes())
    expected = embed_anew(fgclip_rt.load(folder, device="cpu"), TEXTS)
    found = embed_anew(load(folder, library), TEXTS)
    assert (found * expected).sum(1).min() > 0.999
    assert runs.total() == 1


def _resident() -> int:
    """Bytes of this process in memory, without swapped pages."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
