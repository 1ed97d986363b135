"""Real builds by TensorRT-RTX, ahead of time and without a GPU, and the ways in which a build can fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

import fgclip_rt
from fgclip_rt.bundle import Bundle
from fgclip_rt.engine_files import Gpu, Profile, find_engines
from fgclip_rt.engines import Shapes, build
from fgclip_rt.engines.builder import TensorRtBuilder, TimingCache
from fgclip_rt.engines.cuda import find_gpu
from fgclip_rt.engines.ep_context import EpContextBuilder, check_compiled, provider_options
from fgclip_rt.engines.execution import TensorRtPlan
from fgclip_rt.engines.libraries import TensorRt, TensorRtRtx
from fgclip_rt.engines.logger import ran_out_of_memory, reason
from fgclip_rt.engines.network import parser_input
from fgclip_rt.engines.profiles import plan
from fgclip_rt.engines.progress import Progress
from fgclip_rt.engines.task import Done, Task
from fgclip_rt.errors import ArgumentError, EngineError, MissingDependencyError, OutputError
from fgclip_rt.export import PRECISIONS, find_model
from fgclip_rt.export.bundle.weights import WeightFiles
from fgclip_rt.export.families.fgclip2 import model as fgclip2
from fgclip_rt.export.graphs.trace import GraphSource, trace
from fgclip_rt.export.precision.layers import find_layers
from fgclip_rt.export.precision.lower import lower
from fgclip_rt.manifest import Manifest
from helpers import Json, assert_one_sentence, contents, run_command, run_program

RTX = "tensorrt-rtx"
#: The engine that is built fastest.
ONE = ("--backend", RTX, "--precision", "int8", "--graph", "region", "--buckets", "128")
BUCKETS = (128, 256, 576, 784, 1024)


@pytest.fixture(scope="module")
def built(pocket_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json]:
    """A copy of the pocket bundle with all its engines, built by the real command, and the command's answer."""
    bundle = tmp_path_factory.mktemp("engines") / "pocket"
    shutil.copytree(pocket_path, bundle)
    options = ["--precision", "fp16", "--precision", "int8", "--target", "sm86,sm89,sm120", "--jobs", "2"]
    result = run_program("build", bundle, "--backend", RTX, *options, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return bundle, json.loads(result.stdout)


@pytest.fixture
def bundle(pocket_path: Path, tmp_path: Path) -> Path:
    """A copy of the pocket bundle without engines."""
    return shutil.copytree(pocket_path, tmp_path / "pocket", copy_function=os.link)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces builds by ones that take no time and write fake plans."""

    def build_all(
        _: str, tasks: Sequence[Task], __: int, finished: Callable[[Task, Done], None], ___: Callable[[], None]
    ) -> None:
        for task in tasks:
            Path(task.plan).write_bytes(str(task).encode())
            finished(task, Done(7, 0.5))

    monkeypatch.setattr("fgclip_rt.engines.pipeline.build_all", build_all)


def test_every_graph_bucket_and_precision_gets_an_engine(built: tuple[Path, Json]) -> None:
    path, report = built
    bundle = Bundle.open(path)
    engines = find_engines(bundle)
    sizes = {
        (engine.key.graph, engine.key.precision, next(iter(engine.key.profiles.values())).opt[1]) for engine in engines
    }
    expected = {
        (graph, precision, bucket)
        for graph in ("vision", "dense")
        for precision in ("fp16", "int8")
        for bucket in BUCKETS
    }
    expected |= {("text", precision, length) for precision in ("fp16", "int8") for length in (64, 196)}
    # The region graph has no weights and is one file in every precision, so it is built once.
    expected |= {("region", "fp32", bucket) for bucket in BUCKETS}
    assert sizes == expected
    assert len(engines) == len(report["engines"]) == len(expected) == 29
    for engine in engines:
        engine.check()
        assert engine.key.targets == ("sm86", "sm89", "sm120")
        assert (engine.record.layers or 0) > 100
        assert engine.record.seconds > 0
        assert all(bundle.manifest.files[name].sha256 == digest for name, digest in engine.key.files.items())
    assert not any(entry["cached"] for entry in report["engines"])
    assert report["size"] == sum(engine.size for engine in engines)
    # Beside so few weights the kernels decide a plan's size, so the files tell the precisions apart.
    by_precision = {engine.key.precision: engine.key.files for engine in engines if engine.key.graph == "vision"}
    assert "weights.int8.safetensors" in by_precision["int8"]
    assert "weights.int8.safetensors" not in by_precision["fp16"]


def test_a_bundle_with_engines_is_still_a_bundle(built: tuple[Path, Json]) -> None:
    path, _ = built
    inspected = json.loads(run_command("inspect", path, "--json").stdout)
    assert len(inspected["engines"]) == 29
    name, engine = next(iter(inspected["engines"].items()))
    assert name.endswith(engine["sha256"][:12])
    text = run_command("inspect", path).stdout
    assert "[1/8/32, 256, 768]" in text
    assert "sm86, sm89, sm120" in text
    assert fgclip_rt.load(path, device="cpu").embed_texts(["a cat"]).shape == (1, 160)


def test_what_is_there_is_not_built_again(built: tuple[Path, Json]) -> None:
    path, report = built
    bundle = Bundle.open(path)
    before = {engine.path.name: engine.record for engine in find_engines(bundle)}
    targets = ("sm86", "sm89", "sm120")
    entries = build(bundle, RTX, ["fp16", "int8"], targets=targets, begin=_must_not_begin)
    assert [entry.cached for entry in entries] == [True] * 29
    assert [str(entry.engine.path) for entry in entries] == [entry["path"] for entry in report["engines"]]
    assert {engine.path.name: engine.record for engine in find_engines(bundle)} == before


def _must_not_begin(name: str, steps: int) -> Callable[[], None]:
    raise AssertionError(f"{name} in {steps} steps")


@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_one_target_alone(bundle: Path, target: str) -> None:
    options = ["--backend", RTX, "--precision", "int8", "--graph", "text", "--text-lengths", "64"]
    result = json.loads(run_command("build", bundle, *options, "--target", target, "--json").stdout)
    (engine,) = result["engines"]
    assert engine["key"]["targets"] == [target]
    assert engine["key"]["gpu"] is None


@pytest.mark.usefixtures("made_up")
def test_another_target_batch_or_bundle_is_another_engine(bundle: Path) -> None:
    names = set()
    for options in (["--target", "sm86"], ["--target", "sm89"], ["--target", "sm89", "--batch", "1,2,4"]):
        result = json.loads(run_command("build", bundle, *ONE, *options, "--json").stdout)
        (engine,) = result["engines"]
        assert not engine["cached"]
        names.add(engine["path"])
    assert len(names) == 3


@pytest.mark.usefixtures("made_up")
def test_a_damaged_engine_is_refused_and_built_again(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    command = ("build", bundle, *ONE, "--target", "sm89", "--json")
    path = Path(json.loads(run_command(*command).stdout)["engines"][0]["path"])
    plan_file = path / "engine.plan"
    whole = plan_file.read_bytes()
    plan_file.write_bytes(whole[:100] + b"?" + whole[101:])
    (engine,) = find_engines(opened)
    with pytest.raises(EngineError) as info:
        TensorRtPlan(TensorRtRtx(), engine, "gpu")
    assert_one_sentence(info.value, "engine.plan", "is not the file that was built", "fgclip-rt build")
    for damage in (
        lambda: None,
        lambda: plan_file.write_bytes(whole[:100]),
        plan_file.unlink,
        lambda: (path / "engine.json").write_text("{}"),
        (path / "engine.json").unlink,
    ):
        damage()
        (entry,) = json.loads(run_command(*command).stdout)["engines"]
        assert not entry["cached"]
        (engine,) = find_engines(opened)
        engine.check()


@pytest.mark.usefixtures("made_up")
def test_of_two_builds_of_the_same_the_first_stays(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("build", bundle, *ONE, "--target", "sm89", "--json")
    (first,) = json.loads(run_command(*command).stdout)["engines"]
    monkeypatch.setattr("fgclip_rt.engines.pipeline.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr("fgclip_rt.engines.pipeline._Folder.find", lambda *_: None)
    (second,) = json.loads(run_command(*command).stdout)["engines"]
    assert second == first


@pytest.mark.usefixtures("made_up")
def test_asking_for_it_builds_again(bundle: Path) -> None:
    command = ("build", bundle, *ONE, "--target", "sm89", "--json")
    first, second, third = (
        json.loads(run_command(*command, *extra).stdout)["engines"][0]["cached"] for extra in ([], [], ["--rebuild"])
    )
    assert (first, second, third) == (False, True, False)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--target", "sm75"], ["refused", "sm75", "FP32 GEMM", "no engine was built"]),
        (["--target", "sm90"], ["'sm90'", RTX, "sm86", "sm121 or current"]),
        (["--target", "current"], ["NVIDIA GPU", "by name"]),
        (["--target", "current,sm89"], ["stands alone"]),
        (["--backend", "tensorflow"], ["'tensorflow'", "tensorrt, tensorrt-rtx"]),
        (["--backend", "onnxruntime-tensorrt"], ["TensorRT provider", "pip"]),
        (["--precision", "bf16"], ["'bf16'", "fp32, fp16, int8"]),
        (["--graph", "audio"], ["'audio'", "vision, dense, text, region"]),
        (["--buckets", "300"], ["300", "128, 256, 576, 784, 1024", "1025 to 16384"]),
        (["--buckets", "16385"], ["16385", "16384"]),
        (["--buckets", "many"], ["--buckets", "'many'", "whole numbers"]),
        (["--text-lengths", "100"], ["100", "64, 196"]),
        (["--batch", "8"], ["--batch", "'8'"]),
        (["--batch", "8,1,32"], ["--batch", "8, 1, 32", "ascending"]),
        (["--batch", "0,1,2"], ["--batch", "from 1"]),
        (["--boxes", "1,2,100000"], ["--boxes", "65536"]),
        (["--jobs", "0"], ["jobs", "0"]),
        (["--strip-weights"], [RTX, "--target current"]),
        (["--strip-weights", "--target", "sm89"], [RTX, "--target current"]),
        (["--strip-weights", "--target", "current"], ["NVIDIA GPU"]),
    ],
)
def test_bad_input_is_told_in_one_sentence(bundle: Path, arguments: Sequence[str], parts: Sequence[str]) -> None:
    before = contents(bundle)
    options = list(ONE)
    if arguments[0] in options:
        del options[options.index(arguments[0]) : options.index(arguments[0]) + 2]
    error = run_command("build", bundle, *options, *arguments, status=1).stderr.strip()
    assert_one_sentence(error, *parts)
    assert contents(bundle) == before


def test_a_missing_library_names_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_sentence(
        run_command("build", bundle, "--backend", "tensorrt", status=1).stderr.strip(), "fgclip-rt[tensorrt]"
    )
    for module in ("tensorrt_rtx", "cuda"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("fgclip_rt.packages._installed", lambda package: package != "tensorrt_rtx")
    assert_one_sentence(
        run_command("build", bundle, "--backend", RTX, status=1).stderr.strip(),
        "tensorrt_rtx",
        "fgclip-rt[tensorrt-rtx]",
    )
    with pytest.raises(MissingDependencyError) as info:
        TensorRtRtx()
    assert_one_sentence(info.value, "fgclip-rt[tensorrt-rtx]")


def test_a_path_that_the_libraries_cannot_read(pocket_path: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pocket_path, tmp_path / os.fsdecode(b"p\xff"), copy_function=os.link)
    assert_one_sentence(run_command("build", folder, *ONE, status=1).stderr.strip(), "not UTF-8", "rename")


def test_no_bundle(tmp_path: Path) -> None:
    error = run_command("build", tmp_path, "--backend", RTX, status=1).stderr
    assert "manifest.json" in error


def wait_for(happens: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not happens():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def children_of(process: subprocess.Popen[str]) -> set[int]:
    """The processes that any thread of ``process`` has started."""
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    return {int(child) for path in lists for child in path.read_text().split()}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_keeps_what_is_finished_and_nothing_else(
    bundle: Path, number: signal.Signals, status: int
) -> None:
    program = Path(sys.executable).with_name("fgclip-rt")
    command = [program, "build", bundle, "--backend", RTX, "--precision", "fp16", "--graph", "dense", "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    engines = bundle / "engines"
    wait_for(lambda: engines.is_dir() and list(engines.glob("dense-*")), process)
    children = {
        child for path in Path(f"/proc/{process.pid}/task").glob("*/children") for child in path.read_text().split()
    }
    assert len(children) == 2
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == status, error
    finished = find_engines(Bundle.open(bundle))
    assert 1 <= len(finished) < 5
    for engine in finished:
        engine.check()
    assert sorted(path.name for path in engines.iterdir()) == [engine.path.name for engine in finished]
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    if number == signal.SIGINT:
        assert_one_sentence(error.strip(), "interrupted", f"{len(finished)} engine", "kept")


def test_a_process_that_is_killed_is_told_of(bundle: Path) -> None:
    program = Path(sys.executable).with_name("fgclip-rt")
    command = [program, "build", bundle, *ONE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: children_of(process), process)
    os.kill(children_of(process).pop(), signal.SIGKILL)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert_one_sentence(error.strip(), "was killed", "memory", "--jobs", "no engine was built")
    assert not (bundle / "engines").exists()


def test_a_full_disk_leaves_nothing(bundle: Path) -> None:
    """A limit of 100 KiB a file stands in for a full disk: the plan has half a megabyte."""
    program = Path(sys.executable).with_name("fgclip-rt")
    arguments = " ".join([str(program), "build", str(bundle), *ONE])
    result = subprocess.run(["bash", "-c", f"ulimit -f 100; {arguments}"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert_one_sentence(result.stderr.strip(), "cannot be written", "File too large", "no engine was built")
    assert not (bundle / "engines").exists()


def test_a_folder_that_cannot_be_written(bundle: Path) -> None:
    (bundle / "engines").write_text("a file")
    before = contents(bundle)
    with pytest.raises(OutputError) as info:
        build(Bundle.open(bundle), RTX, ["int8"], graphs=["text"])
    assert_one_sentence(info.value, "engines", "cannot be written", "no engine was built")
    assert contents(bundle) == before


@pytest.mark.usefixtures("made_up")
def test_a_bundle_replaced_while_it_builds_is_noticed(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    manifest = bundle / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()  # a hard link to the fixture's file
    manifest.write_text(text + "\n")
    with pytest.raises(fgclip_rt.FgclipError) as info:
        build(opened, RTX, ["int8"], graphs=["region"], shapes=Shapes(buckets=[128]))
    assert_one_sentence(info.value, "was replaced")
    assert not (bundle / "engines").exists()


def test_a_graph_that_is_none(bundle: Path) -> None:
    """The file is replaced after the bundle was opened and its digests were checked."""
    opened = Bundle.open(bundle)
    (bundle / "text.int8.onnx").unlink()
    (bundle / "text.int8.onnx").write_bytes(b"\x00\x01\x02" * 50)
    with pytest.raises(EngineError) as info:
        build(opened, RTX, ["int8"], graphs=["text"])
    assert_one_sentence(info.value, "text.int8.onnx", "no ONNX graph", "export the bundle again")


def test_a_crash_of_the_library_is_told_of(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module of the library's name that ends the process stands in for a crash in native code."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/tensorrt_rtx.py").write_text(
        "import os, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    with pytest.raises(EngineError) as info:
        build(Bundle.open(bundle), RTX, ["int8"], graphs=["text"], targets=["sm89"])
    assert_one_sentence(info.value, "ended with status 9", "out of luck", "no engine was built")


@pytest.mark.parametrize(
    ("errors", "why", "memory"),
    [
        (["IBuilder::buildSerializedNetwork: Error Code 1: Myelin (no. In f at /_src/a.cpp:1)"], "Myelin (no", False),
        (
            ["Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "later"],
            "OutOfMemory (Requested size was 9 bytes.)",
            True,
        ),
        (["the kernel takes too much shared memory"], "the kernel takes too much shared memory", False),
        (["Requested amount of GPU memory (9 bytes) could not be allocated."], None, True),
        ([], "it gave no reason", False),
    ],
)
def test_the_librarys_reason_becomes_part_of_a_sentence(errors: list[str], why: str | None, memory: bool) -> None:
    found = reason(errors)
    assert why in (None, found)
    assert not found.endswith(".")
    assert ran_out_of_memory(found) == memory


def test_progress_goes_up_to_the_whole() -> None:
    """Phases are as TensorRT-RTX reports them: nested, with steps counted from zero, and some begun twice."""
    reported: list[int] = []
    progress = Progress(reported.append)
    progress.start("build", None, 4)
    progress.start("clone", "build", 2)
    progress.step("clone", 0)
    progress.step("clone", 1)
    progress.finish("clone")
    progress.step("build", 0)
    assert reported == [12, 25]
    progress.start("time", "build", 10)
    progress.step("time", 4)
    progress.start("time", "build", 10)
    progress.step("time", 1)
    progress.step("unheard of", 3)
    progress.start("orphan", "gone", 1)
    progress.step("orphan", 0)
    assert reported == [12, 25, 37]
    for step in (1, 2, 3):
        progress.step("build", step)
    assert reported[-1] == 100
    assert reported == sorted(reported)


def test_the_progress_of_a_real_build_counts_to_a_hundred_for_each_engine(bundle: Path) -> None:
    counted: dict[str, int] = {}

    def begin(name: str, steps: int) -> Callable[[], None]:
        assert steps == 200
        counted[name] = 0

        def advance() -> None:
            counted[name] += 1

        return advance

    shapes = Shapes(buckets=[128, 256])
    build(Bundle.open(bundle), RTX, ["int8"], graphs=["region"], shapes=shapes, targets=["sm89"], begin=begin)
    assert counted == {"build 2 engines": 200}


class Timings:
    """A timing cache that is a set of words; the word ``other`` makes it one of another GPU."""

    def __init__(self, data: bytes) -> None:
        self.words = set(data.split())

    @property
    def fits(self) -> bool:
        return b"other" not in self.words

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if other.fits:
            self.words |= other.words
        return other.fits

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.words))


class Config:
    """The part of a builder's configuration that the timing cache needs."""

    def create_timing_cache(self, data: bytes) -> Timings:
        return Timings(data)

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.fits:
            self.cache = cache
        return cache.fits


def test_timings_are_kept_with_those_of_others(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    configs = [Config(), Config()]
    caches = [TimingCache(config, str(path)) for config in configs]
    for config, cache, word in zip(configs, caches, ("one", "two"), strict=True):
        config.cache.words.add(word.encode())
        cache.save()
    assert path.read_bytes() == b"one two"
    assert list(tmp_path.iterdir()) == [path]
    third = Config()
    TimingCache(third, str(path))
    assert third.cache.words == {b"one", b"two"}
    TimingCache(Config(), None).save()


def test_timings_of_another_gpu_are_neither_used_nor_kept(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"other old")
    config = Config()
    cache = TimingCache(config, str(path))
    assert config.cache.words == set()
    config.cache.words.add(b"new")
    cache.save()
    assert path.read_bytes() == b"new"


def test_a_file_of_timings_names_its_gpu() -> None:
    library = object.__new__(TensorRt)
    library.version = "11.4.0"
    assert library.timing_cache(Gpu("NVIDIA GeForce RTX 4090 (Laptop)", "sm89")) == (
        "timing-11.4.0-nvidia-geforce-rtx-4090-laptop.cache"
    )
    assert TensorRtRtx().timing_cache(Gpu("GPU", "sm89")) is None


def test_the_parser_gets_fixed_sizes_and_standard_operators(pocket_path: Path) -> None:
    model = ir.serde.deserialize_model(_proto(parser_input(pocket_path / "dense.fp16.onnx", {"patches": 576})))
    patches = next(value for value in model.graph.inputs if value.name == "patches")
    assert patches.shape is not None
    assert patches.shape[1] == 576
    assert isinstance(patches.shape[0], ir.SymbolicDim)
    assert {node.domain for node in model.graph} == {""}
    assert not model.functions


def _proto(data: bytes) -> object:
    return onnx.load_model_from_string(data)


def test_a_profile_of_every_input(pocket_path: Path) -> None:
    manifest = Bundle.open(pocket_path, check_hashes=False).manifest
    (spec,) = plan(manifest, ["fp16"], ["region"], Shapes(buckets=[256], batch=(1, 2, 3), boxes=(4, 5, 6)))
    assert (spec.graph, spec.precision, spec.file, dict(spec.fixed)) == (
        "region",
        "fp32",
        "region.onnx",
        {"patches": 256},
    )
    shapes = {name: (profile.min, profile.opt, profile.max) for name, profile in spec.profiles.items()}
    assert shapes == {
        "dense_features": ((1, 256, 160), (2, 256, 160), (3, 256, 160)),
        "spatial_shapes": ((1, 2), (2, 2), (3, 2)),
        "boxes": ((4, 4), (5, 4), (6, 4)),
        "box_images": ((4,), (5,), (6,)),
    }
    assert spec.parts == [spec.profiles]
    assert len(plan(manifest, ["fp16", "int8", "fp32"], ["region"])) == 5
    assert len(plan(manifest, ["fp16", "fp16"], ["text", "text"])) == 2
    assert [spec.fixed["patches"] for spec in plan(manifest, ["fp16"], ["dense"], Shapes(buckets=[4096, 128]))] == [
        128,
        4096,
    ]


@pytest.mark.parametrize(
    ("batch", "parts"),
    [
        ((1, 8, 32), [(1, 1, 1), (2, 8, 8), (9, 32, 32)]),
        ((1, 1, 4), [(1, 1, 1), (2, 4, 4)]),
        ((1, 1, 1), [(1, 1, 1)]),
        ((4, 8, 8), [(4, 8, 8)]),
        ((8, 8, 16), [(8, 8, 8), (9, 16, 16)]),
        ((2, 2, 2), [(2, 2, 2)]),
    ],
)
def test_the_parts_of_a_profile_cover_every_batch(
    pocket_path: Path, batch: tuple[int, int, int], parts: list[tuple[int, int, int]]
) -> None:
    """TensorRT chooses the kernels of each for its usual batch. TensorRT-RTX chooses them when an engine runs."""
    manifest = Bundle.open(pocket_path, check_hashes=False).manifest
    (spec,) = plan(manifest, ["fp16"], ["text"], Shapes(text_lengths=[64], batch=batch))
    ids = [part["input_ids"] for part in spec.parts]
    assert [(profile.min[0], profile.opt[0], profile.max[0]) for profile in ids] == parts
    assert {profile.max[1] for profile in ids} == {64}
    covered = [size for profile in ids for size in range(profile.min[0], profile.max[0] + 1)]
    assert covered == list(range(batch[0], batch[2] + 1))
    assert object.__new__(TensorRt).profiles(spec) == spec.parts
    assert TensorRtRtx().profiles(spec) == [spec.profiles]


def test_an_engine_with_several_profiles_is_built(pocket_path: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(pocket_path, check_hashes=False).manifest
    (spec,) = plan(manifest, ["int8"], ["text"], Shapes(text_lengths=[64]))
    assert len(spec.parts) == 3
    for name, profiles in (("one", [spec.profiles]), ("three", spec.parts)):
        task = task_for(pocket_path, tmp_path, profiles=profiles, plan=str(tmp_path / name))
        TensorRtBuilder(TensorRtRtx()).build(task, lambda _: None)
    sizes = {name: (tmp_path / name).stat().st_size for name in ("one", "three")}
    # Kernels come thrice, and the megabyte of weights once.
    assert sizes["one"] < sizes["three"] < 3 * sizes["one"] - 1_000_000


def test_fp8_is_built_for_the_default_targets(pocket_path: Path, tmp_path: Path) -> None:
    """They are those that have 8-bit floats: with sm80 or sm86 among the targets the library refuses."""
    model = trace(_pocket_text())
    layers = find_layers(model)
    kind = PRECISIONS["fp8"]
    lowered = lower(model, {layer.name: kind.type_of(layer) for layer in layers}, {layer.name: 8.0 for layer in layers})
    WeightFiles(tmp_path).write({"text.onnx": lowered}, "weights.safetensors")
    library = TensorRtRtx()
    changes = {"graph": str(tmp_path / "text.onnx"), "targets": library.default_targets("fp8")}
    TensorRtBuilder(library).build(task_for(pocket_path, tmp_path, **changes), lambda _: None)
    changes["targets"] = library.default_targets("fp16")
    with pytest.raises(EngineError, match="fp8"):
        TensorRtBuilder(library).build(task_for(pocket_path, tmp_path, **changes), lambda _: None)


def _pocket_text() -> GraphSource:
    spec = find_model("fg-clip2-pocket")
    assert spec is not None
    return fgclip2.random(spec.config, 0).graphs()["text"]


@pytest.mark.usefixtures("made_up")
def test_each_precision_is_built_for_the_gpus_that_have_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def targets(_: TensorRtRtx, precision: str) -> tuple[str, ...]:
        return ("sm120",) if precision == "int8" else ("sm89", "sm120")

    monkeypatch.setattr(TensorRtRtx, "default_targets", targets)
    options = [
        "--backend",
        RTX,
        "--precision",
        "fp16",
        "--precision",
        "int8",
        "--graph",
        "text",
        "--text-lengths",
        "64",
    ]
    built = json.loads(run_command("build", bundle, *options, "--json").stdout)["engines"]
    assert [engine["key"]["targets"] for engine in built] == [["sm89", "sm120"], ["sm120"]]
    assert "sm89, sm120" in run_command("build", bundle, *options).stdout.splitlines()[-1]
    built = json.loads(run_command("build", bundle, *options, "--target", "sm86", "--json").stdout)["engines"]
    assert {tuple(engine["key"]["targets"]) for engine in built} == {("sm86",)}


def test_an_axis_that_engines_do_not_know(pocket_path: Path) -> None:
    document = json.loads(Bundle.open(pocket_path, check_hashes=False).manifest.to_json())
    document["graphs"]["vision"]["fp16"]["inputs"][0]["shape"][0] = "frames"
    with pytest.raises(ArgumentError) as info:
        plan(msgspec.convert(document, Manifest), ["fp16"], ["vision"])
    assert_one_sentence(info.value, "vision", "'frames'")


def test_options_of_the_tensorrt_provider(pocket_path: Path) -> None:
    manifest = Bundle.open(pocket_path, check_hashes=False).manifest
    spec = plan(manifest, ["fp16"], ["text"], Shapes(text_lengths=[64], batch=(1, 8, 32)))[0]
    assert provider_options(spec.profiles) == {
        "trt_profile_min_shapes": "input_ids:1x64,walk_type:1",
        "trt_profile_opt_shapes": "input_ids:8x64,walk_type:8",
        "trt_profile_max_shapes": "input_ids:32x64,walk_type:32",
    }


def task_for(bundle: Path, folder: Path, **changes: object) -> Task:
    manifest = Bundle.open(bundle, check_hashes=False).manifest
    spec = plan(manifest, ["int8"], ["text"], Shapes(text_lengths=[64]))[0]
    values = {
        "graph": str(bundle / spec.file),
        "fixed": spec.fixed,
        "profiles": [spec.profiles],
        "targets": ["sm89"],
        "strip": False,
        "plan": str(folder / "plan.onnx"),
        "timing_cache": None,
    }
    return Task(**{**values, **changes})  # type: ignore[arg-type]


def test_the_vision_tower_of_the_base_model(tmp_path: Path) -> None:
    """The tower has its real size, 93 million weights with the pooling head. The text tower is as small as may be."""
    spec = find_model("fg-clip2-base")
    assert spec is not None
    text = {**spec.config["text_config"], "num_hidden_layers": 1, "vocab_size": 260}
    model = fgclip2.random({**spec.config, "text_config": text}, 0)
    WeightFiles(tmp_path).write({"vision.onnx": trace(model.graphs()["vision"])}, "weights.safetensors")
    profiles = {
        "patches": Profile((1, 256, 768), (8, 256, 768), (32, 256, 768)),
        "spatial_shapes": Profile((1, 2), (8, 2), (32, 2)),
    }
    targets = ["sm86", "sm89", "sm120"]
    task = Task(
        str(tmp_path / "vision.onnx"), {"patches": 256}, [profiles], targets, False, str(tmp_path / "plan"), None
    )
    reported: list[int] = []
    layers = TensorRtBuilder(TensorRtRtx()).build(task, reported.append)
    weights = (tmp_path / "weights.safetensors").stat().st_size
    assert weights == pytest.approx(4 * 93e6, rel=0.02)
    # A plan for three targets holds the weights once.
    assert weights < (tmp_path / "plan").stat().st_size < 1.05 * weights
    assert layers is not None
    assert layers > 1000
    assert len(reported) > 20
    assert reported == sorted(set(reported))


def test_a_builder_says_what_it_cannot_read(pocket_path: Path, tmp_path: Path) -> None:
    """The graph's weights are not beside it."""
    shutil.copy(pocket_path / "text.int8.onnx", tmp_path)
    task = task_for(pocket_path, tmp_path, graph=str(tmp_path / "text.int8.onnx"))
    with pytest.raises(EngineError) as info:
        TensorRtBuilder(TensorRtRtx()).build(task, lambda _: None)
    assert_one_sentence(info.value, "tensorrt-rtx", "text.int8.onnx", "weights")


def test_weights_cannot_be_left_out_without_a_gpu(pocket_path: Path, tmp_path: Path) -> None:
    """We refuse this early, because the library itself fails only at the end of the build."""
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError) as info:
        TensorRtBuilder(TensorRtRtx()).build(task_for(pocket_path, tmp_path, strip=True), lambda _: None)
    assert_one_sentence(info.value, "tensorrt-rtx", "text.int8.onnx", "CUDA_SUCCESS")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [(["EPContext"], None), (["EPContext", "Gelu"], "Gelu"), (["EPContext", "EPContext"], "no node"), ([], "no node")],
)
def test_a_graph_that_is_compiled_in_part_is_no_engine(nodes: list[str], problem: str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    made = [onnx.helper.make_node(name, [], []) for name in nodes]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(made, "graph", [], [])), path)
    if problem is None:
        check_compiled(path, "text.onnx")
        return
    with pytest.raises(EngineError) as info:
        check_compiled(path, "text.onnx")
    assert_one_sentence(info.value, "text.onnx", "only a part", problem)
    assert not path.exists()


def test_what_the_provider_leaves_to_others_is_refused(pocket_path: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="only a part"):
        EpContextBuilder("CPUExecutionProvider").build(task_for(pocket_path, tmp_path), lambda _: None)


def test_a_provider_that_cannot_start_is_not_called_a_wrong_precision(
    pocket_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeException("Provider configuration is not supported.")

    monkeypatch.setattr(ort, "ModelCompiler", refuse)
    with pytest.raises(EngineError) as info:
        EpContextBuilder("CPUExecutionProvider").build(task_for(pocket_path, tmp_path), lambda _: None)
    assert_one_sentence(info.value, "cannot start its TensorRT provider", "TensorRT 10", "doctor")


def test_the_compile_api_of_onnxruntime(pocket_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU provider stands in: it finds graphs and weights and writes models the same way, but compiles nothing."""
    monkeypatch.setattr("fgclip_rt.engines.ep_context.check_compiled", lambda *_: None)
    assert EpContextBuilder("CPUExecutionProvider").build(task_for(pocket_path, tmp_path), lambda _: None) is None
    compiled = ir.load(tmp_path / "plan.onnx")
    assert [value.name for value in compiled.graph.inputs] == ["input_ids", "walk_type"]
    with pytest.raises(EngineError) as info:
        EpContextBuilder("CPUExecutionProvider").build(task_for(pocket_path, tmp_path / "nowhere"), lambda _: None)
    assert_one_sentence(info.value, "onnxruntime", "text.int8.onnx")


def test_builds_say_nothing_on_standard_output_but_their_result(bundle: Path) -> None:
    """The library writes to standard output when it refuses."""
    result = run_program("build", bundle, *ONE, "--target", "sm75", "--json")
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert (error["code"], f"fgclip-rt: {error['message']}") == ("engine_failed", result.stderr.strip())
    assert_one_sentence(error["message"], "sm75")


def test_the_bundle_of_the_package_is_not_written_to() -> None:
    with pytest.raises(ArgumentError, match="copy it with 'cp -r"):
        build(Bundle.open(Path("fg-clip2-pocket")), RTX, ["fp16"])
