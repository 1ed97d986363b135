"""A clock for what PyTorch and engines do on a GPU, where the host only enqueues it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def between_events(enqueue: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[int], float]:
    """A clock: mean seconds between two events around each run, one after another.

    Args:
        enqueue: gives one run to the stream.
        stream: None takes PyTorch's current one.
    """

    def seconds(runs: int) -> float:
        milliseconds = 0.0
        for _ in range(runs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            enqueue()
            end.record(stream)
            end.synchronize()
            milliseconds += start.elapsed_time(end)
        return milliseconds / 1000 / runs

    return seconds
