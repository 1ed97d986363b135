"""How a server behaves."""

from __future__ import annotations

from pathlib import Path

import msgspec

#: Paths that machines ask for every few seconds. They are neither logged nor traced.
PROBES = frozenset({"/livez", "/readyz", "/metrics", "/ping"})


class Settings(msgspec.Struct, frozen=True):
    """Settings of a server.

    Attributes:
        aliases: names that it answers to besides the bundle's own.
        max_body: bytes of a request's body.
        max_buffered: bytes of the bodies of all requests that are being answered.
        timeout: seconds that a request may take unless it says otherwise.
        api_key_file: file of the keys, one a line, that clients must show; None asks for none.
        allow_urls: patterns of hosts that images are fetched from.
        index: an index of images that is searched; None if there is none.
        mcp: give agents tools at ``/mcp``.
        roots: folders whose images agents may name.
        forward: URL of immich's own machine learning, for its other tasks; None refuses them.
    """

    aliases: tuple[str, ...] = ()
    max_body: int = 64 * 2**20
    max_buffered: int = 2**30
    timeout: float = 60.0
    api_key_file: Path | None = None
    allow_urls: tuple[str, ...] = ()
    index: Path | None = None
    mcp: bool = False
    roots: tuple[Path, ...] = ()
    forward: str | None = None
