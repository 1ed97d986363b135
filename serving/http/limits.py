"""Bounds on the bodies of requests: of one, and of all that are held in memory at the same time."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .failures import RequestError, failure
from .settings import Settings


class BodyLimits:
    """Refuses a body before it is read, if its length is stated, and while it is read otherwise.

    A body that comes too slowly is refused too, or a few clients could hold all the memory that bodies may take.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Stand before an application."""
        self._app = app
        self._settings = settings
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer that its body is too large, or that too many are being read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._settings.max_body
        headers = Headers(scope=scope)
        stated = headers.get("content-length", "")
        # Of a body in chunks nobody knows the length.
        length = int(stated) if stated.isdecimal() else most if "transfer-encoding" in headers else 0
        if length > most:
            await failure(too_large(most))(scope, receive, send)
            return
        if self._held + length > max(most, self._settings.max_buffered):
            await failure(
                RequestError(f"bodies of {self._held:,} bytes are being read already; ask again later.", "overloaded")
            )(scope, receive, send)
            return
        read, whole = 0, False
        until = asyncio.get_running_loop().time() + self._settings.timeout

        async def counted() -> Message:
            nonlocal read, whole
            try:
                # After the body only the client's leaving can come.
                async with asyncio.timeout_at(None if whole else until):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    f"the body did not come within {self._settings.timeout:g} s; send it faster, or a smaller one.",
                    "deadline_passed",
                ) from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > most:
                raise too_large(most)
            return message

        self._held += length
        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= length


def too_large(most: int) -> RequestError:
    """The error of a body over the limit."""
    return RequestError(
        f"the body has more than {most:,} bytes; send fewer or smaller images at once, or start the server with a "
        "larger --max-body.",
        "body_too_large",
    )
