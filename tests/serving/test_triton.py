"""``fgclip-rt triton``: the repository, and a real server that runs it, if one is installed."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fgclip_rt
from fgclip_rt.errors import ArgumentError, BundleError, FgclipError
from fgclip_rt.model import Model
from fgclip_rt.serving.triton import check_repository
from fgclip_rt.serving.triton.model import Asked, answer
from helpers import assert_one_sentence, run_command
from sharding import NAME, jpeg

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


def test_a_repository_has_all_that_it_needs(repository: Path, model: Model) -> None:
    files = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
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
    assert isinstance(answers[7], ArgumentError)
    assert "has both of IMAGE and TEXT" in str(answers[7])


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[int]:
    """A server of the repository; yields its gRPC port."""
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
    code = repository / "fgclip/1/model.py"
    code.write_text(f"import sys\n\nsys.path[:0] = {paths!r}\n" + code.read_text())
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [
            folder / "bin/tritonserver", f"--model-repository={repository}", "--disable-auto-complete-config",
            f"--backend-directory={tmp_path / 'backends'}", f"--http-port={ports[0]}", f"--grpc-port={ports[1]}",
            f"--metrics-port={ports[2]}", "--backend-config=python,stub-timeout-seconds=60",
        ],
        stdout=log, stderr=log,
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


@pytest.mark.skipif(
    _PYTRITON is None or not _CLIENT, reason="FGCLIP_RT_TEST_PYTRITON names no server, or no tritonclient"
)
def test_a_real_server_gives_the_vectors_of_embed(server: int, model: Model) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(f"127.0.0.1:{server}")

    def ask(name: str, items: list[bytes], **parameters: Any) -> Any:
        given = triton.InferInput(name, [len(items), 1], "BYTES")
        given.set_data_from_numpy(np.array(items, np.object_).reshape(-1, 1))
        return client.infer("fgclip", [given], parameters=parameters or None).as_numpy("EMBEDDING")

    images = [jpeg(seed) for seed in range(24)]
    with ThreadPoolExecutor(12) as clients:
        texts = [f"text {number}" for number in range(24)]
        of_images = [clients.submit(ask, "IMAGE", [image]) for image in images]
        of_texts = [clients.submit(ask, "TEXT", [text.encode()]) for text in texts]
        found = np.concatenate([each.result() for each in of_images])
        assert np.allclose(found, model.embed_images(images), atol=1e-5)
        assert np.allclose(np.concatenate([each.result() for each in of_texts]), model.embed_texts(texts), atol=1e-5)
    (statistics,) = client.get_inference_statistics("fgclip").model_stats
    assert statistics.inference_count == 48
    assert statistics.inference_count / statistics.execution_count > 1
    assert np.allclose(ask("TEXT", [b"a cat"], walk_type="box"), model.embed_texts(["a cat"], "box"), atol=1e-5)
    assert np.allclose(ask("IMAGE", images[:2], max_num_patches=256), model.embed_images(images[:2], 256), atol=1e-5)
    with pytest.raises(InferenceServerException, match="image_unsupported: image 0 is"):
        ask("IMAGE", [b"broken"])
