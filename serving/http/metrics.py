"""Counters and histograms, in Prometheus's format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from fgclip_rt import __version__

from ..batcher import Batcher, BatchRun
from ..items import Item, TextItem
from .service import Service

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The numbers of one server, in a registry of its own: a process may have several."""

    def __init__(self) -> None:
        """Begin with zeros."""
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "fgclip_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "fgclip_request_seconds", "From a request to its answer.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.rejected = Counter("fgclip_rejected", "Requests that failed, by code.", ["code"], registry=registry)
        self.items = Counter(
            "fgclip_items",
            "Items that ran, by graph, length and outcome.",
            ["graph", "length", "outcome"],
            registry=registry,
        )
        self.batches = Counter("fgclip_batches", "Batches that ran.", ["graph", "length"], registry=registry)
        self.fill = Histogram(
            "fgclip_batch_fill_ratio",
            "Items of a batch, of those that it has room for.",
            ["graph", "length"],
            buckets=(0.125, 0.25, 0.5, 0.75, 1),
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "fgclip_queue_seconds",
            "Time that an item waits for its batch.",
            ["graph"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.run_seconds = Histogram(
            "fgclip_run_seconds", "Time that a batch takes.", ["graph", "length"], buckets=_SECONDS, registry=registry
        )
        self.prepare_seconds = Histogram(
            "fgclip_prepare_seconds",
            "Decoding and resizing, or tokenising.",
            ["kind"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._work = Gauge("fgclip_queue_work", "Patches and tokens that are not answered yet.", registry=registry)
        self._build = Info("fgclip_build", "Version, model, precision, digest and space.", registry=registry)

    def watch(self, batcher: Batcher) -> None:
        """Show a batcher's queue and model."""
        model = batcher.model
        self._work.set_function(lambda: batcher.work)
        self._build.info(
            {
                "version": __version__,
                "model": model.manifest.model.name,
                "precision": model.precision,
                "manifest_sha256": model.bundle.manifest_sha256,
                "space_sha256": model.space_sha256,
            }
        )

    def on_batch(self, run: BatchRun) -> None:
        """Count a batch."""
        graph, length = run.lane.graph, str(run.lane.length)
        self.batches.labels(graph, length).inc()
        self.items.labels(graph, length, run.error or "ok").inc(run.items)
        self.fill.labels(graph, length).observe(run.items / run.room)
        self.run_seconds.labels(graph, length).observe(run.seconds)
        for seconds in run.waited:
            self.queue_seconds.labels(graph).observe(seconds)

    def on_prepared(self, item: Item, seconds: float) -> None:
        """Count an item that was prepared."""
        self.prepare_seconds.labels("text" if isinstance(item, TextItem) else "image").observe(seconds)

    async def show(self, service: Service, request: Request) -> Response:  # noqa: ARG002
        """All of it as text."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
