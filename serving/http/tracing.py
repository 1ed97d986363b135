"""Spans of requests, if OpenTelemetry's API is installed. Without an SDK, and without the API, nothing is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from fgclip_rt import __version__

from ..batcher import BatchRun
from ..items import Item
from .settings import PROBES

try:
    from opentelemetry import propagate, trace
except ImportError:
    trace = None

#: Names of our attributes, in one place. Those of HTTP are OpenTelemetry's own.
METHOD, ROUTE, STATUS = "http.request.method", "http.route", "http.response.status_code"
MODEL, CODE = "gen_ai.request.model", "fgclip.error.code"
ITEMS, SECONDS = "fgclip.items", "fgclip.seconds"
GRAPH, LENGTH, BATCH_ITEMS, BATCH_ROOM = "fgclip.graph", "fgclip.length", "fgclip.batch.items", "fgclip.batch.room"


class _Stage(msgspec.Struct, frozen=True):
    """A part of a request's time, in nanoseconds since the epoch."""

    name: str
    begun: int
    ended: int
    attributes: Mapping[str, Any]


class _Journey(msgspec.Struct, eq=False):
    """A request's items on their way. Threads add to it, and the request reads it when it is answered."""

    prepared: list[tuple[int, int]] = msgspec.field(default_factory=list)
    stages: list[_Stage] = msgspec.field(default_factory=list)


class Tracing:
    """Makes a span of each request, and below it one of preparing its items, and of each batch's wait and run.

    The batcher's threads only note times; the spans are made when the request is answered, in its own context.
    """

    def __init__(self) -> None:
        """Use the provider of spans that the process has, or is given later."""
        self._tracer = None if trace is None else trace.get_tracer("fgclip_rt.serving", __version__)
        self._journeys: dict[int, _Journey] = {}

    @contextmanager
    def request(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> Iterator[Callable[[int, str | None], None]]:
        """The span of a request, below the caller's if its headers say so.

        Yields:
            A function that takes the answer's status, and the error's code or None.
        """
        if self._tracer is None or path in PROBES:
            yield _ignore
            return
        with self._tracer.start_as_current_span(
            f"{method} {path}",
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes={METHOD: method, ROUTE: path},
        ) as span:

            def answered(status: int, code: str | None) -> None:
                span.set_attribute(STATUS, status)
                if code is not None:
                    span.set_attribute(CODE, code)
                if status >= 500:
                    span.set_status(trace.StatusCode.ERROR)

            yield answered

    @contextmanager
    def watch(self, items: Sequence[Item], model: str) -> Iterator[None]:
        """Note what happens to the items of the current request, and make spans of it in the end."""
        span = None if self._tracer is None else trace.get_current_span()
        if span is None or not span.is_recording():
            yield
            return
        span.set_attributes({MODEL: model, ITEMS: len(items)})
        journey = _Journey()
        # An item that still runs is held by the batcher, so that no other has its number.
        self._journeys.update(dict.fromkeys(map(id, items), journey))
        try:
            yield
        finally:
            for item in items:
                self._journeys.pop(id(item), None)
            _write(self._tracer, journey)

    def on_prepared(self, item: Item, seconds: float) -> None:
        """Note that an item was prepared."""
        journey = self._journeys.get(id(item))
        if journey is not None:
            ended = time.time_ns()
            journey.prepared.append((ended - _nanoseconds(seconds), ended))

    def on_batch(self, run: BatchRun) -> None:
        """Note that a batch ran, in each request that had items in it."""
        if not self._journeys:
            return
        waits: dict[int, tuple[_Journey, list[float]]] = {}
        for item, waited in zip(run.inputs, run.waited, strict=True):
            journey = self._journeys.get(id(item))
            if journey is not None:
                waits.setdefault(id(journey), (journey, []))[1].append(waited)
        ended = time.time_ns()
        begun = ended - _nanoseconds(run.seconds)
        for journey, waited_each in waits.values():
            about = {GRAPH: run.lane.graph, LENGTH: run.lane.length, ITEMS: len(waited_each)}
            journey.stages.append(_Stage("queue", begun - _nanoseconds(max(waited_each)), begun, about))
            batch = {**about, BATCH_ITEMS: run.items, BATCH_ROOM: run.room}
            if run.error is not None:
                batch[CODE] = run.error
            journey.stages.append(_Stage("run", begun, ended, batch))


def _write(tracer: Any, journey: _Journey) -> None:
    """Make the spans of a journey, below the current one."""
    stages = list(journey.stages)
    if prepared := list(journey.prepared):
        begun, ended = min(each[0] for each in prepared), max(each[1] for each in prepared)
        busy = sum(each[1] - each[0] for each in prepared) / 1e9
        stages.insert(0, _Stage("prepare", begun, ended, {ITEMS: len(prepared), SECONDS: busy}))
    for stage in stages:
        span = tracer.start_span(stage.name, attributes=stage.attributes, start_time=stage.begun)
        span.end(stage.ended)


def _ignore(status: int, code: str | None) -> None:
    """Nobody wants to know."""


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
