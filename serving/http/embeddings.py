"""``/v1/embeddings``: a superset of OpenAI's, for text and images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from starlette.requests import Request

from fgclip_rt.arrays import FloatArray
from fgclip_rt.model import EmbeddedText

from .bodies import receive
from .failures import RequestError
from .inputs import EmbeddingsRequest, Input, InputObject, parse
from .service import Service, usage

Vector = list[float] | str


class Usage(msgspec.Struct, frozen=True):
    """Tokens of texts and patches of images, together."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True):
    """One vector, of length one; null for an input that could not be embedded, if that was asked for."""

    index: int
    embedding: Vector | None
    object: Literal["embedding"] = "embedding"
    error: str | msgspec.UnsetType = msgspec.UNSET


class EmbeddingsAnswer(msgspec.Struct, frozen=True):
    """Vectors in the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: Literal["list"] = "list"


async def embeddings(service: Service, request: Request) -> EmbeddingsAnswer:
    """Vectors of texts and images.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, uploads, texts = await receive(service, request, EmbeddingsRequest)
    service.check_model(asked.model)
    check_dimensions(service, "dimensions", asked.dimensions)
    if texts:
        asked.input = [*_listed(asked.input), *texts]
    answers = await embed(service, request, asked, uploads)
    failures = failures_in(answers)
    if failures and asked.on_error == "raise":
        raise together(failures)
    reasons = {index: error.message for index, error in failures}
    data = [
        Embedding(index, None, error=reasons[index])
        if index in reasons
        else Embedding(index, written(answer.vector, asked.encoding_format))
        for index, answer in enumerate(answers)
    ]
    total = usage(answers)
    return EmbeddingsAnswer(data, asked.model or service.model.manifest.model.name, Usage(total, total))


async def embed(
    service: Service, request: Request, asked: EmbeddingsRequest, uploads: Sequence[bytes] = ()
) -> list[Any]:
    """The embedded inputs of a request in their order, or their errors. Uploads come last.

    Raises:
        RequestError: the request as a whole cannot be answered.
    """
    answers = await service.embed(request, await service.fetch(parse(asked, uploads)))
    for index, answer in enumerate(answers):
        if isinstance(answer, EmbeddedText) and answer.truncated and asked.truncate == "error":
            answers[index] = RequestError(
                f"input {index} has more tokens than {asked.walk_type!r} texts may have; shorten it, or have its end "
                "cut by 'truncate'.",
                "text_truncated",
            )
    return answers


def check_dimensions(service: Service, field: str, asked: int | None) -> None:
    """Refuse vectors of another width: the first numbers of a vector mean nothing by themselves.

    Raises:
        RequestError: the width is not the model's.
    """
    if asked not in (None, service.model.dim):
        raise RequestError(
            f"{field} is {asked}, and this model's vectors have {service.model.dim}; leave it out.", param=field
        )


def failures_in(answers: Sequence[object]) -> list[tuple[int, RequestError]]:
    """The errors among answers, each with its place."""
    return [(index, RequestError.of(each)) for index, each in enumerate(answers) if isinstance(each, Exception)]


def check_all(answers: Sequence[object]) -> None:
    """Refuse a request of which an input failed.

    Raises:
        RequestError: one did; it names all that did.
    """
    if failures := failures_in(answers):
        raise together(failures)


def together(failures: Sequence[tuple[int, RequestError]]) -> RequestError:
    """One error for all inputs that failed. The status is that of the gravest."""
    worst = max((error for _, error in failures), key=lambda error: error.status)
    if len(failures) == 1:
        return RequestError(worst.message, worst.code, "input")
    which = ", ".join(str(index) for index, _ in failures)
    return RequestError(f"inputs {which} failed, the first because {failures[0][1].message}", worst.code, "input")


def written(vector: FloatArray, encoding: Literal["float", "base64"]) -> Vector:
    """A vector as JSON numbers, or as the base64 of its float32 numbers, little-endian."""
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


def _listed(given: str | InputObject | list[Input] | msgspec.UnsetType) -> list[Input]:
    if given is msgspec.UNSET:
        return []
    return list(given) if isinstance(given, list) else [given]
