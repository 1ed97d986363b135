"""Clients of a server, in a process and a thread of their own: requests that are bytes already, on kept connections.

Each client sends its next request when it has read the answer to the one before. A client that is told to ask again
later waits as long as it was told.
"""

from __future__ import annotations

import heapq
import selectors
import socket
from base64 import b64decode
from collections import Counter
from time import perf_counter, process_time

import msgspec
import numpy as np

from fgclip_rt.children import serve

#: Seconds beyond a request's own after which an answer that has not come counts as lost.
_PATIENCE = 10.0

#: Bytes that are read at once.
_CHUNK = 2**18

#: Numbers of a vector that may differ by this much: a batch of other items is another order of additions.
_TOLERANCE = 1e-4


class Drive(msgspec.Struct, frozen=True):
    """Requests to send.

    Attributes:
        port: port of the server on this machine.
        bodies: JSON documents of ``/v1/embeddings``, each with one input, sent one after the other and again.
        vectors: for each body the numbers of its vector; empty compares none.
        clients: number of connections.
        seconds: time after which no request is sent.
        most: number of requests after which none is sent; None has no limit.
        timeout: seconds that each request allows.
    """

    port: int
    bodies: list[str]
    vectors: list[list[float]]
    clients: int
    seconds: float
    most: int | None = None
    timeout: float = 60.0


class Driven(msgspec.Struct, frozen=True):
    """Answers that came.

    Attributes:
        seconds: from the first request to the last answer.
        statuses: number of answers by HTTP status.
        latencies: seconds of each answer with status 200.
        lost: requests that were not answered.
        surplus: connections on which more came than was asked for.
        wrong: answers with another vector than that of their request.
        busy: seconds of processor time that the clients took.
    """

    seconds: float
    statuses: dict[str, int]
    latencies: list[float]
    lost: int
    surplus: int
    wrong: int
    busy: float


class _Client:
    """A connection with at most one request on its way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent = memoryview(b"")
        self.received = bytearray()
        self.body: int | None = None
        self.begun = 0.0

    def answer(self) -> tuple[int, bytes, bytes] | None:
        """Status, headers and body of the answer, if all of it is there; it is taken out of what was received."""
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.received[:end]).lower()
        length = int(_header(head, b"content-length") or 0)
        if len(self.received) < end + 4 + length:
            return None
        body = bytes(self.received[end + 4 : end + 4 + length])
        del self.received[: end + 4 + length]
        return int(head[9:12]), head, body


class Load:
    """The clients of one :class:`Drive`."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._requests = [_request(body, drive.timeout) for body in drive.bodies]
        self._selector = selectors.DefaultSelector()
        self._sent = 0
        self._statuses: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._answers: list[tuple[int, bytes]] = []
        self._lost = self._surplus = 0
        #: Clients that wait before they ask again, by the time at which they do.
        self._resting: list[tuple[float, int, _Client]] = []

    def run(self) -> Driven:
        busy, begun = process_time(), perf_counter()
        until = begun + self._drive.seconds
        clients = [_Client(self._drive.port) for _ in range(self._drive.clients)]
        for client in clients:
            self._selector.register(client.socket, selectors.EVENT_READ, client)
            self._send(client, until)
        last = begun
        while any(client.body is not None for client in clients) or self._resting:
            now = perf_counter()
            if now > until + self._drive.timeout + _PATIENCE:
                break
            while self._resting and (self._resting[0][0] <= now or now >= until):
                self._send(heapq.heappop(self._resting)[2], until)
            for key, events in self._selector.select(0.05 if not self._resting else 0.005):
                client = key.data
                if events & selectors.EVENT_WRITE:
                    self._write(client)
                # What was written to may have been closed.
                if events & selectors.EVENT_READ and client.socket.fileno() >= 0 and self._read(client, until):
                    last = perf_counter()
        for client in clients:
            self._give_up(client)
        self._selector.close()
        busy = process_time() - busy
        return Driven(last - begun, self._statuses, self._latencies, self._lost, self._surplus, self._wrong(), busy)

    def _send(self, client: _Client, until: float) -> None:
        now = perf_counter()
        if now >= until or self._sent == self._drive.most or client.socket.fileno() < 0:
            return
        client.body = self._sent % len(self._requests)
        self._sent += 1
        client.unsent, client.begun = memoryview(self._requests[client.body]), now
        self._write(client)

    def _write(self, client: _Client) -> None:
        try:
            client.unsent = client.unsent[client.socket.send(client.unsent) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._give_up(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        if self._selector.get_key(client.socket).events != wanted:
            self._selector.modify(client.socket, wanted, client)

    def _read(self, client: _Client, until: float) -> bool:
        """Read what is there; whether it was the end of an answer. A connection that was closed is given up."""
        try:
            data = client.socket.recv(_CHUNK)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self._give_up(client)
            return False
        client.received += data
        answer = client.answer()
        if answer is None:
            return False
        now = perf_counter()
        if client.body is None or client.received:
            self._surplus += 1
            self._give_up(client)
            return False
        status, head, body = answer
        self._statuses[str(status)] += 1
        if status == 200:
            self._latencies.append(now - client.begun)
            self._answers.append((client.body, body))
        client.body = None
        rest = _header(head, b"retry-after-ms")
        if status == 429 and rest is not None:
            heapq.heappush(self._resting, (now + int(rest) / 1000, id(client), client))
        else:
            self._send(client, until)
        return True

    def _give_up(self, client: _Client) -> None:
        """Close a connection. A request that is on its way is lost."""
        if client.socket.fileno() >= 0:
            self._lost += client.body is not None
            client.body = None
            self._selector.unregister(client.socket)
            client.socket.close()

    def _wrong(self) -> int:
        if not self._drive.vectors:
            return 0
        vectors = np.array(self._drive.vectors, np.float32)
        found = [
            np.frombuffer(b64decode(msgspec.json.decode(body)["data"][0]["embedding"]), "<f4")
            for _, body in self._answers
        ]
        numbers = [number for number, _ in self._answers]
        return int((np.abs(np.array(found) - vectors[numbers]).max(-1) > _TOLERANCE).sum()) if found else 0


def _header(head: bytes, name: bytes) -> bytes | None:
    _, found, rest = head.partition(b"\r\n" + name + b": ")
    return rest.partition(b"\r\n")[0] if found else None


def _request(body: str, timeout: float) -> bytes:
    data = body.encode()
    lines = (
        "POST /v1/embeddings HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(data)}",
        f"x-request-timeout-ms: {1000 * timeout:.0f}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


if __name__ == "__main__":
    serve(Drive, lambda drive, answer: answer(Load(drive).run()))
