"""Questions that have no public schema: scores, regions, masks and dense maps."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from fgclip_rt import answers
from fgclip_rt.arrays import Array, FloatArray
from fgclip_rt.boxes import BoxFormat
from fgclip_rt.dense import DenseImage
from fgclip_rt.errors import FgclipError, MaskError
from fgclip_rt.heatmap import choose_scales, draw, plan
from fgclip_rt.images import load_image
from fgclip_rt.model import Model

from ..items import ImageItem, TextItem
from .bodies import receive
from .embeddings import Vector, check_all, written
from .failures import RequestError
from .inputs import ImageOptions, InputSource, Parsed, image
from .service import Service

_T = TypeVar("_T")


class ScoreRequest(ImageOptions):
    """Images and the texts that may describe them."""

    images: list[InputSource] = msgspec.field(default_factory=list)
    texts: list[str] = msgspec.field(default_factory=list)
    model: str | None = None
    walk_type: str = "short"


class OneImageRequest(ImageOptions):
    """One image, and the texts that are looked for in it."""

    image: InputSource | None = None
    texts: list[str] = msgspec.field(default_factory=list)
    model: str | None = None
    walk_type: str = "box"


class RegionsRequest(OneImageRequest):
    """Boxes of an image; ``box_format`` is ``xyxy``, ``xywh`` or ``normalized``."""

    boxes: list[list[float]] = msgspec.field(default_factory=list)
    box_format: BoxFormat = "xyxy"
    encoding_format: Literal["float", "base64"] = "float"


class MasksRequest(OneImageRequest):
    """Masks of an image: greyscale pictures of its size, 0 to 255, as ``image`` may be given."""

    masks: list[str] = msgspec.field(default_factory=list)
    encoding_format: Literal["float", "base64"] = "float"


class DenseRequest(OneImageRequest):
    """The dense map of an image.

    Attributes:
        format: ``npy`` gives float16 numbers, of texts their cosines [m, h, w], without texts the features [h, w, D]
            of length one; ``png`` gives a picture of the texts' cosines.
        scale: colours of the picture, as for ``fgclip-rt heatmap``.
        overlay: lay the cosines over the image.
    """

    format: Literal["npy", "png"] = "npy"
    scale: Literal["shared", "own"] = "shared"
    overlay: bool = False


class PartsAnswer(msgspec.Struct, frozen=True):
    """Vectors of boxes or masks, and their cosines with the texts, by part, then by text."""

    model: str
    embeddings: list[Vector]
    texts: list[str]
    cosines: list[list[float]]


async def score(service: Service, request: Request) -> answers.Scores:
    """Cosine, logit and probability of each text with each image.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, uploads, texts = await receive(service, request, ScoreRequest)
    service.check_model(asked.model)
    asked.texts += texts
    found: list[Parsed] = [image(source, asked, f"image {index}") for index, source in enumerate(asked.images)]
    for data in uploads:
        found.append(ImageItem(data, asked.max_num_patches, asked.exif_transpose, f"image {len(found)}"))
    if not found or not asked.texts:
        raise RequestError("the request needs 'images' and 'texts'; give at least one of each.")
    inputs = [*await service.fetch(found), *(TextItem(text, asked.walk_type) for text in asked.texts)]
    embedded = await service.embed(request, inputs)
    check_all(embedded)
    images, described = embedded[: len(found)], embedded[len(found) :]
    return answers.scores_of(
        service.model,
        [f"image {index}" for index in range(len(images))],
        asked.texts,
        np.stack([each.vector for each in images]),
        np.stack([each.vector for each in described]),
        unrotated=sum(each.orientation != 1 for each in images),
    )


async def regions(service: Service, request: Request) -> PartsAnswer:
    """Vectors of boxes of an image, and their cosines with texts.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, uploads, texts = await receive(service, request, RegionsRequest)
    service.check_model(asked.model)
    if not asked.boxes:
        raise RequestError("the request has no boxes; give at least one in 'boxes'.", param="boxes")
    dense = await service.dense(request, await one_image(service, asked.image, asked, uploads))
    vectors = await answered(service, lambda: dense.regions(asked.boxes, box_format=asked.box_format))
    return await _parts(service, request, vectors, asked, [*asked.texts, *texts], asked.encoding_format)


async def masks(service: Service, request: Request) -> PartsAnswer:
    """Vectors of masks of an image, and their cosines with texts.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, uploads, texts = await receive(service, request, MasksRequest)
    service.check_model(asked.model)
    # Of a form's files the first is the image, unless the image is given otherwise.
    own, given = (uploads[:1], uploads[1:]) if asked.image is None else ([], uploads)
    pictures = [image(source, asked, f"mask {index}") for index, source in enumerate(asked.masks)]
    data = [*map(_bytes, await service.fetch(pictures)), *given]
    if not data:
        raise RequestError("the request has no masks; give at least one in 'masks'.", param="masks")
    dense = await service.dense(request, await one_image(service, asked.image, asked, own))
    vectors = await answered(service, lambda: dense.masks(_greys(data)))
    return await _parts(service, request, vectors, asked, [*asked.texts, *texts], asked.encoding_format)


async def dense_map(service: Service, request: Request) -> Response:
    """Dense features of an image, or the cosines of texts with them, as numbers or as a picture.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, uploads, more = await receive(service, request, DenseRequest)
    service.check_model(asked.model)
    texts = [*asked.texts, *more]
    if asked.format == "png" and not texts:
        raise RequestError("a picture needs 'texts'; give at least one, or ask for npy.", param="texts")
    item = await one_image(service, asked.image, asked, uploads)
    dense = await service.dense(request, item)
    if not texts:
        features = await service.in_thread(lambda: dense.features().astype(np.float16))
        return _npy(features)
    vectors = await embed_texts(service, request, texts, asked.walk_type)
    cosines = await service.in_thread(lambda: np.moveaxis(dense.features() @ vectors.T, -1, 0))
    if asked.format == "npy":
        return _npy(cosines.astype(np.float16))
    picture = await answered(service, lambda: _draw(service.model, item, dense, cosines, texts, asked))
    return Response(picture, media_type="image/png")


async def embed_texts(service: Service, request: Request, texts: Sequence[str], walk_type: str) -> FloatArray:
    """Vectors of texts, float32 [m, D].

    Raises:
        RequestError: one of them cannot be embedded.
    """
    embedded = await service.run(request, [TextItem(text, walk_type) for text in texts])
    check_all(embedded)
    return np.stack([each.vector for each in embedded])


async def one_image(
    service: Service, source: InputSource | None, options: ImageOptions, uploads: Sequence[bytes]
) -> ImageItem:
    """The image that a request is about, fetched if need be.

    Raises:
        RequestError: there is none, or more than one, or it cannot be fetched.
    """
    sources = ([] if source is None else [image(source, options, "the image")]) + [
        ImageItem(data, options.max_num_patches, options.exif_transpose, "the image") for data in uploads
    ]
    if len(sources) != 1:
        raise RequestError(f"the request has {len(sources)} images; give exactly one.", param="image")
    (item,) = await service.fetch(sources)
    if isinstance(item, RequestError):
        raise item
    assert isinstance(item, ImageItem)
    return item


async def answered(service: Service, function: Callable[[], _T]) -> _T:
    """Call a function of the model in a thread.

    Raises:
        RequestError: it failed.
    """
    try:
        return await service.in_thread(function)
    except FgclipError as error:
        raise RequestError.of(error) from None


async def _parts(
    service: Service,
    request: Request,
    vectors: FloatArray,
    asked: OneImageRequest,
    texts: list[str],
    encoding: Literal["float", "base64"],
) -> PartsAnswer:
    cosines: list[list[float]] = []
    if texts:
        cosines = (vectors @ (await embed_texts(service, request, texts, asked.walk_type)).T).tolist()
    name = asked.model or service.model.manifest.model.name
    return PartsAnswer(name, [written(vector, encoding) for vector in vectors], texts, cosines)


def _bytes(picture: object) -> bytes:
    if isinstance(picture, RequestError):
        raise picture
    assert isinstance(picture, ImageItem)
    assert isinstance(picture.source, bytes)
    return picture.source


def _greys(pictures: Sequence[bytes]) -> Array:
    """Masks float32 [m, H, W] from 0 to 1, of greyscale pictures.

    Raises:
        ImageError: one cannot be read.
        MaskError: they differ in size.
    """
    greys = [np.asarray(load_image(data, f"mask {index}").convert("L")) for index, data in enumerate(pictures)]
    if len({grey.shape for grey in greys}) > 1:
        raise MaskError("the masks differ in size; give all the image's size.", code="mask_misshaped")
    return np.stack(greys).astype(np.float32) / 255


def _npy(array: Array) -> Response:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    shape = ",".join(map(str, array.shape))
    return Response(buffer.getvalue(), headers={"x-shape": shape}, media_type="application/x-npy")


def _draw(
    model: Model, item: ImageItem, dense: DenseImage, cosines: FloatArray, texts: Sequence[str], asked: DenseRequest
) -> bytes:
    photo = model.load_image(item.source, item.exif_transpose)
    plan(photo.size, dense.grid, len(texts), overlay=asked.overlay)
    picture = draw(photo, cosines, texts, choose_scales(cosines, asked.scale), overlay=asked.overlay)
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG")
    return buffer.getvalue()
