"""``fgclip-rt triton``: the repository, and a real server that runs it, if one is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_gpu import make_engine
from fake_triton import Error, Request, Response, Server

import fgclip_rt
from fgclip_rt.bundle import Bundle, file_info
from fgclip_rt.engine_files import EngineRecord, Library, folder_name
from fgclip_rt.engines.profiles import Shapes, plan
from fgclip_rt.errors import ArgumentError, BundleError, EngineError, FgclipError
from fgclip_rt.model import Model
from fgclip_rt.serving.triton import Repository, check_repository, write_repository
from fgclip_rt.serving.triton.model import Asked, TritonPythonModel, answer
from helpers import assert_one_sentence, run_command
from sharding import NAME, jpeg, write_folder

#: The ``site-packages`` of an environment of its own in which nvidia-pytriton is installed. Its wheel carries a server
#: with the Python backend, which reads the tensors of NumPy 1 only, so that environment's NumPy comes first.
_PYTRITON = os.environ.get("FGCLIP_RT_TEST_PYTRITON")
_CLIENT = importlib.util.find_spec("tritonclient") is not None


@pytest.fixture(scope="module")
def model() -> Model:
    return fgclip_rt.load(NAME, device="cpu")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    run_command("triton", NAME, "--output", path, "--threads", 1)
    return path


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_repository_has_all_that_it_needs(repository: Path, model: Model) -> None:
    files = files_of(repository)
    assert {"README.md", "fgclip/config.pbtxt", "fgclip/1/model.py", "fgclip/1/bundle/manifest.json"} <= files
    copied = fgclip_rt.load(repository / "fgclip/1/bundle", device="cpu")
    assert copied.bundle.manifest_sha256 == model.bundle.manifest_sha256
    assert f"dims: [ {model.dim} ]" in (repository / "fgclip/config.pbtxt").read_text()
    assert "tritonserver --model-repository" in (repository / "README.md").read_text()


def test_what_stands_there_is_kept(repository: Path) -> None:
    assert "exists already" in run_command("triton", NAME, "--output", repository, status=1).stderr
    run_command("triton", NAME, "--output", repository, "--overwrite", "--gpu", "--instances", 2, "--max-queue", 7)
    config = (repository / "fgclip/config.pbtxt").read_text()
    assert "kind: KIND_GPU count: 2" in config
    assert "max_queue_size: 7 timeout_action: REJECT" in config


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--instances", 0), "--instances is 0"),
        (("--max-batch-size", -1), "--max-batch-size is -1"),
        (("--max-wait", "nan"), "--max-wait is nan"),
        (("--precision", "fp8"), "no precision 'fp8'"),
        (("--mode", "onnx"), "--mode is onnx; choose in-process, onnxruntime or tensorrt."),
        (("--mode", "tensorrt"), "no TensorRT engine of the vision graph at length 128"),
        (("--bench", "nowhere.json"), "nowhere.json cannot be read"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, more: tuple[object, ...], part: str) -> None:
    assert part in run_command("triton", NAME, "--output", tmp_path / "r", *more, status=1).stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(not _CLIENT, reason="tritonclient is an extra of its own: pip install '.[triton]'")
def test_a_check_holds_a_repository_to_its_bundle(repository: Path, tmp_path: Path) -> None:
    assert "; checked" in run_command("triton", NAME, "--output", tmp_path / "checked", "--check").stdout
    check_repository(repository)
    path = repository / "fgclip/config.pbtxt"
    good = path.read_text()
    for old, new, part in (
        ("dims: [ 1 ] optional", "dims: [ 2 ] optional", "inputs"),
        ("TYPE_FP32", "TYPE_FP16", "outputs"),
        ("KIND_CPU", "KIND_NPU", "no configuration of Triton's"),
        ('256" value { string_value: "', '256" value { string_value: "0', "manifest_sha256"),
        ('space_sha256" value { string_value: "', 'space_sha256" value { string_value: "0', "space_sha256"),
        ('name: "fgclip"', 'name: "clip"', "name clip instead of fgclip"),
    ):  # fmt: skip
        assert old in good
        path.write_text(good.replace(old, new))
        with pytest.raises(BundleError) as error:
            check_repository(repository)
        assert_one_sentence(error.value, part)


def test_requests_of_a_batch_are_answered_each(model: Model) -> None:
    images, texts = [jpeg(seed) for seed in range(5)], [b"a cat", b"a dog"]
    answers = answer(
        model,
        [
            Asked(images[:2], None), Asked(None, texts), Asked([images[2], b"broken"], None), Asked(images[3:4], None),
            Asked(None, [b"\xff"]), Asked(None, texts[:1], "box"), Asked(images[4:], None, max_num_patches=256),
            Asked(images[:1], texts[:1]), Asked(None, None), Asked(None, texts, "no such kind"), Asked([], None),
        ],
    )  # fmt: skip

    def close(number: int, expected: Any) -> bool:
        assert not isinstance(answers[number], FgclipError)
        return np.allclose(answers[number], expected, atol=1e-6)

    assert close(0, model.embed_images(images[:2]))
    assert close(1, model.embed_texts(["a cat", "a dog"]))
    assert close(3, model.embed_images(images[3:4]))
    assert close(5, model.embed_texts(["a cat"], "box"))
    assert close(6, model.embed_images(images[4:], 256))
    codes = {number: each.code for number, each in enumerate(answers) if isinstance(each, FgclipError)}
    assert codes == {
        2: "image_unsupported", 4: "text_invalid", 7: "argument_invalid", 8: "argument_invalid",
        9: "walk_type_missing", 10: "argument_invalid",
    }  # fmt: skip
    assert "text 0 " in str(answers[4])
    assert isinstance(answers[7], ArgumentError)
    assert "has both of IMAGE and TEXT" in str(answers[7])


@pytest.fixture(scope="module")
def of_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose graphs run in Triton's ONNX Runtime backend."""
    path = tmp_path_factory.mktemp("triton") / "repository"
    run_command("triton", NAME, "--output", path, "--mode", "onnxruntime", "--regions", "--threads", 1)
    return path


def test_each_bucket_and_length_is_a_model(of_graphs: Path) -> None:
    server = Server(of_graphs)
    buckets = (128, 256, 576, 784, 1024)
    names = {f"fgclip_{graph}_{bucket}" for graph in ("vision", "dense") for bucket in buckets}
    assert {path.name for path in of_graphs.iterdir()} == {
        *names, "fgclip", "fgclip_text_64", "fgclip_text_196", "fgclip_region", "README.md",
    }  # fmt: skip
    # The model that is asked has no graphs, and all others share one file of weights.
    assert files_of(of_graphs / "fgclip/1") == {"model.py", "bundle/manifest.json", "bundle/tokenizer.json"}
    weights = list(of_graphs.glob("*/1/model.onnx/weights.fp16.safetensors"))
    assert len(weights) == 12
    assert len({path.stat().st_ino for path in weights}) == 1
    vision = server.config("fgclip_vision_256")
    assert [(each["name"][0], each["dims"]) for each in vision["input"]] == [
        ("patches", [256, 768]), ("spatial_shapes", [2]),
    ]  # fmt: skip
    assert vision["max_batch_size"] == [2048 // 256]
    assert [each["batch_size"] for each in vision["model_warmup"]] == [[1], [8]]
    grid = np.frombuffer((of_graphs / "fgclip_vision_256/warmup/spatial_shapes").read_bytes(), np.int32)
    assert grid.tolist() == [16, 16]
    assert server.config("fgclip")["instance_group"][0]["count"] == [2]
    assert server.config("fgclip_region")["max_batch_size"] == [0]
    assert "12 models are hard links" in " ".join((of_graphs / "README.md").read_text().split())


def test_a_gpu_runs_the_graphs_and_not_the_model_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "repository"
    run_command("triton", NAME, "--output", path, "--mode", "onnxruntime", "--gpu", "--max-batch-size", 50)
    server = Server(path)
    assert server.config("fgclip")["instance_group"][0]["kind"] == ["KIND_CPU"]
    assert server.config("fgclip_vision_256")["instance_group"][0]["kind"] == ["KIND_GPU"]
    assert [server.config(f"fgclip_vision_{bucket}")["max_batch_size"] for bucket in (128, 1024)] == [[50], [16]]
    assert "--gpus all -e ORT_DISABLE_MEMORY_EFFICIENT_ATTENTION=1" in (path / "README.md").read_text()
    assert not (path / "fgclip_region").exists()


def test_batches_are_those_that_bench_advises(tmp_path: Path) -> None:
    result = tmp_path / "bench.json"
    write_folder(tmp_path / "photos", [jpeg(0)] * 3)
    run_command("bench", NAME, "--images", tmp_path / "photos", "--seconds", 0.01, "--rounds", 1, "--output", result)
    advised = json.loads(result.read_text())
    ((bucket, size),) = ((each["bucket"], each["batch_size"]) for each in advised["advice"]["buckets"])
    run_command("triton", NAME, "--output", tmp_path / "graphs", "--mode", "onnxruntime", "--bench", result)
    server = Server(tmp_path / "graphs")
    config = server.config(f"fgclip_vision_{bucket}")
    assert config["max_batch_size"] == config["dynamic_batching"][0]["preferred_batch_size"] == [size]
    # A bucket that no image was in, and texts, keep the usual batches.
    assert server.config("fgclip_vision_1024")["max_batch_size"] == [2]
    assert "preferred_batch_size" not in server.config("fgclip_text_64")["dynamic_batching"][0]
    advised["advice"]["batch_size"] = 7
    result.write_text(json.dumps(advised))
    run_command("triton", NAME, "--output", tmp_path / "whole", "--bench", result)
    assert Server(tmp_path / "whole").config("fgclip")["max_batch_size"] == [7]
    for text, part in (
        ("[]", "is no result of bench"),
        (json.dumps({"advice": {"batch_size": 0, "buckets": []}}), "less than one"),
    ):
        result.write_text(text)
        assert part in run_command("triton", NAME, "--output", tmp_path / "x", "--bench", result, status=1).stderr


@pytest.fixture
def front(of_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TritonPythonModel, Server]:
    """The model that is asked, and the server whose other models it calls."""
    server = Server(of_graphs)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server.module())
    model = TritonPythonModel()
    model.initialize(server.arguments("fgclip"))
    return model, server


def bytes_of(*items: bytes) -> Any:
    return np.array(items, np.object_).reshape(-1, 1)


def test_the_model_that_is_asked_calls_the_graphs(front: tuple[TritonPythonModel, Server], model: Model) -> None:
    asked, server = front
    images = [jpeg(seed) for seed in range(9)]
    texts = [f"text {number}" for number in range(40)]
    responses = asked.execute(
        [
            Request({"IMAGE": bytes_of(*images)}), Request({"TEXT": bytes_of(*(text.encode() for text in texts))}),
            Request({"TEXT": bytes_of(b"a long cat")}, walk_type="long"),
            Request({"TEXT": bytes_of(b"a red box")}, walk_type="box"),
            Request({"IMAGE": bytes_of(*images[:2])}, max_num_patches=100), Request({"IMAGE": bytes_of(b"broken")}),
            Request({"IMAGE": bytes_of(images[2])}, max_num_patches=2000),
        ]
    )  # fmt: skip
    found = [each.tensors["EMBEDDING"].as_numpy() for each in responses[:5]]
    expected = [
        model.embed_images(images), model.embed_texts(texts), model.embed_texts(["a long cat"], "long"),
        model.embed_texts(["a red box"], "box"), model.embed_images(images[:2], 100),
    ]  # fmt: skip
    for vectors, those_of_embed in zip(found, expected, strict=True):
        assert np.allclose(vectors, those_of_embed, atol=1e-5)
    # The number is that of the request, whatever it was joined with.
    assert str(responses[5].error()).startswith("image_unsupported: image 0 is")
    assert "no vision graph for 2000 patches; ask for 1024 patches or fewer" in str(responses[6].error())
    # Images of a bucket come in full batches, and no batch is larger than its model allows.
    sizes = {name: [size for other, size in server.calls if other == name] for name, _ in server.calls}
    assert max(sizes["fgclip_vision_128"]) > 1
    assert sum(map(sum, sizes.values())) == 9 + 40 + 1 + 1 + 2
    assert set(sizes) >= {"fgclip_vision_256", "fgclip_text_64", "fgclip_text_196"}


def test_boxes_are_answered_with_their_images(front: tuple[TritonPythonModel, Server], model: Model) -> None:
    asked, server = front
    images = [jpeg(1), jpeg(2)]
    boxes = np.array([[[0, 0, 50, 60], [20, 30, 200, 150]], [[5, 5, 100, 90], [0, 0, 330, 300]]], np.float32)
    good, lonely, empty = asked.execute(
        [
            Request({"IMAGE": bytes_of(*images), "BOXES": boxes}), Request({"BOXES": boxes}),
            Request({"IMAGE": bytes_of(images[0]), "BOXES": np.array([[[9, 9, 9, 9]]], np.float32)}),
        ]
    )  # fmt: skip
    vectors = good.tensors["REGION_EMBEDDING"].as_numpy()
    expected = [model.embed_regions(image, each) for image, each in zip(images, boxes, strict=True)]
    assert np.allclose(vectors, expected, atol=1e-5)
    assert ("fgclip_region", 1) in server.calls
    assert str(lonely.error()).startswith("argument_invalid: a request has BOXES without IMAGE")
    assert str(empty.error()).startswith("box_empty: box 0 ")


def test_a_model_that_fails_is_an_error_of_the_request(
    front: tuple[TritonPythonModel, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, server = front
    monkeypatch.setattr(server, "run", lambda *_: Response(error=Error("out of memory")))
    image, text = asked.execute([Request({"IMAGE": bytes_of(jpeg(0))}), Request({"TEXT": bytes_of(b"never seen")})])
    assert str(image.error()) == (
        "device_failed: Triton's model fgclip_vision_128 failed (out of memory); look into the server's log."
    )
    assert "fgclip_text_64 failed" in str(text.error())


def test_a_replaced_manifest_is_noticed(of_graphs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(of_graphs / "fgclip", tmp_path / "fgclip"))
    manifest = copy / "1/bundle/manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(BundleError, match="is another bundle than the configuration names") as error:
        TritonPythonModel().initialize(Server(tmp_path).arguments("fgclip"))
    assert error.value.code == "bundle_replaced"


@pytest.mark.skipif(not _CLIENT, reason="tritonclient is an extra of its own: pip install '.[triton]'")
def test_a_check_holds_each_model_to_its_graph(of_graphs: Path, tmp_path: Path) -> None:
    check_repository(of_graphs)
    repository = Path(shutil.copytree(of_graphs, tmp_path / "repository"))
    vision = repository / "fgclip_vision_256"

    def refused(path: Path, content: bytes | None, part: str) -> None:
        good = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BundleError) as error:
            check_repository(repository)
        assert_one_sentence(error.value, part)
        path.write_bytes(good)

    for name, old, new, part in (
        ("fgclip_vision_256", "dims: [ 256, 768 ] }", "dims: [ 255, 768 ] }", "inputs"),
        ("fgclip_text_64", "reshape { shape: [  ] }", "reshape { shape: [ 1 ] }", "walk_type of shape [-1, 1]"),
        ("fgclip_vision_256", "max_batch_size: 8", "max_batch_size: 9", "max_batch_size 9 instead of 8"),
        ("fgclip_region", "TYPE_FP32", "TYPE_FP16", "inputs"),
        ("fgclip_dense_128", 'key: "patches"', 'key: "pixels"', "inputs of its warm-up"),
        ("fgclip_text_196", 'backend: "onnxruntime"', 'backend: "tensorrt"', "backend tensorrt"),
        ("fgclip", 'backend: "python"', 'backend: "onnxruntime"', "backend onnxruntime"),
    ):  # fmt: skip
        path = repository / name / "config.pbtxt"
        good = path.read_text()
        assert old in good
        refused(path, good.replace(old, new).encode(), part)
    refused(vision / "config.pbtxt", None, "no configuration of Triton's")
    refused(vision / "warmup/spatial_shapes", b"1234", "bytes in spatial_shapes of its warm-up 4 instead of 8")
    refused(vision / "1/model.onnx/model.onnx", b"", "is not the bundle's graph")
    refused(vision / "1/model.onnx/weights.fp16.safetensors", None, "cannot be opened")
    refused(repository / "fgclip/1/bundle/tokenizer.json", b"{}", "is not the file that was exported")
    check_repository(repository)


@pytest.fixture
def with_plans(pocket_path: Path, tmp_path: Path) -> Bundle:
    """A bundle with an engine of TensorRT for each bucket and length, whose plans hold their names."""
    bundle = Bundle.open(shutil.copytree(pocket_path, tmp_path / "bundle"))
    for spec in plan(
        bundle.manifest, bundle.manifest.precisions[:1], ["vision", "dense", "text"], Shapes(batch=(1, 8, 20))
    ):
        key = make_engine(bundle, spec, library=Library("tensorrt", "10.9.0")).key
        folder = bundle.path / "engines" / folder_name(key)
        folder.mkdir(parents=True)
        (folder / "engine.plan").write_text(folder.name)
        files = {"engine.plan": file_info(folder / "engine.plan")}
        record = EngineRecord("fgclip-rt-engine", 1, key, key.digest, "engine.plan", files, 1.0, 7)
        (folder / "engine.json").write_bytes(msgspec.json.encode(record))
    return bundle


def test_plans_run_in_triton(with_plans: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "repository"
    write_repository(with_plans, path, Repository(mode="tensorrt", regions=True, max_batch_size=128))
    server = Server(path)
    vision, region = server.config("fgclip_vision_128"), server.config("fgclip_region")
    assert vision["backend"] == ["tensorrt"]
    # An engine's largest batch is the most, and each of its profiles can be chosen: one image, 2 to 8, 9 to 20.
    assert vision["max_batch_size"] == [20]
    assert server.config("fgclip_vision_1024")["max_batch_size"] == [16]
    assert vision["instance_group"] == [{"kind": ["KIND_GPU"], "count": [2], "profile": ["0", "1", "2"]}]
    assert (path / "fgclip_vision_128/1/model.plan").read_text().startswith("vision-fp32-128-tensorrt-")
    # The graph of boxes takes images of any length, as no plan does.
    assert region["backend"] == ["onnxruntime"]
    assert files_of(path / "fgclip_region/1") == {"model.onnx/model.onnx"}
    readme = (path / "README.md").read_text()
    assert "run with tensorrt 10.9.0 only" in readme
    assert "--gpus all --shm-size" in readme
    if _CLIENT:
        check_repository(path)
        (path / "fgclip_vision_128/1/model.plan").write_text("another")
        with pytest.raises(BundleError, match="another plan than it records"):
            check_repository(path)


def test_plans_that_triton_cannot_run_are_refused(with_plans: Bundle, tmp_path: Path) -> None:
    def refusal(**changes: Any) -> str:
        with pytest.raises(EngineError) as error:
            write_repository(with_plans, tmp_path / "repository", Repository(mode="tensorrt", **changes))
        assert error.value.code == "engine_missing"
        return str(error.value)

    folder = next((with_plans.path / "engines").glob("text-fp32-64-*"))
    record = msgspec.json.decode((folder / "engine.json").read_bytes(), type=EngineRecord)

    def replaced(**changes: Any) -> Path:
        key = msgspec.structs.replace(record.key, **changes)
        other = Path(shutil.copytree(folder, folder.with_name(folder_name(key))))
        changed = msgspec.structs.replace(record, key=key, sha256=key.digest)
        (other / "engine.json").write_bytes(msgspec.json.encode(changed))
        return other

    for_another = replaced(targets=("sm90",))
    assert "several TensorRT engines of the text graph at length 64" in refusal()
    shutil.rmtree(for_another)
    for changes in ({"stripped": True}, {"library": Library("tensorrt-rtx", "1.7")}, {"recipe": 1}):
        other = replaced(**changes)
        folder = Path(shutil.move(folder, tmp_path / "aside"))
        assert "no TensorRT engine of the text graph at length 64 in fp32" in refusal()
        folder = Path(shutil.move(folder, with_plans.path / "engines" / folder_name(record.key)))
        shutil.rmtree(other)
    newer = replaced(library=Library("tensorrt", "10.10.0"))
    shutil.move(folder, tmp_path / "aside")
    assert "engines of TensorRT 10.10.0 and 10.9.0, and a server runs one" in refusal()
    shutil.rmtree(newer)


def test_boxes_need_their_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.delitem(model.manifest.graphs, "region")
    with pytest.raises(ArgumentError, match="has no features of regions; leave --regions out") as error:
        write_repository(model.bundle, tmp_path / "repository", Repository(regions=True))
    assert error.value.code == "graph_missing"


@contextmanager
def serving(repository: Path, tmp_path: Path) -> Iterator[int]:
    """A server of a repository; yields its gRPC port."""
    assert _PYTRITON is not None
    folder = Path(_PYTRITON) / "pytriton/tritonserver"
    backends = tmp_path / "backends/python"
    backends.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for path in (*(folder / "backends/python").iterdir(), *(folder / "python_backend_stubs" / version).iterdir()):
        (backends / path.name).symlink_to(path)
    ports = []
    for _ in range(3):
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            ports.append(bound.getsockname()[1])
    # The server's Python ignores PYTHONPATH; an image has the package among its own.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    paths = [str(Path(fgclip_rt.__file__).parents[1]), _PYTRITON, *packages]
    for code in repository.glob("*/1/model.py"):
        text = code.read_text().replace("from __future__ import annotations\n", "")
        code.write_text(f"import sys\n\nsys.path[:0] = {paths!r}\n" + text)
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [
            folder / "bin/tritonserver", f"--model-repository={repository}", "--disable-auto-complete-config",
            f"--backend-directory={tmp_path / 'backends'}", f"--http-port={ports[0]}", f"--grpc-port={ports[1]}",
            f"--metrics-port={ports[2]}", "--backend-config=python,stub-timeout-seconds=60",
        ],
        stdout=log, stderr=log, env={**os.environ, "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/health/ready") as ready:
                    assert ready.status == 200
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        yield ports[1]
    finally:
        process.terminate()
        process.wait(30)
        log.close()


real = pytest.mark.skipif(
    _PYTRITON is None or not _CLIENT, reason="FGCLIP_RT_TEST_PYTRITON names no server, or no tritonclient"
)


class Asker:
    """A client."""

    def __init__(self, port: int) -> None:
        import tritonclient.grpc as triton

        self._triton = triton
        self._client = triton.InferenceServerClient(f"127.0.0.1:{port}")

    def ask(self, name: str, items: list[bytes], boxes: Any = None, **parameters: Any) -> Any:
        given = [self._triton.InferInput(name, [len(items), 1], "BYTES")]
        given[0].set_data_from_numpy(bytes_of(*items))
        if boxes is not None:
            given.append(self._triton.InferInput("BOXES", boxes.shape, "FP32"))
            given[1].set_data_from_numpy(boxes)
        found = self._client.infer("fgclip", given, parameters=parameters or None)
        return found.as_numpy("EMBEDDING" if boxes is None else "REGION_EMBEDDING")

    def mean_batch(self, name: str) -> float:
        """Mean number of items of a batch, and of all that ran."""
        (statistics,) = self._client.get_inference_statistics(name).model_stats
        mean: float = statistics.inference_count / statistics.execution_count
        return mean

    def check_answers(self, model: Model) -> None:
        """Hold answers to many clients at once to the vectors of ``embed``."""
        from tritonclient.utils import InferenceServerException

        images, texts = [jpeg(seed) for seed in range(24)], [f"text {number}" for number in range(24)]
        with ThreadPoolExecutor(12) as clients:
            of_images = [clients.submit(self.ask, "IMAGE", [image]) for image in images]
            of_texts = [clients.submit(self.ask, "TEXT", [text.encode()]) for text in texts]
            vectors = np.concatenate([each.result() for each in of_images])
            assert np.allclose(vectors, model.embed_images(images), atol=1e-5)
            vectors = np.concatenate([each.result() for each in of_texts])
            assert np.allclose(vectors, model.embed_texts(texts), atol=1e-5)
        assert self.mean_batch("fgclip") > 1
        found = self.ask("TEXT", [b"a cat"], walk_type="box")
        assert np.allclose(found, model.embed_texts(["a cat"], "box"), atol=1e-5)
        found = self.ask("IMAGE", images[:2], max_num_patches=256)
        assert np.allclose(found, model.embed_images(images[:2], 256), atol=1e-5)
        boxes = np.array([[[0, 0, 50, 60], [20, 30, 200, 150]]], np.float32)
        found = self.ask("IMAGE", images[1:2], boxes)
        assert np.allclose(found, [model.embed_regions(images[1], boxes[0])], atol=1e-5)
        with pytest.raises(InferenceServerException, match="image_unsupported: image 0 is"):
            self.ask("IMAGE", [b"broken"])


@real
def test_a_real_server_gives_the_vectors_of_embed(tmp_path: Path, model: Model) -> None:
    repository = tmp_path / "repository"
    run_command("triton", NAME, "--output", repository, "--threads", 1, "--regions")
    with serving(repository, tmp_path) as port:
        Asker(port).check_answers(model)


@real
def test_a_real_server_calls_a_model_for_each_bucket(of_graphs: Path, tmp_path: Path, model: Model) -> None:
    repository = Path(shutil.copytree(of_graphs, tmp_path / "repository"))
    # The server at hand has no ONNX Runtime backend.
    for config in repository.glob("fgclip_*/config.pbtxt"):
        config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
        shutil.copyfile(Path(__file__).with_name("stand_in.py"), config.with_name("1") / "model.py")
    with serving(repository, tmp_path) as port:
        asker = Asker(port)
        asker.check_answers(model)
        assert asker.mean_batch("fgclip_vision_128") > 1
