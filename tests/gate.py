"""A backend that tests can hold up and break, in front of the real one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from fgclip_rt.arrays import Array
from fgclip_rt.backends import Backend, Result


class Gate:
    """A backend whose runs wait while it is shut, and fail as they are told to.

    Attributes:
        runs: graph and number of rows of each run, in order.
        size: the batch size of all graphs.
        error: raised by the next run, once.
    """

    def __init__(self, backend: Backend, size: int) -> None:
        self._backend = backend
        self.size = size
        self.precision, self.device = backend.precision, backend.device
        self.runs: list[tuple[str, int]] = []
        self.error: Exception | None = None
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Semaphore(0)

    def __str__(self) -> str:
        return f"gate to {self._backend}"

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def batch_size(self, graph: str, length: int) -> int:  # noqa: ARG002
        return self.size

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        self.runs.append((graph, len(next(iter(inputs.values())))))
        self.reached.release()
        assert self._open.wait(30)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self._backend.submit(graph, inputs, outputs)
