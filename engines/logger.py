"""The messages of TensorRT while it works."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: By the name of the library's module. It keeps the first logger that it is given, and uses it for all.
_LOGGERS: dict[str, Any] = {}

_MOST_ERRORS = 20


def make_logger(trt: Any, errors: list[str]) -> Any:
    """A logger that adds errors to ``errors`` from now on, and drops warnings.

    Only one list is added to at a time: that of the latest call.
    """
    if trt.__name__ not in _LOGGERS:

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                # The first few tell; a service that fails for days must not keep them all.
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and len(self.errors) < _MOST_ERRORS:
                    self.errors.append(message)

        _LOGGERS[trt.__name__] = Logger()
    logger = _LOGGERS[trt.__name__]
    logger.errors = errors
    return logger


def ran_out_of_memory(why: str) -> bool:
    """Whether a reason is that the GPU or the host had not enough memory."""
    return bool(re.search(r"out ?of ?memory|memory.* could not be allocated", why, re.IGNORECASE))


def reason(errors: Sequence[str]) -> str:
    """The first of ``errors`` as part of a sentence, without the places in the library's code that it names."""
    if not errors:
        return "it gave no reason"
    text = re.sub(r"^.*?Error Code \d+: ", "", " ".join(errors[0].split()))
    return re.sub(r"\.? In \w+ at /.*$", "", text).replace(". ", "; ").rstrip(".")
