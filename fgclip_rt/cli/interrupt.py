"""Ctrl-C while modules are imported, which takes a third of a second, and seconds for torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SENTENCE = b"fgclip-rt: interrupted; nothing was written.\n"


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within the block Ctrl-C ends the process with one sentence and status 130.

    An exception would arise within some library's import and come out as a traceback, or as another error. Nothing is
    there yet to be cleaned up.
    """
    before = signal.getsignal(signal.SIGINT)
    # A caller that has us ignore it, such as nohup, is obeyed.
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def raising_interrupts() -> None:
    """End the block of :func:`stopping_at_once` early: from here on Ctrl-C is an exception, which cleans up."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (a handler gets them)
    os.write(2, _SENTENCE)
    os._exit(130)
