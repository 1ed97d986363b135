"""Kernels that TensorRT-RTX compiled while an engine ran, kept on disk for the next process.

Without them every process compiles each engine anew, for every shape that it meets.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import Any


class RuntimeCache:
    """The compiled kernels of one engine, in a file beside its plan, which is saved when the object goes."""

    def __init__(self, config: Any, path: Path) -> None:
        """Read the file at ``path``, if there is one that fits this GPU, driver and library.

        Args:
            config: a runtime configuration of the engine, which makes the library's cache.
            path: of the file.
        """
        self._cache = config.create_runtime_cache()
        self._path = path
        self._saved = b""
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            # The library checks what the kernels were compiled for, and takes none of another GPU or driver.
            if self._cache.deserialize(data):
                self._saved = data
        # An object that holds the finaliser's function would never go.
        weakref.finalize(self, _save_at_end, os.getpid(), self._cache, path, self._saved)

    def attach(self, config: Any) -> None:
        """Have contexts of a runtime configuration take kernels from here, and add theirs."""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file anew if there are kernels that it lacks. A folder that cannot be written is left alone."""
        self._saved = _save(self._cache, self._path, self._saved)


def _save_at_end(process: int, cache: Any, path: Path, saved: bytes) -> None:
    # Finalisers run in a forked child too, which has no part of the GPU.
    if os.getpid() == process:
        _save(cache, path, saved)


def _save(cache: Any, path: Path, saved: bytes) -> bytes:
    """Write the cache to ``path`` if it differs from ``saved``, and return what is in it."""
    data = bytes(cache.serialize())
    if data == saved:
        return saved
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
    return data
