"""Clients that are slow, many, broken or hostile: each request gets an answer, and nothing is held up or lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.checks import response_schema_conformance

from fgclip_rt import shipped
from fgclip_rt.benchmarks.pipeline import make_photos
from fgclip_rt.benchmarks.serving import Overload, measure_overload, quantile
from fgclip_rt.model import load
from fgclip_rt.pocket.scenes import draw, make_scene
from http_server import NAME, Server, end, failure, png, start, uri

#: Statuses of answers to requests that are at fault.
FAULTS = {400, 404, 405, 413, 415, 422}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = start("--timeout", "2s")
    yield made
    end(made)
    assert made.process.returncode == 0


def head(length: int, path: str = "/v1/embeddings") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: a", "content-type: application/json", f"content-length: {length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def connect(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(30)
    return connection


def is_well(server: Server) -> bool:
    """Whether a usual request is answered."""
    return server.post("/v1/embeddings", input="a star").status_code == 200


def test_a_slow_client_is_answered_and_holds_up_nobody(server: Server) -> None:
    body = b'{"input": "a slow star"}'
    with connect(server) as slow:
        for byte in (head(len(body)) + body)[:-1]:
            slow.sendall(bytes([byte]))
            time.sleep(0.002)
        assert is_well(server)
        slow.sendall(body[-1:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")


def test_a_body_that_does_not_come_is_given_up(server: Server) -> None:
    """It counts as held memory until then, so that a few such clients could have all of it."""
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in stalled:
            connection.sendall(head(60_000_000) + b"{")
        answers = [connection.recv(2000) for connection in stalled]
        # Headers and body of an answer may come apart.
        answers = [
            answer if b"}" in answer else answer + each.recv(2000)
            for answer, each in zip(answers, stalled, strict=True)
        ]
    statuses = {int(answer[9:12]) for answer in answers}
    # Those beyond the memory for bodies are refused at once.
    assert statuses == {429, 504}
    assert all(b"deadline_passed" in answer or b"overloaded" in answer for answer in answers)
    assert is_well(server)
    assert server.http.post("/v1/embeddings", content=b"x" * 60_000_000).status_code == 400


def test_a_head_that_does_not_come_is_given_up(server: Server) -> None:
    """The first of a connection, nothing of it at all, and one after an answer."""
    with connect(server) as begun, connect(server) as silent, connect(server) as second:
        begun.sendall(head(100)[:20])
        second.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"alive\n"):
            answer += second.recv(1000)
        second.sendall(head(100)[:20])
        for connection in (begun, silent, second):
            connection.settimeout(10)
            assert connection.recv(1000) == b""
    assert is_well(server)


def test_a_deadline_begins_when_the_request_comes(server: Server) -> None:
    body = b'{"input": "a late star"}'
    with connect(server) as connection:
        connection.sendall(head(len(body)).replace(b"host: a", b"host: a\r\nx-request-timeout-ms: 200"))
        time.sleep(0.3)
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 504")


def test_half_open_connections_are_given_up(server: Server) -> None:
    body = b'{"input": "half a star"}'
    for sent in (b"", b"POST ", head(100), head(len(body)) + body):
        with connect(server) as half:
            half.sendall(sent)
            half.shutdown(socket.SHUT_WR)
            while half.recv(1000):
                pass
    assert is_well(server)


def test_a_thousand_idle_connections_hold_up_nobody(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1100):
                stack.enter_context(connect(server))
            assert is_well(server)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_large_bodies(server: Server) -> None:
    assert failure(server.http.post("/v1/embeddings", content=b"[" * 63_000_000)) == (400, "request_invalid")
    with connect(server) as connection:
        # The length alone says that it is too large.
        connection.sendall(head(65_000_000 * 2))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    form = {"image": b"\0" * 20_000_000}
    assert failure(server.http.post("/v1/embeddings", files=form))[0] == 400
    assert is_well(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 100,
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["zeros", "version", "headers", "length", "chunks"],
)
def test_what_is_no_http_is_refused_by_the_parser(server: Server, sent: bytes) -> None:
    with connect(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        assert connection.recv(100)[9:12] in (b"400", b"431")
    assert is_well(server)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4),
    max_leaves=12,
)
KEYS = [
    "input",
    "messages",
    "model",
    "modality",
    "encoding_format",
    "walk_type",
    "max_num_patches",
    "on_error",
    "texts",
]
#: Bodies that are nearly right, or not at all.
BODIES = st.binary(max_size=200) | st.dictionaries(st.sampled_from(KEYS), JSON).map(
    lambda each: json.dumps(each).encode()
)
TYPES = [
    "application/json",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "text/plain",
    "a/b+json",
    "",
    "é",
]
PATHS = ["/v1/embeddings", "/v1/score", "/v1/regions", "/v1/masks", "/v1/dense"]
PART = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), media=st.sampled_from(TYPES), body=BODIES, part=st.booleans())
def test_no_body_makes_the_server_fail(server: Server, path: str, media: str, body: bytes, part: bool) -> None:
    data = PART + body + b"\r\n--x--\r\n" if part and "boundary" in media else body
    answer = server.http.post(path, content=data, headers={"content-type": media.encode()})
    if answer.status_code != 200:
        assert failure(answer)[0] in FAULTS


def test_answers_are_those_that_the_openapi_document_promises(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    found: list[str] = []

    def check(operation: schemathesis.APIOperation) -> None:  # type: ignore[type-arg]
        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def run(case: schemathesis.Case) -> None:
            answer = case.call()
            assert answer.status_code < 500, answer.text
            case.validate_response(answer, checks=[response_schema_conformance])

        run()

    for result in schema.get_all_operations():
        operation = result.ok()
        found.append(operation.path)
        check(operation)
    assert "/v1/embeddings" in found


def test_a_server_that_ends_under_load_loses_no_request_that_it_took() -> None:
    server = start("--linger", "200ms", "--log-json")
    answered: list[int] = []

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.suppress(OSError, http.client.HTTPException):  # the port is closed, or the connection
            for turn in range(10_000):
                body = json.dumps({"input": [f"text {number} {turn} {each}" for each in range(4)]})
                connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                if len(json.loads(answer.read()).get("data", [])) == 4 or answer.status != 200:
                    answered.append(answer.status)

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for client in clients:
        client.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    _, log = server.process.communicate(timeout=60)
    for client in clients:
        client.join(60)
    assert server.process.returncode == 0
    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    taken = [entry["status"] for entry in entries if entry.get("path") == "/v1/embeddings"]
    assert len(taken) > 16
    assert sorted(taken) == sorted(answered)


def test_a_full_server_refuses_before_it_reads_a_body() -> None:
    server = start("--max-work", "1024")
    try:
        # It takes a tenth of a second to decode.
        body = json.dumps({"input": uri(png(draw(make_scene(21)).resize((2000, 2000))))}).encode()
        with connect(server) as busy, connect(server) as refused:
            busy.sendall(head(len(body)) + body)
            until = time.monotonic() + 30
            while "fgclip_queue_work 1024.0" not in server.http.get("/metrics").text:
                assert time.monotonic() < until
            refused.sendall(head(1000))
            answer = refused.recv(2000)
            assert busy.recv(100).startswith(b"HTTP/1.1 200")
        assert answer.startswith(b"HTTP/1.1 429")
        assert is_well(server)
    finally:
        end(server)


def overload(folder: Path, seconds: float, size: int | None = None) -> Overload:
    photos = make_photos(folder, 16)
    if size is not None:
        for photo in photos:
            Image.open(photo).resize((size, size)).save(photo)
    model = load(NAME)
    begun = time.perf_counter()
    model.embed_images(photos)
    rate = len(photos) / (time.perf_counter() - begun)
    found = measure_overload(model, shipped.locate(NAME), photos, seconds, rate)
    assert (found.lost, found.surplus, found.wrong) == (0, 0, 0)
    assert set(found.statuses) == {"200", "429"}
    assert sum(found.statuses.values()) > found.clients
    return found


def test_ten_times_too_much_is_answered_or_refused(tmp_path: Path) -> None:
    overload(tmp_path, 2.0, 64)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [60.0, 3600.0])
def test_ten_times_too_much_for_long_leaves_memory_as_it_is(tmp_path: Path, seconds: float) -> None:
    found = overload(tmp_path, seconds)
    assert quantile(found.latencies, 0.99) <= found.deadline
    assert found.growth < (0.05 if seconds < 600 else 0.01)
