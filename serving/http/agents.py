"""Tools for agents at ``/mcp``: the Model Context Protocol over streamable HTTP, without sessions.

Each request is answered by one JSON document, so keys, limits and the log treat it as any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from urllib.parse import urlsplit

from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from fgclip_rt.index import ImageIndex
from fgclip_rt.model import Model

from ..mcp import Sources, add_tools, make_server
from .failures import RequestError
from .service import Service
from .settings import Settings

#: Calls that run at the same time. They run beside the queue, so they may not crowd it out.
_AT_ONCE = 4


class Agents:
    """The tools of a server, for agents."""

    def __init__(self, settings: Settings) -> None:
        """Prepare to answer; :meth:`offer` gives the tools, once the model is loaded."""
        self._sources = Sources(settings.roots)
        self._server = make_server()
        # Origins are checked here, with a sentence of ours; sessions would bind a client to one of several servers.
        self._app = self._server.streamable_http_app(
            json_response=True,
            stateless_http=True,
            max_request_body_size=settings.max_body,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Requests can be answered until the block ends."""
        async with self._server.session_manager.run():
            yield

    def offer(self, model: Model, index: ImageIndex | None) -> None:
        """Offer all tools that a model and an index allow.

        Raises:
            IndexFileError: the index is of another model.
        """
        add_tools(self._server, model, self._sources, index)

    async def mcp(self, service: Service, request: Request) -> Response:
        """The answer to one message of the protocol.

        Raises:
            RequestError: the request comes from a web page of elsewhere, or cannot be answered now or in time.
        """
        if not service.has_keys:
            _check_origin(request)
        service.check_room()
        answering = asyncio.ensure_future(self._answer(request, await request.body()))
        try:
            return await service.wait(request, answering)
        finally:
            answering.cancel()

    async def _answer(self, request: Request, body: bytes) -> Response:
        """What the protocol's library answers to a body."""
        sent: list[Message] = []
        asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return asked.pop() if asked else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        async with self._turns:
            await self._app(request.scope, receive, send)
        begin, *rest = sent
        response = Response(b"".join(message.get("body", b"") for message in rest), begin["status"])
        response.raw_headers = list(begin["headers"])
        return response


def _check_origin(request: Request) -> None:
    """Refuse the page of another site, which a browser on this machine shows: it could have its name lead here.

    With keys this is not asked, because such a page has none.

    Raises:
        RequestError: the request is of such a page.
    """
    origin = request.headers.get("origin")
    if origin is not None and not _is_local(origin):
        raise RequestError(
            f"the request comes from a page of {origin}; open one of this machine, or start the server with "
            "--api-key-file.",
            "origin_refused",
        )
    came_to, _ = request.scope["server"]
    host = request.headers.get("host", "")
    if ip_address(came_to).is_loopback and not _is_local(f"//{host}"):
        raise RequestError(
            f"the request is for the host {host!r}, and came to this machine's own address; ask for localhost, or "
            "start the server with --api-key-file.",
            "origin_refused",
        )


def _is_local(url: str) -> bool:
    """Whether the host of a URL can only be this machine."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
