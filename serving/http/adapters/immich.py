"""``/predict`` and ``/ping`` as immich's server calls its machine learning."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fgclip_rt.images import image_size

from ...items import ImageItem, Item, TextItem
from ..bodies import read_form
from ..embeddings import check_all
from ..failures import RequestError
from ..service import Service
from ..status import readyz

#: The task of embeddings.
_CLIP = "clip"


class Task(msgspec.Struct, frozen=True, rename="camel"):
    """The model that a task is for. Its options do not matter here: the tokenizer reads every language alike."""

    model_name: str


#: By task and kind.
Entries: TypeAlias = Mapping[str, Mapping[str, Task]]


async def ping(service: Service, request: Request) -> Response:
    """``pong`` once requests are answered: immich sends none to a server that does not say so, if it has another."""
    answer = await readyz(service, request)
    return PlainTextResponse("pong") if answer.status_code == 200 else answer


async def predict(service: Service, request: Request) -> Response:
    """The vector of an image or a text, as a JSON string inside JSON, and the image's size. Other tasks are forwarded.

    Raises:
        RequestError: the request cannot be answered.
    """
    if service.forward is not None:
        # Kept as it came, to be passed on. Reading the form alone would consume it.
        await request.body()
    fields = await read_form(service, request)
    tasks = _entries(fields)
    if list(tasks) != [_CLIP]:
        return await _other(service, request, tasks)
    if len(tasks[_CLIP]) != 1:
        raise _invalid("'clip' has not exactly one kind")
    ((kind, task),) = tasks[_CLIP].items()
    service.check_model(task.model_name)
    item = _item(kind, dict(fields))
    answers = await service.run(request, [item])
    check_all(answers)
    answer: dict[str, object] = {_CLIP: msgspec.json.encode(answers[0].vector.tolist()).decode()}
    if isinstance(item, ImageItem):
        assert isinstance(item.source, bytes)
        width, height = await service.in_thread(image_size, item.source, item.name)
        answer |= {"imageHeight": height, "imageWidth": width}
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _other(service: Service, request: Request, tasks: Entries) -> Response:
    """The answer of immich's own server to a task that this one does not have."""
    named = ", ".join(map(repr, tasks)) or "none"
    if _CLIP in tasks:
        raise _invalid(f"the tasks are {named}, and 'clip' comes alone")
    if service.forward is None:
        raise RequestError(
            f"this server has the task 'clip' and not {named}; start it with --forward and the URL of immich's own "
            "machine learning, which then answers these.",
            "task_missing",
            "entries",
        )
    # In a thread of its own: faces take seconds, and must not hold up the threads that parse and fetch.
    return await asyncio.to_thread(
        service.forward.post, "/predict", request.headers["content-type"], await request.body()
    )


def _entries(fields: Sequence[tuple[str, str | bytes]]) -> Entries:
    given = dict(fields).get("entries")
    if given is None:
        raise _invalid("it is missing")
    try:
        return msgspec.json.decode(given, type=dict[str, dict[str, Task]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(str(error)) from None


def _item(kind: str, fields: Mapping[str, str | bytes]) -> Item:
    image, text = fields.get("image"), fields.get("text")
    if kind == "visual" and isinstance(image, bytes):
        return ImageItem(image, name="the image")
    if kind == "textual" and isinstance(text, str):
        return TextItem(text)
    if kind not in ("visual", "textual"):
        raise _invalid(f"'clip' has no kind {kind!r}")
    wanted = "file 'image'" if kind == "visual" else "field 'text'"
    raise RequestError(f"'clip' is to be {kind!r} and the form has no {wanted}; add it.")


def _invalid(fault: str) -> RequestError:
    return RequestError(
        f"the field 'entries' cannot be used ({fault}); send JSON such as "
        '{"clip": {"textual": {"modelName": "NAME"}}}.',
        "entries_invalid",
        "entries",
    )
