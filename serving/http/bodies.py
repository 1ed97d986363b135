"""Reading a request's body, as JSON or as a form with files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from .failures import RequestError
from .service import Service

_T = TypeVar("_T", bound=msgspec.Struct)

_FORM = "multipart/form-data"


async def receive(service: Service, request: Request, kind: type[_T]) -> tuple[_T, list[bytes], list[str]]:
    """Read a body as ``kind``: a JSON document; or a form of fields with its names, fields ``text``, and files.

    Returns:
        The document, the files, and the texts of the form.

    Raises:
        RequestError: it is neither, or not of this kind, or too large; or too much work is waiting already.
    """
    service.check_room()
    media = _media(request)
    if media == _FORM:
        return await _receive_form(service, request, kind)
    if media not in ("application/json", "text/json") and not media.endswith("+json"):
        raise RequestError(
            f"the body is of type {media!r}; send application/json or multipart/form-data.", "unsupported_media_type"
        )
    data = await request.body()
    decode = msgspec.json.Decoder(kind).decode
    try:
        decoded = await service.unless_small(len(data), decode, data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not the JSON that is asked for ({error}); see /docs.") from None
    return decoded, [], []


async def read_form(service: Service, request: Request) -> list[tuple[str, str | bytes]]:
    """The names and values of a form in their order; of a file its bytes.

    Raises:
        RequestError: the body is no such form, or too large; or too much work is waiting already.
    """
    service.check_room()
    if _media(request) != _FORM:
        raise RequestError(
            f"the body is of type {_media(request)!r}; send multipart/form-data.", "unsupported_media_type"
        )
    try:
        # A file goes to a temporary file beyond one megabyte; the whole is bounded by the application.
        async with request.form(max_files=10_000, max_fields=10_000, max_part_size=service.settings.max_body) as form:
            return [
                (name, await value.read() if isinstance(value, UploadFile) else value)
                for name, value in form.multi_items()
            ]
    except HTTPException as error:
        raise RequestError(f"the form cannot be read ({error.detail}); send multipart/form-data.") from None


def _media(request: Request) -> str:
    return request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()


async def _receive_form(service: Service, request: Request, kind: type[_T]) -> tuple[_T, list[bytes], list[str]]:
    form = await read_form(service, request)
    uploads = [value for _, value in form if isinstance(value, bytes)]
    fields, texts = _fields(form)
    try:
        return msgspec.convert(fields, kind, strict=False), uploads, texts
    except msgspec.ValidationError as error:
        raise RequestError(f"the form's fields are not those that are asked for ({error}); see /docs.") from None


def _fields(form: Sequence[tuple[str, str | bytes]]) -> tuple[dict[str, Any], list[str]]:
    """The form's settings, of which lists and numbers are JSON, and its texts."""
    fields: dict[str, Any] = {}
    texts = []
    for name, value in form:
        if not isinstance(value, str):
            continue
        if name == "text":
            texts.append(value)
        else:
            fields[name] = _value(value)
    return fields, texts


def _value(text: str) -> Any:
    if text[:1] not in ("[", "{"):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
