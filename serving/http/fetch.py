"""Images by URL: only from hosts that were allowed, and never from a network of our own."""

from __future__ import annotations

import fnmatch
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from .failures import RequestError


class Fetcher:
    """Fetches images from hosts that match a pattern.

    A host is resolved once, all of its addresses must be public, and one of these very addresses is dialled: a name
    that changes its address between check and use gains nothing. Redirects are not followed.
    """

    def __init__(self, patterns: Sequence[str], most_bytes: int, seconds: float = 10.0) -> None:
        """Allow some hosts.

        Args:
            patterns: of host names, such as ``*.example.org``; none allows no URL at all.
            most_bytes: of an image's file.
            seconds: for one image, from the name's resolution to the last byte.
        """
        self._patterns = [pattern.lower() for pattern in patterns]
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._tls = ssl.create_default_context()

    def fetch(self, url: str) -> bytes:
        """The bytes at a URL.

        Raises:
            RequestError: the host is not allowed, not public or silent, or answers with anything but an image's bytes.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise RequestError("the url is malformed; correct it.", "url_refused") from None
        if not self._patterns:
            raise RequestError(
                "this server fetches no URLs; send the image's bytes, or start it with --allow-url.", "url_refused"
            )
        if parts.scheme not in ("http", "https") or parts.username is not None:
            raise RequestError("the url is not a plain http or https one; correct it.", "url_refused")
        if not any(fnmatch.fnmatchcase(host, pattern) for pattern in self._patterns):
            raise RequestError(
                f"this server fetches nothing from {host!r}; its --allow-url says from where.", "url_refused"
            )
        port = port or (443 if parts.scheme == "https" else 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        address = _public_address(host, port)
        try:
            return self._get(parts.scheme == "https", host, port, address, target, self._seconds)
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(
                f"{host} could not be read ({type(error).__name__}); check the url.", "fetch_failed"
            ) from None

    def _get(self, secure: bool, host: str, port: int, address: str, target: str, seconds: float) -> bytes:
        with socket.create_connection((address, port), timeout=seconds) as dialled:
            # A timeout of the socket's own begins anew with each byte, and some servers send one at a time.
            watchdog = threading.Timer(seconds, dialled.shutdown, [socket.SHUT_RDWR])
            watchdog.daemon = True
            watchdog.start()
            connection = http.client.HTTPConnection(host, port)
            try:
                connection.sock = self._tls.wrap_socket(dialled, server_hostname=host) if secure else dialled
                connection.request("GET", target, headers={"accept": "image/*", "user-agent": "fgclip-rt"})
                return self._read(connection.getresponse(), host)
            finally:
                watchdog.cancel()
                connection.close()

    def _read(self, answer: http.client.HTTPResponse, host: str) -> bytes:
        if answer.status != 200:
            raise RequestError(f"{host} answered with status {answer.status}; check the url.", "fetch_failed")
        data = answer.read(self._most_bytes + 1)
        if len(data) > self._most_bytes:
            raise RequestError(
                f"the file at {host} has more than {self._most_bytes:,} bytes; send a smaller one.", "body_too_large"
            )
        return data


def _public_address(host: str, port: int) -> str:
    """One address of a host all of whose addresses are public.

    Raises:
        RequestError: it has none, or one of a private network.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RequestError(f"{host!r} has no address; check the url.", "fetch_failed") from None
    addresses = [str(each[4][0]) for each in found]
    if not addresses or not all(_is_public(address) for address in addresses):
        raise RequestError(f"{host!r} is not on the public internet; send the image's bytes instead.", "url_refused")
    return addresses[0]


def _is_public(address: str) -> bool:
    """Whether an address is reached through the internet, also if it is an IPv4 address in the form of an IPv6 one."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed.sixtofour or parsed
    return parsed.is_global and not parsed.is_multicast
