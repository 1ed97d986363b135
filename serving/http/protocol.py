"""HTTP/1.1 as uvicorn speaks it, with a bound on the time of a request's head; uvicorn bounds its size only."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def http_within(seconds: float) -> type[H11Protocol]:
    """A protocol that closes a connection whose next request has no whole head after ``seconds``.

    The time of the first request begins with the connection, and of each other one with its first byte: until then
    uvicorn's own limit of idle connections holds.
    """

    class Within(_BoundedH11):
        limit = seconds

    return Within


class _BoundedH11(H11Protocol):
    limit: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limit, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
