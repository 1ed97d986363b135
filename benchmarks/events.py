"""A clock for the work of PyTorch and engines on a GPU, which the host only enqueues."""

from __future__ import annotations

from collections.abc import Callable

import torch


def around_all(enqueue: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[int], float]:
    """A clock that runs a given number of times back to back, and returns the seconds between two events by the runs.

    The host does not wait between runs, as it does not if it has the next batch at hand.

    Args:
        enqueue: gives one run to the stream.
        stream: the stream; None takes PyTorch's current stream.
    """

    def seconds(runs: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        for _ in range(runs):
            enqueue()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / runs

    return seconds


def between_events(enqueue: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[int], float]:
    """A clock that runs a given number of times, and returns the mean seconds between two events around each run.

    Args:
        enqueue: gives one run to the stream.
        stream: the stream; None takes PyTorch's current stream.
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
