"""Vectors that an agent holds by a name."""

from __future__ import annotations

import hashlib
from typing import Literal

from fgclip_rt.arrays import FloatArray
from fgclip_rt.errors import ArgumentError
from fgclip_rt.recent import Recent

#: Number of vectors that are kept; 31 MB at 768 dimensions.
_MOST = 10_000


class Vectors:
    """Vectors by their addresses, ``embedding://KIND/MODEL/ID``. Safe to use from several threads.

    An id is made from the bundle, the kind and the content, by 128 bits of a SHA-256, so that two contents never share
    one, and the same content has the same one always.
    """

    def __init__(self, model: str, manifest_sha256: str) -> None:
        """Hold vectors of the model of this name and bundle."""
        self._model, self._space = model, manifest_sha256
        self._vectors: Recent[str, FloatArray] = Recent(_MOST)

    def keep(self, kind: Literal["text", "image"], content: bytes, vector: FloatArray, detail: str = "") -> str:
        """Keep the vector of a content, and give its address; ``detail`` is what the vector depends on besides."""
        parts = (self._space.encode(), kind.encode(), detail.encode(), content)
        digest = hashlib.sha256(b"".join(b"%d:" % len(part) + part for part in parts)).hexdigest()
        address = f"embedding://{kind}/{self._model}/{digest[:32]}"
        self._vectors.put(address, vector)
        return address

    def get(self, address: str) -> FloatArray:
        """The vector at an address.

        Raises:
            ArgumentError: there is none, or no more.
        """
        vector = self._vectors.get(address)
        if vector is None:
            raise ArgumentError(f"{address} is not held here, or no more; embed its text or image again.")
        return vector
