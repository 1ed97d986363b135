"""Errors as answers: OpenAI's shape, our codes and sentences, and whether it is worth asking again."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from starlette.responses import Response

from fgclip_rt.errors import FgclipError

#: Status of each code that is not the request's own fault, which is 400.
_STATUS: Mapping[str, int] = MappingProxyType(
    {
        "unauthorized": 401,
        "origin_refused": 403,
        "model_not_found": 404,
        "not_found": 404,
        "task_missing": 404,
        "method_not_allowed": 405,
        "body_too_large": 413,
        "work_too_large": 413,
        "unsupported_media_type": 415,
        "entries_invalid": 422,
        "overloaded": 429,
        "internal_error": 500,
        "device_failed": 500,
        "out_of_memory": 500,
        "bundle_replaced": 500,
        "forward_failed": 502,
        "device_lost": 503,
        "loading": 503,
        "shutting_down": 503,
        "deadline_passed": 504,
    }
)

#: Codes of failures that pass by themselves.
_PASSING = frozenset({"overloaded", "loading", "shutting_down"})

#: Milliseconds after which a client may ask again.
_RETRY_AFTER_MS = 250


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        code: a constant for programs.
        message: one sentence for people.
        param: the field at fault, or None.
    """

    def __init__(self, message: str, code: str = "request_invalid", param: str | None = None) -> None:
        """Make an error; ``code`` is one of ours, or of :data:`fgclip_rt.errors.CODES`."""
        super().__init__(message)
        self.message, self.code, self.param = message, code, param

    @classmethod
    def of(cls, error: BaseException, param: str | None = None) -> RequestError:
        """The error of an item, or of the server itself, whose own words no client sees."""
        if isinstance(error, RequestError):
            return error
        if isinstance(error, FgclipError):
            return cls(str(error), error.code, param)
        return cls("the server failed; its log says why.", "internal_error")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS.get(self.code, 400)


class ErrorBody(msgspec.Struct, frozen=True):
    """One failure. OpenAI's clients read ``error``, and Jina's read ``detail``."""

    error: ErrorDetail
    detail: str


class ErrorDetail(msgspec.Struct, frozen=True):
    """Sentence, kind, field at fault and constant of a failure."""

    message: str
    type: str
    param: str | None
    code: str


def failure(error: RequestError) -> Response:
    """The answer to a request that failed."""
    kind = "invalid_request_error" if error.status < 429 else "server_error"
    passing = error.code in _PASSING
    headers = {"x-should-retry": "true" if passing else "false"}
    if passing:
        headers["retry-after-ms"] = str(_RETRY_AFTER_MS)
        headers["retry-after"] = "1"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = ErrorBody(ErrorDetail(error.message, kind, error.param, error.code), error.message)
    return Response(msgspec.json.encode(body), error.status, headers, media_type="application/json")
