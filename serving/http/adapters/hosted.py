"""``/models/interface`` as clients of 360's hosted FG-CLIP call it, such as FGCLIP-MCP."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request

from ..bodies import receive
from ..embeddings import check_all, embed
from ..failures import RequestError
from ..inputs import EmbeddingsRequest, ImageOptions, InputObject
from ..service import Service


class HostedRequest(ImageOptions, kw_only=True):
    """Texts or images to embed. Keys that are not listed are ignored.

    Attributes:
        input_type: ``text`` or ``image``: which of the two lists is meant.
        texts: texts.
        images: base64, data URIs or URLs.
        model: a served name; may be left out.
        walk_type: kind of the texts: ``short``, ``box`` or ``long``.
    """

    input_type: Literal["text", "image"]
    texts: list[str] = msgspec.field(default_factory=list)
    images: list[str] = msgspec.field(default_factory=list)
    model: str | None = None
    walk_type: str = "short"


class HostedEmbeddings(msgspec.Struct, frozen=True):
    """Vectors in the order of the inputs."""

    floats: list[list[float]] = msgspec.field(name="float")


class HostedData(msgspec.Struct, frozen=True):
    """The vectors by their type of number."""

    embeddings: HostedEmbeddings


class HostedAnswer(msgspec.Struct, frozen=True):
    """The vectors, wrapped as the service wraps them."""

    data: HostedData


async def hosted(service: Service, request: Request) -> HostedAnswer:
    """Vectors of texts or images.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, _, _ = await receive(service, request, HostedRequest)
    service.check_model(asked.model)
    if asked.input_type == "text":
        field, given = "texts", [InputObject(text=text) for text in asked.texts]
    else:
        field, given = "images", [InputObject(image=image) for image in asked.images]
    if not given:
        raise RequestError(
            f"input_type is {asked.input_type!r}, and {field!r} is empty; give at least one.", param=field
        )
    inputs = EmbeddingsRequest(
        input=list(given),
        walk_type=asked.walk_type,
        max_num_patches=asked.max_num_patches,
        exif_transpose=asked.exif_transpose,
    )
    answers = await embed(service, request, inputs)
    check_all(answers)
    return HostedAnswer(HostedData(HostedEmbeddings([answer.vector.tolist() for answer in answers])))
