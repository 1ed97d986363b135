"""Keys that clients must show."""

from __future__ import annotations

import hmac
from pathlib import Path

from fgclip_rt.errors import ArgumentError


class Keys:
    """The keys of a file, one a line; empty lines and those that begin with ``#`` are left out."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ArgumentError: it cannot be read, or holds no key.
        """
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise ArgumentError(f"--api-key-file {path} cannot be read ({error.strerror}); check the path.") from None
        self._keys = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
        if not self._keys:
            raise ArgumentError(f"--api-key-file {path} holds no key; write one a line, or leave the option out.")

    def allow(self, authorization: str | None) -> bool:
        """Whether an ``authorization`` header shows one of the keys. It takes as long for every wrong key."""
        scheme, _, shown = (authorization or "").partition(" ")
        given = shown.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        # All are compared, so that the time does not tell which key was nearly right.
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0
