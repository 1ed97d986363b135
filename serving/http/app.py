"""The application: which path is answered by which endpoint."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..batcher import Batcher
from . import embeddings, openapi, questions, search, status
from .adapters.cohere import cohere
from .adapters.hosted import hosted
from .adapters.immich import ping, predict
from .failures import RequestError, failure
from .limits import BodyLimits
from .metrics import Metrics
from .observer import Observer
from .service import Service
from .settings import PROBES, Settings
from .warm import warm

if TYPE_CHECKING:
    from .agents import Agents

Endpoint = Callable[[Service, Request], Awaitable[object]]

log = logging.getLogger("fgclip_rt.serving")

#: Paths that need no key: whoever may reach the port may know whether it is ready, how busy it is, and what it takes.
OPEN_PATHS = PROBES | {"/", "/openapi.json", "/docs"}


class Application:
    """A model behind HTTP, as an ASGI application.

    The model is loaded when the application starts, in the background: the port answers at once, and ``/readyz`` says
    when requests do.
    """

    def __init__(
        self,
        open_batcher: Callable[[Observer], Batcher],
        settings: Settings,
        on_failed: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """Make the application.

        Args:
            open_batcher: loads the model and makes its batcher, which reports to the observer.
            settings: how the server behaves.
            on_failed: is told why the model could not be loaded.

        Raises:
            ArgumentError: the file of keys, or the URL to forward to, cannot be used.
            IndexFileError: the index cannot be used.
        """
        self.service = Service(settings)
        self.metrics = Metrics()
        self.on_failed = on_failed
        self._open_batcher = open_batcher
        self._batcher: Batcher | None = None
        self._loading: asyncio.Task[None] | None = None
        routes = [
            self._route("/v1/embeddings", embeddings.embeddings, "POST"),
            self._route("/v1/score", questions.score, "POST"),
            self._route("/v1/regions", questions.regions, "POST"),
            self._route("/v1/masks", questions.masks, "POST"),
            self._route("/v1/dense", questions.dense_map, "POST"),
            self._route("/v1/search", search.search, "POST"),
            self._route("/v1/images/{row:int}", search.picture, "GET"),
            self._route("/v1/images/{row:int}/map", search.map_of, "GET"),
            self._route("/", search.page, "GET"),
            self._route("/v1/models", status.models, "GET"),
            self._route("/v2/embed", cohere, "POST"),
            self._route("/models/interface", hosted, "POST"),
            self._route("/predict", predict, "POST"),
            self._route("/ping", ping, "GET"),
            self._route("/livez", status.livez, "GET"),
            self._route("/readyz", status.readyz, "GET"),
            self._route("/metrics", self.metrics.show, "GET"),
            self._route("/openapi.json", openapi.document, "GET"),
            self._route("/docs", openapi.page, "GET"),
        ]
        self._agents: Agents | None = None
        if settings.mcp:
            # The protocol's library takes a second to import.
            from .agents import Agents

            self._agents = Agents(settings)
            routes.append(self._route("/mcp", self._agents.mcp, "POST"))
        self.app = Starlette(
            routes=routes,
            exception_handlers={HTTPException: self._http_error},
            lifespan=self._lifespan,
        )
        self._limited = BodyLimits(self.app, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._limited(scope, receive, send)

    def _route(self, path: str, endpoint: Endpoint, method: str) -> Route:
        async def answer(request: Request) -> Response:
            begun = time.perf_counter()
            request.state.came = time.monotonic()
            with self.service.tracing.request(method, path, request.headers) as answered:
                response, code = await self._answer(endpoint, request)
                answered(response.status_code, code)
            seconds = time.perf_counter() - begun
            self._count(request, path, response.status_code, code, seconds)
            return response

        return Route(path, answer, methods=[method])

    async def _answer(self, endpoint: Endpoint, request: Request) -> tuple[Response, str | None]:
        """The answer of an endpoint, or that to its error, and the error's code."""
        try:
            if request.url.path not in OPEN_PATHS:
                self.service.check_key(request)
            answer = await endpoint(self.service, request)
        except ClientDisconnect:
            # Nobody reads it; the number is the one that nginx gives to such requests.
            return Response(status_code=499), "client_gone"
        except Exception as error:
            known = RequestError.of(error)
            if known.code == "internal_error" and not isinstance(error, RequestError):
                log.exception("%s %s failed", request.method, request.url.path)
            return failure(known), known.code
        response = answer if isinstance(answer, Response) else _json(answer)
        if self.service.is_ready:
            model = self.service.model
            response.headers["x-fgclip-manifest-sha256"] = model.bundle.manifest_sha256
            response.headers["x-fgclip-space-sha256"] = model.space_sha256
        return response, None

    def _count(self, request: Request, path: str, status: int, code: str | None, seconds: float) -> None:
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        if code is not None:
            self.metrics.rejected.labels(code).inc()
        if path not in PROBES:
            client = request.client.host if request.client else "-"
            log.info(
                "%s %s %d in %.1f ms",
                request.method,
                path,
                status,
                seconds * 1000,
                extra={"client": client, "path": path, "status": status, "seconds": seconds, "code": code},
            )

    async def _http_error(self, request: Request, error: Exception) -> Response:
        """The answer to a request that no endpoint takes."""
        assert isinstance(error, HTTPException)
        known = {
            404: RequestError(f"there is no {request.url.path}; see /docs.", "not_found"),
            405: RequestError(f"{request.url.path} does not take {request.method}; see /docs.", "method_not_allowed"),
        }.get(error.status_code, RequestError(f"{error.detail}; see /docs."))
        self._count(request, "other", known.status, known.code, 0.0)
        return failure(known)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs without a server of its own, and is ready in the block. Requests that are left at its end fail.

        Raises:
            Exception: the model could not be loaded; it is the error of that.
        """
        async with self._lifespan(self.app):
            assert self._loading is not None
            await self._loading
            if self.service.failed is not None:
                raise self.service.failed
            yield

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:  # noqa: ARG002 (Starlette gives it)
        async with self._agents.running() if self._agents is not None else nullcontext():
            loading = self._loading = asyncio.create_task(self._load())
            try:
                yield
            finally:
                self.service.draining = True
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
                if self._batcher is not None:
                    # The server has waited for the requests before; what is left now has no client.
                    await asyncio.to_thread(self._batcher.close, 0.0)
                self.service.close()

    async def _load(self) -> None:
        """Load the model and run each of its graphs once."""
        try:
            observer = Observer(self.metrics, self.service.tracing)
            self._batcher = await asyncio.to_thread(self._open_batcher, observer)
            self.metrics.watch(self._batcher)
            await asyncio.to_thread(warm, self._batcher)
            if self._agents is not None:
                self._agents.offer(self._batcher.model, self.service.index if self.service.has_index else None)
            self.service.start(self._batcher)
        except Exception as error:
            self.service.failed = error
            self.on_failed(error)
            return
        log.info("ready: %r", self._batcher.model)


def _json(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
