"""Questions about the server itself: is it alive, is it ready, and which model does it have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from .service import Service


class ServedModel(msgspec.Struct, frozen=True):
    """A model that is served.

    Attributes:
        id: its name.
        embedding_size: numbers of a vector.
        graphs: graphs of the bundle: ``vision`` and ``text``, and perhaps ``dense``, ``region`` and ``mask``.
        walk_types: kinds of text, with the tokens that they may have.
        buckets: numbers of patches that images are resized to.
        precision: the precision that runs.
        manifest_sha256: digest of the bundle's manifest.
        space_sha256: fingerprint of the space of the vectors. Those of another one do not belong into the same index.
        max_work: patches and tokens of one request, at most.
        max_body: bytes of one request's body, at most.
    """

    id: str
    embedding_size: int
    graphs: list[str]
    walk_types: Mapping[str, int]
    buckets: list[int]
    precision: str
    manifest_sha256: str
    space_sha256: str
    max_work: int
    max_body: int
    object: Literal["model"] = "model"
    owned_by: str = "fgclip-rt"
    created: int = 0


class Models(msgspec.Struct, frozen=True):
    """The models that are served, one for each name."""

    data: list[ServedModel]
    object: Literal["list"] = "list"


async def models(service: Service, request: Request) -> Models:  # noqa: ARG001 (all endpoints take it)
    """The model, under each of its names.

    Raises:
        RequestError: it is not loaded yet.
    """
    manifest, model = service.model.manifest, service.model
    image = manifest.image
    served = ServedModel(
        id=manifest.model.name,
        embedding_size=model.dim,
        graphs=list(manifest.graphs),
        walk_types={name: kind.length for name, kind in manifest.text.walk_types.items()},
        buckets=list(getattr(image, "buckets", [image.max_num_patches])),
        precision=model.precision,
        manifest_sha256=model.bundle.manifest_sha256,
        space_sha256=model.space_sha256,
        max_work=service.batcher.max_work,
        max_body=service.settings.max_body,
    )
    return Models([served, *(msgspec.structs.replace(served, id=alias) for alias in service.settings.aliases)])


async def livez(service: Service, request: Request) -> Response:  # noqa: ARG001
    """Answers as long as the process does. It touches neither the queue nor the device."""
    return PlainTextResponse("alive\n")


async def readyz(service: Service, request: Request) -> Response:  # noqa: ARG001
    """200 once every graph has run; 503 before, and as soon as the server is told to end."""
    if service.is_ready:
        return PlainTextResponse("ready\n")
    why = "draining" if service.draining else "failed" if service.failed is not None else "loading"
    return PlainTextResponse(f"{why}\n", 503)
