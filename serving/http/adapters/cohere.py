"""``/v2/embed`` as Cohere's clients call it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from starlette.requests import Request

from fgclip_rt.arrays import Array, FloatArray
from fgclip_rt.model import EmbeddedText

from ...items import EmbeddedImage
from ..bodies import receive
from ..embeddings import check_all, check_dimensions, embed, written
from ..failures import RequestError
from ..inputs import EmbeddingsRequest, ImageOptions, Input, InputObject, Message, parts
from ..service import Service

#: Names of the number types that vectors are written in. Cohere's int8 and uint8 have a scale that it does not publish.
_TYPES = ("float", "base64", "binary", "ubinary")


class CohereRequest(ImageOptions):
    """Texts, images or inputs to embed. Keys that are not listed are ignored.

    Attributes:
        texts: texts; or
        images: data URIs, base64 or URLs; or
        inputs: messages, each with one text or one image.
        model: a served name; may be left out.
        input_type: accepted and without effect, because queries and documents have the same vectors here.
        embedding_types: ``float``, ``base64`` (float32, little-endian), ``ubinary`` (the signs, eight in a byte) and
            ``binary`` (those bytes less 128).
        output_dimension: the model's own, or left out.
        truncate: ``END`` cuts a text that is too long, ``NONE`` refuses it.
        walk_type: kind of the texts: ``short``, ``box`` or ``long``.
    """

    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[Message] | None = None
    model: str | None = None
    input_type: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: int | None = None
    truncate: Literal["END", "NONE", "START"] = "END"
    walk_type: str = "short"


class CohereEmbeddings(msgspec.Struct, frozen=True):
    """Vectors in the order of the inputs, in each of the types that were asked for."""

    floats: list[list[float]] | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="float")
    base64: list[str] | msgspec.UnsetType = msgspec.UNSET
    binary: list[list[int]] | msgspec.UnsetType = msgspec.UNSET
    ubinary: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


class BilledUnits(msgspec.Struct, frozen=True):
    """Tokens of texts, and number of images."""

    input_tokens: int
    images: int


class CohereMeta(msgspec.Struct, frozen=True):
    """The version of the contract, and the size of the request."""

    billed_units: BilledUnits
    api_version: Mapping[str, str] = msgspec.field(default_factory=lambda: {"version": "2"})


class CohereAnswer(msgspec.Struct, frozen=True):
    """Vectors, and the texts that they belong to."""

    id: str
    embeddings: CohereEmbeddings
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"


async def cohere(service: Service, request: Request) -> CohereAnswer:
    """Vectors of texts or images.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, _, _ = await receive(service, request, CohereRequest)
    service.check_model(asked.model)
    check_dimensions(service, "output_dimension", asked.output_dimension)
    types = asked.embedding_types or ["float"]
    for name in types:
        if name not in _TYPES:
            raise RequestError(
                f"embedding_types has {name!r}; choose from {', '.join(_TYPES)}.", param="embedding_types"
            )
    if asked.truncate == "START":
        raise RequestError(
            "truncate is 'START', and texts here lose their end only; pass 'END' or 'NONE'.", param="truncate"
        )
    inputs = EmbeddingsRequest(
        input=_inputs(asked),
        walk_type=asked.walk_type,
        truncate="error" if asked.truncate == "NONE" else "end",
        max_num_patches=asked.max_num_patches,
        exif_transpose=asked.exif_transpose,
    )
    answers = await embed(service, request, inputs)
    check_all(answers)
    return CohereAnswer(
        uuid.uuid4().hex,
        _written(np.stack([answer.vector for answer in answers]), types),
        asked.texts or [],
        CohereMeta(_billed(answers)),
    )


def _inputs(asked: CohereRequest) -> list[Input]:
    given = [name for name in ("texts", "images", "inputs") if getattr(asked, name)]
    if len(given) != 1:
        which = " and ".join(given) or "none"
        raise RequestError(f"the request has {which} of texts, images and inputs; give exactly one.")
    if asked.texts:
        return [InputObject(text=text) for text in asked.texts]
    if asked.images:
        return [InputObject(image=image) for image in asked.images]
    return [_only_part(index, message) for index, message in enumerate(asked.inputs or ())]


def _only_part(index: int, message: Message) -> Input:
    found = parts(message)
    if len(found) != 1:
        raise RequestError(
            f"input {index} has {len(found)} parts, and this model joins none; give each an input of its own.",
            param="inputs",
        )
    return found[0]


def _written(vectors: FloatArray, types: Sequence[str]) -> CohereEmbeddings:
    signs: Array = np.packbits(vectors > 0, axis=1)
    found: dict[str, Any] = {}
    for name in types:
        if name == "float":
            found["floats"] = vectors.tolist()
        elif name == "base64":
            found[name] = [written(vector, "base64") for vector in vectors]
        else:
            found[name] = (signs if name == "ubinary" else signs.astype(np.int16) - 128).tolist()
    return CohereEmbeddings(**found)


def _billed(answers: Sequence[object]) -> BilledUnits:
    return BilledUnits(
        sum(answer.tokens for answer in answers if isinstance(answer, EmbeddedText)),
        sum(isinstance(answer, EmbeddedImage) for answer in answers),
    )
