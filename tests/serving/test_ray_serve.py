"""``fgclip_rt.serving.ray`` on a real local Ray with Serve."""

from __future__ import annotations

import base64
import importlib.util
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

import fgclip_rt
from fgclip_rt.errors import ArgumentError, ImageError, MissingDependencyError, TextError
from fgclip_rt.model import Model
from fgclip_rt.serving.ray import Deployment, build
from sharding import NAME, jpeg

EXAMPLE = Path(__file__).parents[2] / "examples/ray/serve.yaml"

_RAY = all(importlib.util.find_spec(package) is not None for package in ("ray", "fastapi"))
with_ray = pytest.mark.skipif(not _RAY, reason="ray is an extra of its own: pip install '.[ray-serve]'")


@pytest.fixture(scope="module")
def model() -> Model:
    return fgclip_rt.load(NAME, device="cpu")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Any, int]]:
    """A handle of a deployment of two replicas, and the port of its HTTP."""
    import ray
    from ray import serve

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    environment = {"env_vars": {"PYTHONPATH": str(Path(fgclip_rt.__file__).parents[1])}}
    ray.init(num_cpus=2, object_store_memory=10**8, include_dashboard=False, runtime_env=environment)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # As a command line gives them.
        settings = {"bundle": NAME, "device": "cpu", "threads": "1", "min_replicas": "2"}
        yield serve.run(build(settings)), port
    finally:
        serve.shutdown()
        ray.shutdown()


def post(port: int, path: str, body: object) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@with_ray
def test_handles_and_http_give_the_vectors_of_embed(running: tuple[Any, int], model: Model) -> None:
    handle, port = running
    images, texts = [jpeg(seed) for seed in range(12)], [f"text {number}" for number in range(12)]
    # Many at once, so that requests of both kinds meet in batches.
    of_images = [handle.embed_images.remote([image]) for image in images]
    of_texts = [handle.embed_texts.remote([text]) for text in texts]
    urls = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
    with ThreadPoolExecutor(6) as clients:
        by_http = list(clients.map(lambda url: post(port, "/v1/embeddings", {"model": NAME, "input": [url]}), urls))
    expected = model.embed_images(images)
    assert np.allclose(np.concatenate([each.result() for each in of_images]), expected, atol=1e-5)
    assert np.allclose([answer["data"][0]["embedding"] for answer in by_http], expected, atol=1e-5)
    assert np.allclose(np.concatenate([each.result() for each in of_texts]), model.embed_texts(texts), atol=1e-5)
    boxes = handle.embed_texts.remote(["a red star"], "box").result()
    assert np.allclose(boxes, model.embed_texts(["a red star"], "box"), atol=1e-5)
    few = handle.embed_images.remote(images[:3], max_num_patches=100).result()
    assert np.allclose(few, model.embed_images(images[:3], 100), atol=1e-5)
    assert handle.embed_images.remote([]).result().shape == (0, model.dim)


@with_ray
def test_errors_are_those_of_the_model_and_of_the_server(running: tuple[Any, int], model: Model) -> None:
    handle, port = running
    with pytest.raises(ImageError, match="image 1 is not an image") as refused:
        handle.embed_images.remote([jpeg(0), b"broken"]).result()
    # Ray's own error of this class has the class's code, and the model's error within it.
    assert refused.value.cause.code == "image_unsupported"  # type: ignore[attr-defined]
    with pytest.raises(TextError, match="surrogate"):
        handle.embed_texts.remote(["\ud800"]).result()
    with pytest.raises(urllib.error.HTTPError) as answer:
        post(port, "/v1/embeddings", {"model": NAME, "input": ["data:image/jpeg;base64,AAAA"]})
    assert answer.value.code == 400
    assert "image" in json.load(answer.value)["error"]["code"]
    assert answer.value.headers["content-type"] == "application/json"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as ready:
        assert ready.headers["x-fgclip-manifest-sha256"] == model.bundle.manifest_sha256


@with_ray
@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({}, "bundle"),
        ({"bundle": NAME, "replicas": 2}, "replicas"),
        ({"bundle": NAME, "threads": "two"}, "threads"),
        ({"bundle": NAME, "threads": 0}, "threads is 0"),
        ({"bundle": NAME, "num_gpus": -1}, "num_gpus is -1"),
        ({"bundle": NAME, "min_replicas": 4, "max_replicas": 2}, "max_replicas is 2, and min_replicas 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ArgumentError, match=part):
        build(settings)


def test_the_example_has_settings_that_there_are() -> None:
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    (application,) = document["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is build
    assert msgspec.convert(application["args"], Deployment).max_replicas == 8
    if _RAY:
        from ray.serve.schema import ServeDeploySchema

        assert ServeDeploySchema(**document).applications[0].route_prefix == "/"


@pytest.mark.skipif(_RAY, reason="ray is installed")
def test_without_ray_a_sentence_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"fgclip-rt\[ray-serve\]"):
        build({"bundle": NAME})
