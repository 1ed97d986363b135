"""Spans: which there are, how they hang together, and that nothing is missed without OpenTelemetry."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once
from starlette.testclient import TestClient

from fgclip_rt.model import load
from fgclip_rt.pocket.scenes import draw, make_scene
from fgclip_rt.serving import Batcher
from fgclip_rt.serving.http import Application, Observer, Settings
from http_server import NAME, png, uri


@pytest.fixture(scope="module")
def collected() -> Iterator[InMemorySpanExporter]:
    """Collects spans, in a provider that goes with the tests."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", None)
        patch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
        trace.set_tracer_provider(provider)
        yield made


@pytest.fixture
def exporter(collected: InMemorySpanExporter) -> InMemorySpanExporter:
    """It again, and empty."""
    collected.clear()
    return collected


@pytest.fixture(scope="module")
def client(collected: InMemorySpanExporter) -> Iterator[TestClient]:  # noqa: ARG001 (it is there first)
    def open_batcher(observer: Observer) -> Batcher:
        return Batcher(load(NAME), on_batch=observer.on_batch, on_prepared=observer.on_prepared)

    with TestClient(Application(open_batcher, Settings())) as made:
        while made.get("/readyz").status_code != 200:
            time.sleep(0.02)
        yield made


def spans(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    """The spans that are over, by name."""
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def test_a_request_has_spans_of_its_preparation_and_of_each_batch(
    client: TestClient, exporter: InMemorySpanExporter
) -> None:
    image = uri(png(draw(make_scene(21))))
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    answer = client.post("/v1/embeddings", json={"input": ["a star", "a moon", image]}, headers=parent)
    assert answer.status_code == 200
    found = spans(exporter)
    (request,) = found["POST /v1/embeddings"]
    assert request.kind == trace.SpanKind.SERVER
    assert request.parent is not None
    assert request.parent.span_id == 0xB7AD6B7169203331
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "gen_ai.request.model": NAME,
        "fgclip.items": 3,
    }
    (prepare,) = found["prepare"]
    attributes: Any = prepare.attributes
    assert attributes["fgclip.items"] == 3
    assert 0 < attributes["fgclip.seconds"] < 30
    runs: list[Any] = [run.attributes for run in found["run"]]
    assert {run["fgclip.graph"] for run in runs} == {"text", "vision"}
    assert sum(run["fgclip.items"] for run in runs) == 3
    assert all(run["fgclip.items"] <= run["fgclip.batch.items"] <= run["fgclip.batch.room"] for run in runs)
    assert len(found["queue"]) == len(runs)
    for child in (prepare, *found["queue"], *found["run"]):
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
        assert request.start_time <= child.start_time <= child.end_time <= request.end_time
    for queue, run in zip(found["queue"], found["run"], strict=True):
        assert queue.end_time == run.start_time


def test_a_refused_request_has_its_code(client: TestClient, exporter: InMemorySpanExporter) -> None:
    client.post("/v1/embeddings", json={"input": [1]})
    (request,) = spans(exporter)["POST /v1/embeddings"]
    attributes: Any = request.attributes
    assert attributes["fgclip.error.code"] == "tokens_refused"
    assert attributes["http.response.status_code"] == 400
    # The client is at fault, and not the server.
    assert request.status.status_code == trace.StatusCode.UNSET


def test_probes_leave_no_spans(client: TestClient, exporter: InMemorySpanExporter) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/ping"):
        assert client.get(path).status_code == 200
    assert spans(exporter) == {}


WITHOUT = """
import sys
for name in ("opentelemetry", "opentelemetry.trace"):
    sys.modules[name] = None
import json
from fgclip_rt.serving.http.tracing import Tracing
tracing = Tracing()
with tracing.request("POST", "/a", {}) as answered, tracing.watch([], "m"):
    answered(200, None)
print(json.dumps("without"))
"""


def test_without_opentelemetry_nothing_is_recorded() -> None:
    ended = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ended.stdout) == "without"
