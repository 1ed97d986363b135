"""The OpenAPI document, made from the structs that requests and answers are read and written by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fgclip_rt import __version__, answers

from .adapters.cohere import CohereAnswer, CohereRequest
from .adapters.hosted import HostedAnswer, HostedRequest
from .embeddings import EmbeddingsAnswer
from .failures import ErrorBody
from .inputs import EmbeddingsRequest
from .questions import DenseRequest, MasksRequest, PartsAnswer, RegionsRequest, ScoreRequest
from .search import MapAnswer, SearchRequest
from .service import Service
from .status import Models

#: For each path: its method, its summary, the struct of its request, and that of its answer or the types of its bytes.
_PATHS: Mapping[str, tuple[str, str, type | None, type | tuple[str, ...]]] = {
    "/v1/embeddings": ("post", "Vectors of texts and images.", EmbeddingsRequest, EmbeddingsAnswer),
    "/v1/score": ("post", "How well each text describes each image.", ScoreRequest, answers.Scores),
    "/v1/regions": ("post", "Vectors of boxes of an image, and their cosines with texts.", RegionsRequest, PartsAnswer),
    "/v1/masks": ("post", "Vectors of masks of an image, and their cosines with texts.", MasksRequest, PartsAnswer),
    "/v1/dense": (
        "post",
        "The dense map of an image, as numbers or as a picture.",
        DenseRequest,
        ("application/x-npy", "image/png"),
    ),
    "/v1/search": (
        "post",
        "Images of the server's index by a text, an image, or a part of one.",
        SearchRequest,
        answers.Searched,
    ),
    "/v1/images/{row}": ("get", "An image of the index, as a thumbnail or larger.", None, ("image/jpeg",)),
    "/v1/images/{row}/map": ("get", "Cosines of a text with the patches of an image of the index.", None, MapAnswer),
    "/v2/embed": ("post", "Vectors, as Cohere's clients ask for them.", CohereRequest, CohereAnswer),
    "/models/interface": (
        "post",
        "Vectors, as clients of 360's hosted FG-CLIP ask for them.",
        HostedRequest,
        HostedAnswer,
    ),
    "/v1/models": ("get", "The models that are served.", None, Models),
    "/livez": ("get", "Whether the process answers.", None, ("text/plain",)),
    "/readyz": ("get", "Whether requests are answered.", None, ("text/plain",)),
    "/metrics": ("get", "Counters and histograms.", None, ("text/plain",)),
}


def make_document() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    types = [kind for _, _, asked, given in _PATHS.values() for kind in (asked, given) if isinstance(kind, type)]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorBody], ref_template="#/components/schemas/{name}"
    )
    of = dict(zip([*types, ErrorBody], schemas, strict=True))
    failed = {"description": "Why not.", "content": {"application/json": {"schema": of[ErrorBody]}}}
    paths: dict[str, Any] = {}
    for path, (method, summary, asked, given) in _PATHS.items():
        content = (
            {"application/json": {"schema": of[given]}} if isinstance(given, type) else {media: {} for media in given}
        )
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": path.strip("/").replace("/", "_"),
            "responses": {"200": {"description": "The answer.", "content": content}, "default": failed},
        }
        if asked is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": of[asked]}}}
            operation["security"] = [{}, {"key": []}]
        paths[path] = {method: operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "fgclip-rt", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


async def document(service: Service, request: Request) -> dict[str, Any]:  # noqa: ARG001
    """The document."""
    return make_document()


async def page(service: Service, request: Request) -> Response:  # noqa: ARG001
    """The document for people, in one page that needs nothing from elsewhere."""
    from .page import render

    return HTMLResponse(render(make_document()))
