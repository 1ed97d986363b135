"""Requests that another server answers."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from starlette.responses import Response

from fgclip_rt.errors import ArgumentError

from .failures import RequestError


class Forward:
    """A server that requests are passed on to. Its operator is ours, so that its address may be a private one."""

    def __init__(self, url: str, seconds: float) -> None:
        """Name the server.

        Args:
            url: such as ``http://immich-machine-learning:3003``.
            seconds: that it may be silent.

        Raises:
            ArgumentError: the URL is none of http or https.
        """
        fault = ArgumentError(f"--forward is {url!r}; give a URL such as http://immich-machine-learning:3003.")
        try:
            parts = urlsplit(url)
            self._port = parts.port
        except ValueError:
            raise fault from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise fault
        self._host, self._path, self._secure = parts.hostname, parts.path.rstrip("/"), parts.scheme == "https"
        self._url = url
        self._seconds = seconds

    def post(self, path: str, media: str, body: bytes) -> Response:
        """The server's answer to a body, whatever its status.

        Raises:
            RequestError: the server cannot be reached, or breaks off.
        """
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._seconds)
        try:
            connection.request("POST", self._path + path, body, {"content-type": media})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(
                f"{self._url} did not answer ({type(error).__name__}); check that it runs and that --forward names it.",
                "forward_failed",
            ) from None
        finally:
            connection.close()
        return Response(content, answer.status, media_type=answer.headers.get("content-type"))
