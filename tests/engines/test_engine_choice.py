"""Choice of engines: which of them fit, why others do not, and which backend runs a bundle."""

from __future__ import annotations

import ctypes
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime as ort
import pytest
from fake_gpu import GPU, LIBRARY, FakeCuda, make_engine

import fgclip_rt
from fgclip_rt import choice
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.bundle import Bundle, file_info
from fgclip_rt.choice import fit_engines, rebuild_command
from fgclip_rt.engine_files import (
    AMPERE_PLUS,
    RECIPE,
    RECORD,
    EngineKey,
    EngineRecord,
    Gpu,
    Library,
    find_engines,
    folder_name,
    misfit,
)
from fgclip_rt.engines.cuda import Cuda, find_gpu
from fgclip_rt.engines.libraries import (
    CURRENT,
    LIBRARIES,
    OnnxRuntimeTensorRt,
    TensorRt,
    TensorRtRtx,
    needs_gpu,
    this_gpu,
)
from fgclip_rt.engines.pipeline import _Target
from fgclip_rt.engines.profiles import Shapes, plan
from fgclip_rt.engines.runner import EngineBackend
from fgclip_rt.errors import ArgumentError, DeviceError, EngineError, MissingDependencyError
from fgclip_rt.machine import nvidia_gpus
from fgclip_rt.model import Model
from helpers import Json, assert_one_sentence, edit_manifest, run_command

INSTALLED = {LIBRARY.name: LIBRARY.version}


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle_path, tmp_path / "bundle"))


def key_of(bundle: Bundle, graph: str = "text", **changes: Any) -> EngineKey:
    spec = plan(bundle.manifest, ["fp32"], [graph], Shapes(buckets=[128], text_lengths=[64]))[0]
    key: EngineKey = msgspec.structs.replace(make_engine(bundle, spec).key, **changes)
    return key


def write_engine(bundle: Bundle, key: EngineKey, change: Callable[[Json], None] = lambda _: None) -> Path:
    """Writes an engine's folder with a fake plan."""
    folder = bundle.path / "engines" / folder_name(key)
    folder.mkdir(parents=True)
    (folder / "engine.plan").write_bytes(b"plan")
    files = {"engine.plan": file_info(folder / "engine.plan")}
    record = EngineRecord("fgclip-rt-engine", 1, key, key.digest, "engine.plan", files, 1.0, 7)
    document = msgspec.to_builtins(record)
    change(document)
    (folder / RECORD).write_bytes(msgspec.json.encode(document))
    return folder


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the simulated GPU and the library that its engines need."""
    monkeypatch.setattr(choice, "_installed", lambda _: INSTALLED)
    monkeypatch.setattr(choice, "_gpu", lambda _=0: (GPU, None))
    monkeypatch.setattr("fgclip_rt.engines.runner.Cuda", FakeCuda)
    monkeypatch.setattr("fgclip_rt.engines.runner.plan_loader", lambda *_: None)


def test_an_engine_for_all_that_is_here_fits(bundle: Bundle) -> None:
    assert misfit(key_of(bundle), bundle, INSTALLED, GPU) is None
    assert misfit(key_of(bundle, targets=(AMPERE_PLUS,)), bundle, INSTALLED, GPU) is None
    assert misfit(key_of(bundle, gpu=GPU.name), bundle, INSTALLED, GPU) is None
    assert misfit(key_of(bundle, targets=("sm120",)), bundle, INSTALLED, Gpu("Another", "sm120")) is None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"recipe": 0}, ["recipe 0"]),
        ({"files": {"text.onnx": "0" * 64}}, ["another bundle", "text.onnx"]),
        ({"files": {"other.onnx": "0" * 64}}, ["another bundle", "other.onnx"]),
        ({"library": Library("tensorrt", "10.9")}, ["tensorrt 10.9", "not installed"]),
        ({"library": Library("tensorrt-rtx", "1.2.2")}, ["tensorrt-rtx 1.2.2", "1.2.3 is installed"]),
        ({"targets": ("sm86", "sm120")}, ["sm86, sm120", "Test GPU (sm89)"]),
        ({"gpu": "Other GPU"}, ["tuned on Other GPU", "Test GPU (sm89)"]),
    ],
)
def test_what_differs_is_named(bundle: Bundle, changes: dict[str, Any], parts: list[str]) -> None:
    problem = misfit(key_of(bundle, **changes), bundle, INSTALLED, GPU) or ""
    assert all(part in problem for part in parts), problem


def test_turing_is_not_ampere(bundle: Bundle) -> None:
    problem = misfit(key_of(bundle, targets=(AMPERE_PLUS,)), bundle, INSTALLED, Gpu("T4", "sm75"))
    assert "ampere+" in (problem or "")
    assert misfit(key_of(bundle), bundle, INSTALLED, None) == "there is no NVIDIA GPU"


def test_every_part_of_a_key_changes_its_digest(bundle: Bundle) -> None:
    key = key_of(bundle)
    others = [
        key_of(bundle, "vision"),
        key_of(bundle, precision="fp16"),
        key_of(bundle, files={"text.onnx": "0" * 64}),
        key_of(bundle, library=Library("tensorrt-rtx", "1.2.4")),
        key_of(bundle, targets=("sm86",)),
        key_of(bundle, gpu="GPU"),
        key_of(bundle, profiles=key_of(bundle, "vision").profiles),
        key_of(bundle, stripped=True),
        key_of(bundle, recipe=RECIPE + 1),
    ]
    assert len({variant.digest for variant in [key, *others]}) == 10
    assert key.digest == key_of(bundle).digest
    assert folder_name(key) == f"text-fp32-64-tensorrt-rtx-{key.digest[:12]}"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda document: document.update(surprise=1), ["engine.json", "surprise"]),
        (lambda document: document.pop("plan"), ["engine.json", "plan"]),
        (lambda document: document.update(format="other"), ["engine.json", "format"]),
        (lambda document: document.update(format_version=2), ["engine.json", "format_version"]),
        (lambda document: document["key"].update(precision="fp16"), ["engine.json", "altered or moved"]),
        (lambda document: document.update(plan="other.plan"), ["engine.json", "other.plan"]),
        (lambda document: document["files"]["engine.plan"].update(size=5), ["engine.plan", "not the file that was"]),
        (lambda document: document["files"].update(other={"size": 1, "sha256": "0" * 64}), ["other", "cannot be read"]),
    ],
)
def test_a_damaged_record_is_told_of(bundle: Bundle, change: Callable[[Json], None], parts: list[str]) -> None:
    write_engine(bundle, key_of(bundle), change)
    with pytest.raises(EngineError) as info:
        find_engines(bundle)
    assert_one_sentence(info.value, *parts, "fgclip-rt build", "remove its folder")
    # A model on the CPU reads no engine, so a damaged one does no harm.
    assert fgclip_rt.load(bundle.path, device="cpu").embed_texts(["a cat"]).shape == (1, 96)


def test_a_folder_that_holds_no_engine_or_not_yet(bundle: Bundle) -> None:
    (bundle.path / "engines/.partial-1/half").mkdir(parents=True)
    (bundle.path / "engines/timing-11.cache").write_bytes(b"")
    assert find_engines(bundle) == []
    (bundle.path / "engines/empty").mkdir()
    with pytest.raises(EngineError) as info:
        find_engines(bundle)
    assert_one_sentence(info.value, "empty", "cannot be read")
    for text in (b"[", b"\xff", b"null"):
        (bundle.path / "engines/empty/engine.json").write_bytes(text)
        with pytest.raises(EngineError, match="not as specified"):
            find_engines(bundle)


@pytest.mark.usefixtures("gpu_machine")
def test_engines_run_a_bundle_where_they_fit(bundle: Bundle) -> None:
    write_engine(bundle, key_of(bundle))
    for options in ({"device": "auto"}, {"device": "cuda"}, {"backend": "tensorrt-rtx"}):
        model = fgclip_rt.load(bundle.path, **options)
        assert isinstance(model.backend, EngineBackend)
        assert str(model.backend).startswith("tensorrt-rtx 1.2.3 on cuda (engines: text 64")
    for options in ({"device": "cpu"}, {"backend": "onnxruntime", "device": "auto"}):
        assert isinstance(fgclip_rt.load(bundle.path, **options).backend, OnnxRuntimeBackend)


@pytest.mark.usefixtures("gpu_machine")
def test_onnxruntime_takes_what_engines_do_not_where_it_can(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engine(bundle, key_of(bundle))
    model = fgclip_rt.load(bundle.path, device="cuda")
    assert "has no CUDA provider" in str(model.backend)
    with pytest.raises(DeviceError) as info:
        model.embed_texts(["a cat"], "long")
    assert_one_sentence(info.value, "no engine takes the text graph", "CUDA provider", "onnxruntime-gpu")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert "do not take: onnxruntime" in str(fgclip_rt.load(bundle.path, device="cuda").backend)


@pytest.mark.usefixtures("gpu_machine")
def test_a_stale_engine_is_never_loaded(bundle: Bundle) -> None:
    folder = write_engine(bundle, key_of(bundle, targets=("sm86",)))
    with pytest.raises(EngineError) as info:
        fgclip_rt.load(bundle.path, backend="tensorrt-rtx")
    assert_one_sentence(
        info.value, folder.name, "was built for sm86", "Test GPU (sm89)", "fgclip-rt build", "--target current"
    )
    with pytest.raises(DeviceError) as device:
        fgclip_rt.load(bundle.path, device="cuda")
    assert_one_sentence(device.value, "CUDA provider", folder.name, "was built for sm86", "fgclip-rt doctor")
    model = fgclip_rt.load(bundle.path, device="auto")
    assert isinstance(model.backend, OnnxRuntimeBackend)
    assert f"engine {folder.name} does not fit, because it was built for sm86" in str(model.backend)
    write_engine(bundle, key_of(bundle, "vision", targets=("sm86",)))
    assert "none of 2 engines fits, because it was built for sm86" in str(fgclip_rt.load(bundle.path).backend)
    write_engine(bundle, key_of(bundle, "dense", recipe=0))
    assert "others for other reasons" in str(fgclip_rt.load(bundle.path).backend)


@pytest.mark.usefixtures("gpu_machine")
def test_engines_of_another_bundle_are_not_loaded(bundle: Bundle, masked_bundle_path: Path, tmp_path: Path) -> None:
    write_engine(bundle, key_of(bundle))
    other = shutil.copytree(masked_bundle_path, tmp_path / "other")
    shutil.copytree(bundle.path / "engines", other / "engines")
    with pytest.raises(EngineError) as info:
        fgclip_rt.load(other, backend="tensorrt-rtx")
    assert_one_sentence(info.value, "another bundle", "text.onnx", f"fgclip-rt build {other}")


@pytest.mark.usefixtures("gpu_machine")
def test_engines_that_were_never_built(bundle: Bundle) -> None:
    with pytest.raises(EngineError) as info:
        fgclip_rt.load(bundle.path, backend="tensorrt")
    assert_one_sentence(info.value, "no tensorrt engine in fp32", f"fgclip-rt build {bundle.path} --backend tensorrt")
    assert "engine" not in str(fgclip_rt.load(bundle.path).backend)


@pytest.mark.usefixtures("gpu_machine")
def test_the_library_with_most_engines_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"tensorrt": "10.9", **INSTALLED}
    monkeypatch.setattr(choice, "_installed", lambda _: both)
    write_engine(bundle, key_of(bundle, library=Library("tensorrt", "10.9")))
    assert str(fgclip_rt.load(bundle.path).backend).startswith("tensorrt 10.9")
    write_engine(bundle, key_of(bundle))
    assert str(fgclip_rt.load(bundle.path).backend).startswith("tensorrt 10.9")
    write_engine(bundle, key_of(bundle, "vision"))
    assert str(fgclip_rt.load(bundle.path).backend).startswith("tensorrt-rtx")
    assert str(fgclip_rt.load(bundle.path, backend="tensorrt").backend).startswith("tensorrt 10.9")


def test_an_engine_serves_every_precision_that_has_its_graph(bundle: Bundle) -> None:
    def half(document: Json) -> None:
        document["graphs"]["text"]["fp16"] = {**document["graphs"]["text"]["fp32"], "file": "tokenizer.json"}
        for graph in ("vision", "dense", "region"):
            document["graphs"][graph]["fp16"] = document["graphs"][graph]["fp32"]
        document["parity"]["limits"]["fp16"] = document["parity"]["limits"]["fp32"]

    edit_manifest(bundle.path, half)
    edited = Bundle.open(bundle.path)
    for graph in ("text", "region"):
        write_engine(edited, key_of(edited, graph))
    assert len(fit_engines(edited)) == len(fit_engines(edited, "fp32")) == 2
    assert [fit.engine.key.graph for fit in fit_engines(edited, "fp16")] == ["region"]


@pytest.mark.parametrize(
    "options", [{"backend": "tflite"}, {"backend": "tensorrt", "device": "cpu"}, {"device": "tpu"}]
)
def test_what_cannot_be_asked_for(bundle: Bundle, options: dict[str, str]) -> None:
    with pytest.raises(ArgumentError) as info:
        fgclip_rt.load(bundle.path, **options)
    assert_one_sentence(info.value, *list(options.values())[:1])


def test_the_command_line_says_what_is_missing_here(bundle: Bundle) -> None:
    """This machine has no GPU. An engine that fits otherwise is refused for that, another for its own difference."""
    library = TensorRtRtx().identity
    write_engine(bundle, key_of(bundle, library=library))
    arguments = (bundle.path, "--backend", "tensorrt-rtx")
    error = run_command("verify", *arguments, status=1).stderr.strip()
    assert_one_sentence(error, "there is no NVIDIA GPU here", "nvidia-smi")
    verified = run_command("verify", bundle.path).stdout
    assert "engine" not in verified.splitlines()[-1]
    shown = run_command("doctor", bundle.path).stdout
    assert "does not fit: there is no NVIDIA GPU" in shown
    shutil.rmtree(bundle.path / "engines")
    write_engine(bundle, key_of(bundle, library=Library("tensorrt-rtx", "0.9")))
    error = run_command("verify", *arguments, status=1).stderr.strip()
    assert_one_sentence(error, "tensorrt-rtx 0.9", f"{library.version} is installed", "fgclip-rt build")
    described = json.loads(run_command("doctor", bundle.path, "--json").stdout)["engines"]
    assert "tensorrt-rtx 0.9" in described[0]["problem"]


@pytest.mark.usefixtures("gpu_machine")
def test_models_for_onnxruntime_are_left_to_those_who_use_it(bundle: Bundle) -> None:
    write_engine(bundle, key_of(bundle, library=Library("onnxruntime-tensorrt", ort.__version__)))
    (fit,) = fit_engines(bundle)
    assert "services that use onnxruntime" in (fit.problem or "")
    assert "engine" not in str(fgclip_rt.load(bundle.path).backend)


def test_a_gpu_that_cannot_be_asked_for_is_not_denied(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cuda-bindings no GPU can be found, so the message names the missing package."""
    write_engine(bundle, key_of(bundle, library=TensorRtRtx().identity))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineError) as info:
        fgclip_rt.load(bundle.path, backend="tensorrt-rtx")
    assert_one_sentence(info.value, "cuda-bindings", "fgclip-rt[tensorrt-rtx]")
    assert isinstance(fgclip_rt.load(bundle.path).backend, OnnxRuntimeBackend)


def test_the_command_that_builds_again_builds_the_same(pocket_path: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pocket_path, tmp_path / "a bundle")
    options = ["--precision", "int8", "--graph", "region", "--buckets", "256", "--batch", "1,2,3", "--boxes", "4,5,6"]
    run_command("build", folder, "--backend", "tensorrt-rtx", *options)
    bundle = Bundle.open(folder)
    (engine,) = find_engines(bundle)
    command = shlex.split(rebuild_command(bundle, engine.key, None))
    assert "was there" in run_command(*command[1:]).stdout
    stripped = msgspec.structs.replace(engine.key, stripped=True)
    assert "--strip-weights --target current" in rebuild_command(bundle, stripped, GPU)


def test_targets_by_name() -> None:
    rtx = TensorRtRtx()
    assert rtx.check_targets(()) == ()
    assert rtx.check_targets(["sm120", "sm86", "sm120"]) == ("sm86", "sm120")
    assert [needs_gpu([target]) for target in ("sm86", CURRENT, AMPERE_PLUS)] == [False, True, True]
    for target in (CURRENT, AMPERE_PLUS):
        assert this_gpu([target], lambda: GPU) == GPU
        with pytest.raises(EngineError) as info:
            this_gpu([target], lambda: None)
        assert_one_sentence(info.value, target, "NVIDIA GPU")


def test_default_targets_have_kernels_for_the_precision() -> None:
    rtx = TensorRtRtx()
    for precision in ("fp32", "fp16", "bf16", "int8"):
        assert rtx.default_targets(precision) == ("sm80", "sm86", "sm89", "sm120", "sm121")
    assert rtx.default_targets("fp8") == ("sm89", "sm120", "sm121")


def test_a_gpu_that_cuda_cannot_use_is_not_denied(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA finds no driver here. A driver that is too old gives the same error."""
    if nvidia_gpus():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr("fgclip_rt.engines.cuda.nvidia_gpus", lambda: ["Old GPU, 4096 MiB"])
    monkeypatch.setattr(choice, "nvidia_gpus", lambda: ["Old GPU, 4096 MiB"])
    with pytest.raises(DeviceError) as info:
        find_gpu()
    assert_one_sentence(info.value, "Old GPU", "driver")
    write_engine(bundle, key_of(bundle, library=TensorRtRtx().identity))
    assert "CUDA cannot use Old GPU" in str(fgclip_rt.load(bundle.path).backend)
    with pytest.raises(EngineError) as stale:
        fgclip_rt.load(bundle.path, backend="tensorrt-rtx")
    assert "CUDA cannot use Old GPU" in str(stale.value)


def test_libraries_that_are_not_here() -> None:
    for name, extra in (("tensorrt", "fgclip-rt[tensorrt]"), ("onnxruntime-tensorrt", "onnxruntime-gpu")):
        with pytest.raises(MissingDependencyError) as info:
            LIBRARIES[name]()
        assert_one_sentence(info.value, extra)


def test_a_library_that_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for text, part in (("import nvinfer_stuff", "nvinfer_stuff"), ("raise OSError('libnvinfer.so.11')", "libnvinfer")):
        (tmp_path / "tensorrt.py").write_text(text)
        with pytest.raises(EngineError) as info:
            TensorRt()
        assert_one_sentence(info.value, "tensorrt cannot be loaded", part, "pip install")


def test_cuda_without_a_gpu_says_so() -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError) as info:
        Cuda()
    assert_one_sentence(info.value, "nvidia-smi")


def test_a_model_says_that_engines_alone_were_asked_for(bundle: Bundle, gpu_machine: None) -> None:  # noqa: ARG001
    write_engine(bundle, key_of(bundle))
    model: Model = fgclip_rt.load(bundle.path, backend="tensorrt-rtx")
    with pytest.raises(DeviceError) as info:
        model.embed_texts(["a cat"], "long")
    assert_one_sentence(info.value, "'tensorrt-rtx' was asked for alone", "--graph text")


@pytest.mark.usefixtures("gpu_machine")
def test_another_gpu_is_asked_for_by_its_number(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def gpu(index: int = 0) -> tuple[Gpu | None, None]:
        asked.append(index)
        return (GPU, None) if index < 2 else (None, None)

    monkeypatch.setattr(choice, "_gpu", gpu)
    write_engine(bundle, key_of(bundle))
    model = fgclip_rt.load(bundle.path, device="cuda:1")
    assert str(model.backend).startswith("tensorrt-rtx 1.2.3 on cuda:1 (engines")
    assert set(asked) == {1}
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        fgclip_rt.load(bundle.path, device="cuda:2", backend="tensorrt-rtx")


@pytest.mark.parametrize(
    ("library", "tuned_on", "sister"),
    [(TensorRt, "RTX 4090", "tuned on RTX 4090, and this GPU is RTX 4080 (sm89)"), (TensorRtRtx, None, None)],
)
def test_a_gpu_of_the_same_kind_runs_an_engine_unless_it_was_tuned(
    bundle: Bundle, library: type[TensorRt] | type[TensorRtRtx], tuned_on: str | None, sister: str | None
) -> None:
    made = object.__new__(library)
    made.version = "1.2.3"
    target = _Target(made, (CURRENT,), Gpu("RTX 4090", "sm89"), False)
    assert (target.targets, target.tuned_on) == (("sm89",), tuned_on)
    key = key_of(bundle, targets=target.targets, gpu=target.tuned_on)
    assert misfit(key, bundle, INSTALLED, Gpu("RTX 4090", "sm89")) is None
    problem = misfit(key, bundle, INSTALLED, Gpu("RTX 4080", "sm89"))
    assert problem is None if sister is None else sister in str(problem)


def test_onnxruntimes_provider_needs_tensorrt_10(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is linked to libnvinfer.so.10, whatever TensorRT is installed, and lists itself all the same."""
    provider = OnnxRuntimeTensorRt.provider
    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError) as info:
        OnnxRuntimeTensorRt()
    assert_one_sentence(info.value, "needs TensorRT 10", "libnvinfer.so.10", "fgclip-rt[onnxruntime-tensorrt]")
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    assert OnnxRuntimeTensorRt().version == ort.__version__
    assert loaded == ["libnvinfer.so.10"]
