"""Files of weights that a library has mapped into memory, watched for writes."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from ..bundle import sha256, stamp
from ..errors import BundleError
from ..manifest import FileInfo


class MappedFile:
    """A file that is part of a running model's memory: who writes into it changes the model's numbers.

    If the file is cut, the process ends at its next access to the lost bytes. If another file takes its name, it stays
    whole for as long as it is mapped.
    """

    def __init__(self, path: Path, info: FileInfo | None) -> None:
        """Begin to watch.

        Args:
            path: the file.
            info: its size and digest in the manifest; None if it has none yet, as in a bundle in the making.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._info = info
        # The inode that is mapped, whatever the path leads to later.
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._stamp = stamp(os.fstat(self._descriptor))

    def check(self) -> None:
        """Make sure that nobody has written into the file; this takes a microsecond, unless its times were changed.

        Raises:
            BundleError: it holds other bytes now.
        """
        state = os.fstat(self._descriptor)
        if stamp(state) == self._stamp:
            return
        if not self._holds_the_same(state):
            raise BundleError(
                f"{self._path} was changed while its model was in use; load the model again, and replace a bundle "
                "by renaming its folder.",
                code="bundle_replaced",
            )
        self._stamp = stamp(state)

    def _holds_the_same(self, state: os.stat_result) -> bool:
        if self._info is None or state.st_size != self._info.size:
            return False
        try:
            return os.path.samestat(self._path.stat(), state) and sha256(self._path) == self._info.sha256
        except OSError:
            return False
