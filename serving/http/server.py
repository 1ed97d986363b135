"""A process that serves an application until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType

import uvicorn

from fgclip_rt.errors import ArgumentError
from fgclip_rt.machine import keep_no_large_blocks

from .app import Application
from .protocol import http_within

#: Connections that wait to be accepted.
_BACKLOG = 2048

#: What a log record has besides its message.
_FIELDS = ("client", "path", "status", "seconds", "code")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ArgumentError: the host is unknown, or the port is taken or not allowed.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ArgumentError(f"{host}:{port} cannot be listened on ({why}); give another --host or --port.") from None
    return bound


def serve(application: Application, bound: socket.socket, *, linger: float, drain: float, log_json: bool) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    Then ``/readyz`` says so, while requests are still taken for ``linger`` seconds, because a load balancer learns of
    it late. After that the port is closed, and the requests that were taken are answered within ``drain`` seconds.

    Args:
        application: the application.
        bound: a socket that listens.
        linger: seconds.
        drain: seconds.
        log_json: write the log as JSON, a document a line.

    Raises:
        Exception: the model could not be loaded; it is the error of that.
        KeyboardInterrupt: it was Ctrl-C.
    """
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="on",
        # By default these depend on what else is installed. This parser bounds the size of a request's head, and
        # httptools does not; and nothing here answers web sockets.
        http=http_within(application.service.settings.timeout),
        loop="asyncio",
        ws="none",
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(drain)),
        # A proxy's word on the client's address would only reach the log.
        proxy_headers=False,
    )
    _allow_connections()
    keep_no_large_blocks()
    server = _Server(config, application, linger)
    application.on_failed = server.stop
    with _logging(log_json), contextlib.closing(bound):
        asyncio.run(server.serve([bound]))
    if application.service.failed is not None:
        raise application.service.failed
    if server.interrupted:
        raise KeyboardInterrupt("the requests that were taken are answered")


class _Server(uvicorn.Server):
    """A server that lingers before it closes its port. The second Ctrl-C ends it at once."""

    def __init__(self, config: uvicorn.Config, application: Application, linger: float) -> None:
        super().__init__(config)
        self.interrupted = False
        self._application = application
        self._linger = linger

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (a handler gets it)
        """Begin to end."""
        again = self._application.service.draining
        self._application.service.draining = True
        self.interrupted = self.interrupted or sig == signal.SIGINT
        if sig == signal.SIGINT:
            # Somebody sits before it, and no load balancer.
            self.should_exit = True
            self.force_exit = again
        elif not again:
            asyncio.get_running_loop().call_later(self._linger, self.stop)

    def stop(self, _: Exception | None = None) -> None:
        """Close the port."""
        self.should_exit = True


def _allow_connections() -> None:
    """Let this process have as many open files as it may. Each connection is one, and 1,024 is a usual limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems promise more than they allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _logging(as_json: bool) -> Iterator[None]:
    """Write our log and the server's warnings to standard error, and nowhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    levels = {"fgclip_rt.serving": logging.INFO, "uvicorn.error": logging.WARNING}
    loggers = [logging.getLogger(name) for name in levels]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(levels[logger.name])
        # The SDK of the agents' protocol gives the root logger a handler of its own, which would say all of it again.
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


class _Json(logging.Formatter):
    """One JSON document a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        entry |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)
