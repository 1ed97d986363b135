"""Contracts of other servers: requests as their own clients send them, and the exact shapes of the answers."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fgclip_rt.model import Model, load
from fgclip_rt.pocket.scenes import draw, make_scene
from http_server import NAME, Server, end, failure, png, start, uri

#: A name that immich knows, and one that clients of the hosted FG-CLIP use.
ALIAS, HOSTED = "ViT-B-16-SigLIP2__webli", "fg-clip"
CLIP_IMAGE = {"clip": {"visual": {"modelName": ALIAS}}}
FACES = {"facial-recognition": {"detection": {"modelName": "buffalo_l", "options": {"minScore": 0.7}}}}


class Other(BaseHTTPRequestHandler):
    """Immich's own machine learning, in so far as it answers something and keeps what it was sent."""

    seen: tuple[str, str, bytes] = ("", "", b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        Other.seen = (self.path, self.headers["content-type"], body)
        answer = b'{"facial-recognition": [], "imageHeight": 1, "imageWidth": 2}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def other() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as made:
        threading.Thread(target=made.serve_forever).start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def server(other: ThreadingHTTPServer) -> Iterator[Server]:
    forward = f"http://127.0.0.1:{other.server_port}"
    made = start("--alias", ALIAS, "--alias", HOSTED, "--forward", forward)
    yield made
    end(made)


@pytest.fixture(scope="module")
def alone() -> Iterator[Server]:
    """A server that forwards nothing."""
    made = start()
    yield made
    end(made)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def scene() -> bytes:
    return png(draw(make_scene(21)).resize((200, 120)))


def predict(server: Server, entries: Any, **parts: Any) -> httpx.Response:
    """Ask as immich does: Node's fetch sends a Blob as the file "blob" of unknown type, and everything else as text."""
    form = {"entries": (None, json.dumps(entries))}
    image = {"image": ("blob", parts["image"], "application/octet-stream")} if "image" in parts else {}
    text = {"text": (None, parts["text"])} if "text" in parts else {}
    return server.http.post("/predict", files={**form, **image, **text})


def test_immich_gets_the_vector_of_an_image_as_a_string_and_its_size(
    server: Server, model: Model, scene: bytes
) -> None:
    answer = predict(server, CLIP_IMAGE, image=scene).json()
    assert list(answer) == ["clip", "imageHeight", "imageWidth"]
    assert (answer["imageHeight"], answer["imageWidth"]) == (120, 200)
    assert isinstance(answer["clip"], str)
    assert_allclose(json.loads(answer["clip"]), model.embed_images([scene])[0], atol=1e-6)


def test_immich_gets_the_vector_of_a_text(server: Server, model: Model) -> None:
    entries = {"clip": {"textual": {"modelName": ALIAS, "options": {"language": "de-DE"}}}}
    answer = predict(server, entries, text="a red star").json()
    assert list(answer) == ["clip"]
    assert_allclose(json.loads(answer["clip"]), model.embed_texts(["a red star"])[0], atol=1e-6)


def test_immich_finds_the_server_alive(server: Server) -> None:
    answer = server.http.get("/ping")
    assert (answer.status_code, answer.text) == (200, "pong")


def test_immichs_other_tasks_are_forwarded_as_they_came(server: Server, scene: bytes) -> None:
    answer = predict(server, FACES, image=scene)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"facial-recognition": [], "imageHeight": 1, "imageWidth": 2}
    path, media, body = Other.seen
    assert path == "/predict"
    assert media == answer.request.headers["content-type"]
    assert len(body) == int(answer.request.headers["content-length"])
    assert scene in body
    assert json.dumps(FACES).encode() in body


def test_a_task_that_nobody_has_is_refused(alone: Server, scene: bytes) -> None:
    answer = predict(alone, FACES, image=scene)
    assert failure(answer) == (404, "task_missing")
    assert "--forward" in answer.json()["detail"]


def test_a_server_that_cannot_be_forwarded_to_is_named(scene: bytes) -> None:
    server = start("--forward", "http://127.0.0.1:9")
    try:
        answer = predict(server, FACES, image=scene)
        assert failure(answer) == (502, "forward_failed")
        assert "http://127.0.0.1:9" in answer.json()["detail"]
    finally:
        end(server)


@pytest.mark.parametrize(
    ("entries", "parts", "status", "code"),
    [
        ({"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}, {"image": b"x"}, 404, "model_not_found"),
        (CLIP_IMAGE, {"image": b"no image"}, 400, "image_unsupported"),
        (CLIP_IMAGE, {}, 400, "request_invalid"),
        (CLIP_IMAGE, {"text": "a"}, 400, "request_invalid"),
        ({"clip": {"audio": {"modelName": ALIAS}}}, {"text": "a"}, 422, "entries_invalid"),
        ({"clip": {}}, {"text": "a"}, 422, "entries_invalid"),
        ({"clip": {"textual": {}}}, {"text": "a"}, 422, "entries_invalid"),
        ({**CLIP_IMAGE, **FACES}, {"image": b"x"}, 422, "entries_invalid"),
        ([], {"text": "a"}, 422, "entries_invalid"),
    ],
)
def test_immich_is_told_of_bad_entries(
    server: Server, entries: Any, parts: dict[str, Any], status: int, code: str
) -> None:
    assert failure(predict(server, entries, **parts)) == (status, code)


def test_a_prediction_is_a_form_with_entries(server: Server) -> None:
    assert failure(server.post("/predict", entries="{}")) == (415, "unsupported_media_type")
    assert failure(server.http.post("/predict", files={"text": (None, "a")})) == (422, "entries_invalid")
    assert failure(server.http.post("/predict", files={"entries": (None, "{"), "text": (None, "a")}))[0] == 422


@pytest.mark.parametrize("spelling", [uri, lambda data: base64.b64encode(data).decode()])
def test_the_hosted_body_gets_the_hosted_answer(server: Server, model: Model, scene: bytes, spelling: Any) -> None:
    texts = ["a red star", "一只黑猫"]
    answer = server.post("/models/interface", model=HOSTED, input_type="text", texts=texts).json()
    assert_allclose(answer.pop("data")["embeddings"]["float"], model.embed_texts(texts), atol=1e-6)
    assert answer == {}
    answer = server.post("/models/interface", model=HOSTED, input_type="image", images=[spelling(scene)]).json()
    assert_allclose(answer["data"]["embeddings"]["float"], model.embed_images([scene]), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"texts": ["a"]}, 400, "request_invalid"),
        ({"input_type": "text", "images": ["a"]}, 400, "request_invalid"),
        ({"input_type": "image", "texts": ["a"]}, 400, "request_invalid"),
        ({"input_type": "image", "images": ["!"]}, 400, "image_damaged"),
        ({"input_type": "image", "images": ["http://localhost/a.png"]}, 400, "url_refused"),
        ({"input_type": "text", "texts": ["a"], "model": "fg-clip9"}, 404, "model_not_found"),
    ],
)
def test_a_bad_hosted_body_is_told_so(server: Server, body: dict[str, Any], status: int, code: str) -> None:
    assert failure(server.post("/models/interface", **body)) == (status, code)


def test_coheres_inputs_are_texts_images_or_both_in_order(server: Server, model: Model, scene: bytes) -> None:
    text, image = model.embed_texts(["a red star"], "box")[0], model.embed_images([scene])[0]
    inputs = [
        {"content": [{"type": "image_url", "image_url": {"url": uri(scene)}}]},
        {"content": [{"type": "text", "text": "a red star"}]},
    ]
    for body, vectors, texts, billed in (
        ({"texts": ["a red star"], "walk_type": "box"}, [text], ["a red star"], (True, 0)),
        ({"images": [uri(scene)]}, [image], [], (False, 1)),
        ({"inputs": inputs, "walk_type": "box"}, [image, text], [], (True, 1)),
    ):
        answer = server.post("/v2/embed", model=NAME, input_type="search_document", **body).json()
        assert list(answer["embeddings"]) == ["float"]
        assert_allclose(answer["embeddings"]["float"], vectors, atol=1e-6)
        assert answer["texts"] == texts
        assert answer["response_type"] == "embeddings_by_type"
        units = answer["meta"]["billed_units"]
        assert (units["input_tokens"] > 0, units["images"]) == billed
    assert len({server.post("/v2/embed", texts=["a"]).json()["id"] for _ in range(2)}) == 2


def test_coheres_types_are_those_that_were_asked_for(server: Server, model: Model) -> None:
    types = ["float", "base64", "binary", "ubinary"]
    found = server.post("/v2/embed", texts=["a star", "a moon"], embedding_types=types).json()["embeddings"]
    assert sorted(found) == sorted(types)
    vectors = np.array(found["float"], np.float32)
    assert_array_equal([np.frombuffer(base64.b64decode(row), "<f4") for row in found["base64"]], vectors)
    bits = np.unpackbits(np.array(found["ubinary"], np.uint8), axis=1)[:, : model.dim]
    assert_array_equal(bits, vectors > 0)
    assert_array_equal(np.array(found["binary"]) + 128, found["ubinary"])


LONG = "a star and " * 200


@pytest.mark.parametrize(
    ("body", "code", "part"),
    [
        ({}, "request_invalid", "none of texts, images and inputs"),
        ({"texts": []}, "request_invalid", "none of texts"),
        ({"texts": ["a"], "images": ["b"]}, "request_invalid", "texts and images"),
        ({"texts": ["a"], "embedding_types": ["int8"]}, "request_invalid", "ubinary"),
        ({"texts": ["a"], "output_dimension": 7}, "request_invalid", "output_dimension is 7"),
        ({"texts": ["a"], "truncate": "START"}, "request_invalid", "'END'"),
        ({"texts": [LONG], "truncate": "NONE"}, "text_truncated", "input 0"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}] * 2}]}, "request_invalid", "input 0 has 2 parts"),
    ],
)
def test_a_bad_request_of_coheres_is_told_so(server: Server, body: dict[str, Any], code: str, part: str) -> None:
    answer = server.post("/v2/embed", **body)
    assert failure(answer) == (400, code)
    assert part in answer.json()["detail"]


def test_a_text_that_is_too_long_loses_its_end_by_default(server: Server, model: Model) -> None:
    found = server.post("/v2/embed", texts=[LONG]).json()["embeddings"]["float"]
    assert_allclose(found, model.embed_texts([LONG]), atol=1e-6)


def test_the_adapters_need_a_key_if_there_are_keys(tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("first\n")
    server = start("--api-key-file", str(tmp_path / "keys"))
    try:
        for path in ("/v2/embed", "/models/interface", "/predict"):
            assert failure(server.post(path, texts=["a"], input_type="text")) == (401, "unauthorized")
        assert server.http.get("/ping").text == "pong"
    finally:
        end(server)
