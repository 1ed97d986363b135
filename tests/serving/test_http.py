"""The server as its clients see it: a real one on the loopback interface, in a process of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from fgclip_rt import answers
from fgclip_rt.model import Model, load
from fgclip_rt.pocket.scenes import draw, make_scene
from http_server import NAME, Server, end, failure, png, start, uri


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = start("--alias", "clip", "--max-body", "2MB", "--timeout", "30s")
    yield made
    end(made)
    assert made.process.returncode == 0


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def scene() -> bytes:
    return png(draw(make_scene(21)))


def test_openais_client_gets_the_models_vectors(server: Server, model: Model, scene: bytes) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    inputs = ["a red star", uri(scene), "一只黑猫"]
    texts = model.embed_texts([inputs[0], inputs[2]])
    expected = [texts[0], model.embed_images([scene])[0], texts[1]]
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = client.embeddings.create(model=NAME, input=inputs, **options)
        assert [entry.index for entry in answer.data] == [0, 1, 2]
        for entry, vector in zip(answer.data, expected, strict=True):
            found = entry.embedding
            if isinstance(found, str):
                found = np.frombuffer(base64.b64decode(found), "<f4")
            assert_allclose(found, vector, atol=1e-6)
    patches = len(model.prepare(scene).pixels)
    tokens = sum(len(model.tokenizer.encode(model.tokenizer.prepare(text)).ids) for text in (inputs[0], inputs[2]))
    assert answer.usage.prompt_tokens == tokens + patches
    assert [entry.id for entry in client.models.list()] == [NAME, "clip"]


def test_every_spelling_of_an_image_is_the_same_image(server: Server, scene: bytes) -> None:
    plain = base64.b64encode(scene).decode()
    spellings = [uri(scene), {"image": uri(scene)}, {"image": plain}, {"bytes": plain}]
    answers_ = [server.post("/v1/embeddings", input=spelling).json() for spelling in spellings]
    answers_.append(server.post("/v1/embeddings", input=[uri(scene)], modality="image").json())
    answers_.append(server.http.post("/v1/embeddings", files={"image": scene}).json())
    parts = [{"type": "image_url", "image_url": {"url": uri(scene)}}]
    answers_.append(server.post("/v1/embeddings", messages=[{"role": "user", "content": parts}]).json())
    vectors = np.array([answer["data"][0]["embedding"] for answer in answers_])
    assert_allclose(vectors, vectors[:1].repeat(len(vectors), 0), atol=1e-6)


def test_a_form_has_texts_files_and_settings(server: Server, model: Model, scene: bytes) -> None:
    form = {"text": ["a star", "a moon"], "walk_type": "box", "max_num_patches": "128"}
    answer = server.http.post("/v1/embeddings", data=form, files={"image": scene})
    found = np.array([entry["embedding"] for entry in answer.json()["data"]])
    assert_allclose(found[:2], model.embed_texts(form["text"], "box"), atol=1e-5)
    assert_allclose(found[2:], model.embed_images([scene], 128), atol=1e-5)


def test_a_bad_input_is_named_or_null(server: Server, scene: bytes) -> None:
    inputs = ["a star", {"bytes": "!!"}, uri(scene), {"bytes": base64.b64encode(b"no image").decode()}]
    refused = server.post("/v1/embeddings", input=inputs)
    assert failure(refused)[0] == 400
    assert "inputs 1, 3 failed" in refused.json()["detail"]
    data = server.post("/v1/embeddings", input=inputs, on_error="null").json()["data"]
    assert [entry["embedding"] is None for entry in data] == [False, True, False, True]
    assert "input 3" in data[3]["error"]


def test_unknown_keys_are_ignored_and_no_input_is_too_many(server: Server) -> None:
    answer = server.post("/v1/embeddings", input=[f"text {n}" for n in range(1000)], user="u", prefix="x")
    assert len(answer.json()["data"]) == 1000


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "request_invalid"),
        (b"\xff", 400, "request_invalid"),
        (b'{"input": 3}', 400, "request_invalid"),
        (b"[" * 100_000, 400, "request_invalid"),
        (b"{}", 400, "request_invalid"),
        (b'{"input": []}', 400, "request_invalid"),
        (b'{"input": [1, 2]}', 400, "tokens_refused"),
        (b'{"input": [[1, 2]]}', 400, "tokens_refused"),
        (b'{"input": "a", "dimensions": 3}', 400, "request_invalid"),
        (b'{"input": "a", "model": "gpt"}', 404, "model_not_found"),
        (b'{"input": "a", "walk_type": "essay"}', 400, "walk_type_missing"),
        (b'{"input": {"text": "a", "image": "b"}}', 400, "request_invalid"),
        (b'{"input": {"url": "file:///etc/passwd"}}', 400, "request_invalid"),
        (b'{"input": {"url": "http://localhost/a.png"}}', 400, "url_refused"),
        (b'{"input": "a", "modality": ["text", "text"]}', 400, "request_invalid"),
        (b'{"input": "a", "messages": []}', 400, "request_invalid"),
        (b'{"input": "data:image/png;base64,aGFsbG8=", "max_num_patches": 99999999}', 413, "work_too_large"),
    ],
)
def test_a_bad_request_is_told_so(server: Server, body: bytes, status: int, code: str) -> None:
    answer = server.http.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert failure(answer) == (status, code)


def test_the_edges_of_http(server: Server) -> None:
    assert failure(server.http.get("/nothing")) == (404, "not_found")
    assert failure(server.http.get("/v1/embeddings")) == (405, "method_not_allowed")
    assert failure(server.http.post("/v1/embeddings", content=b"a", headers={"content-type": "text/plain"})) == (
        415,
        "unsupported_media_type",
    )
    assert failure(server.http.post("/v1/embeddings", content=b"x" * 3_000_000)) == (413, "body_too_large")
    garbage = {"content-type": "multipart/form-data; boundary=x"}
    assert failure(server.http.post("/v1/embeddings", content=b"garbage", headers=garbage))[0] == 400
    assert failure(
        server.http.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-timeout-ms": "soon"})
    ) == (
        400,
        "request_invalid",
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_file_starts_no_program_and_no_bomb_goes_off(server: Server) -> None:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2**22))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    for data, code in ((b"%!PS-Adobe-3.0 EPSF-3.0\n", "image_unsupported"), (bomb, "image_too_large")):
        assert failure(server.http.post("/v1/embeddings", files={"image": data})) == (400, code)


def test_scores_are_the_commands(server: Server, model: Model, scene: bytes) -> None:
    texts = ["a big spotted yellow star", "a big striped yellow star"]
    found = server.post("/v1/score", images=[uri(scene)], texts=texts).json()
    expected = answers.score(model, [scene], texts, names=["image 0"])
    assert found["images"] == ["image 0"]
    assert_allclose(found["cosines"], expected.cosines, atol=1e-5)
    assert_allclose(found["probabilities"], expected.probabilities, atol=1e-3)


def test_regions_are_the_models(server: Server, model: Model, scene: bytes) -> None:
    boxes, texts = [[10, 20, 90, 120], [30.5, 40, 200, 180]], ["a star"]
    found = server.post("/v1/regions", image=uri(scene), boxes=boxes, texts=texts).json()
    vectors = model.embed_regions(scene, boxes)
    assert_allclose(found["embeddings"], vectors, atol=1e-5)
    assert_allclose(found["cosines"], vectors @ model.embed_texts(texts, "box").T, atol=1e-5)
    assert server.post("/v1/regions", image=uri(scene), boxes=boxes).json()["cosines"] == []
    bad = server.post("/v1/regions", image=uri(scene), boxes=[[9, 9, 1, 1]])
    assert failure(bad) == (400, "box_reversed")


def test_dense_maps_are_numbers_or_a_picture(server: Server, model: Model, scene: bytes) -> None:
    own = model.dense(scene)
    features = np.load(io.BytesIO(server.post("/v1/dense", image=uri(scene)).content))
    assert features.dtype == np.float16
    assert_allclose(features, own.features(), atol=2e-3)
    maps = np.load(io.BytesIO(server.post("/v1/dense", image=uri(scene), texts=["a star"]).content))
    assert_allclose(maps, own.map(["a star"]), atol=2e-3)
    picture = server.post("/v1/dense", image=uri(scene), texts=["a star"], format="png")
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).width > 100


def test_masks_are_refused_by_a_model_without_them(server: Server, scene: bytes) -> None:
    answer = server.post("/v1/masks", image=uri(scene), masks=[uri(scene)])
    assert failure(answer) == (400, "graph_missing")


def test_answers_say_of_which_bundle_they_are(server: Server, model: Model) -> None:
    digest = model.bundle.manifest_sha256
    headers = server.post("/v1/embeddings", input="a").headers
    assert headers["x-fgclip-manifest-sha256"] == digest
    assert headers["x-fgclip-space-sha256"] == model.space_sha256
    served = server.http.get("/v1/models").json()["data"][0]
    assert (served["manifest_sha256"], served["space_sha256"]) == (digest, model.space_sha256)
    assert served["embedding_size"] == model.dim


def test_the_documents_describe_every_path(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    page = server.http.get("/docs").text
    assert "//" not in page.replace("<!doctype", "")
    assert server.post("/v1/embeddings", input="a star").status_code == 200
    for path, methods in document["paths"].items():
        assert path in page
        for method in methods:
            answer = server.http.request(method, path.replace("{row}", "0"), json={} if method == "post" else None)
            # This server has no index, which is said of its paths.
            assert answer.status_code in (200, 400) or "no index" in answer.text, path
    assert 'fgclip_requests_total{path="/v1/embeddings",status="200"}' in server.http.get("/metrics").text


def test_many_clients_get_their_own_vectors(server: Server, model: Model) -> None:
    texts = [f"a {word} number {number}" for number in range(50) for word in ("star", "moon")]
    expected = model.embed_texts(texts)
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda text: server.post("/v1/embeddings", input=text).json(), texts))
    assert_allclose([answer["data"][0]["embedding"] for answer in found], expected, atol=1e-5)


def test_a_key_is_needed_if_there_are_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# staff\nfirst\nsecond\n")
    server = start("--api-key-file", str(tmp_path / "keys"))
    try:
        for header in (None, "Bearer third", "first", "Bearer # staff", "Bearer"):
            headers = {} if header is None else {"authorization": header}
            answer = server.http.post("/v1/embeddings", json={"input": "a"}, headers=headers)
            assert failure(answer) == (401, "unauthorized")
        good = server.http.post("/v1/embeddings", json={"input": "a"}, headers={"authorization": "Bearer second"})
        assert good.status_code == 200
    finally:
        end(server)


def test_too_much_work_is_refused_and_nothing_is_lost() -> None:
    server = start("--max-work", "128")
    try:
        with ThreadPoolExecutor(16) as clients:
            bodies = [{"input": [f"text {number}"], "walk_type": "box"} for number in range(200)]
            found = list(clients.map(lambda body: server.post("/v1/embeddings", **body), bodies))
        assert {answer.status_code for answer in found} <= {200, 429}
        refused = [answer for answer in found if answer.status_code == 429]
        for answer in refused:
            assert failure(answer) == (429, "overloaded")
            assert int(answer.headers["retry-after-ms"]) > 0
        assert sum(answer.status_code == 200 for answer in found) > 0
        assert server.post("/v1/embeddings", input="after").status_code == 200
        assert failure(server.post("/v1/embeddings", input=["a"] * 3)) == (413, "work_too_large")
    finally:
        end(server)


def test_a_server_that_is_told_to_end_answers_what_it_has_taken() -> None:
    server = start("--linger", "300ms")
    with ThreadPoolExecutor(8) as clients:
        bodies = [{"input": [f"text {number} {word}" for word in range(20)]} for number in range(8)]
        pending = [clients.submit(server.post, "/v1/embeddings", **body) for body in bodies]
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert server.http.get("/readyz").text == "draining\n"
        assert [each.result(60).status_code for each in pending] == [200] * 8
    assert server.process.wait(60) == 0
    with pytest.raises(httpx.TransportError):
        server.http.get("/livez")


def test_a_client_that_goes_away_leaves_nothing_behind(server: Server) -> None:
    body = json.dumps({"input": [f"going {number}" for number in range(200)]}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
    until = time.monotonic() + 30
    while "fgclip_queue_work 0.0" not in server.http.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_idle_connections_hold_up_nobody(server: Server) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 100\r\n")
    assert server.post("/v1/embeddings", input="a").status_code == 200
    for connection in (*idle, half):
        connection.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no-such-bundle"], "does not exist"),
        ([NAME, "--port", "70000"], "70000"),
        ([NAME, "--host", "no.such.host.invalid"], "cannot be listened on"),
        ([NAME, "--max-wait", "soon"], "5ms"),
        ([NAME, "--forward", "immich:3003"], "http://immich-machine-learning:3003"),
        ([NAME, "--forward", "http://[::1"], "http://immich-machine-learning:3003"),
        ([NAME, "--api-key-file", os.devnull], "holds no key"),
        ([NAME, "--precision", "int3", "--port", "0"], "int3"),
    ],
)
def test_a_server_that_cannot_start_says_why(arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "fgclip_rt", "serve", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode in (1, 2)
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_told(server: Server) -> None:
    command = [sys.executable, "-m", "fgclip_rt", "serve", NAME, "--port", str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "cannot be listened on" in ended.stderr
