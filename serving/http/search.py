"""Searching an index, and showing what was found. Images have row numbers: no path from a client is opened."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from fgclip_rt.answers import Hit, Searched, Skipped
from fgclip_rt.arrays import FloatArray
from fgclip_rt.index import LOOKED_AT, ImageIndex, Query, place, ranked, searched
from fgclip_rt.scores import box_around_largest, similarity_maps

from ..items import ImageItem, TextItem
from .bodies import receive
from .embeddings import check_all
from .failures import RequestError
from .inputs import ImageOptions, InputSource
from .questions import answered, embed_texts, one_image
from .service import Service

#: Longest side of a picture that is sent, in pixels, by the name of the size.
_SIZES = {"thumb": 320, "full": 1600}

_MOST_HITS = 200

_PAGE = Path(__file__).with_name("search.html")

#: The page runs its own script and shows the server's own pictures, and nothing else, whatever a file may be called.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)

#: Images whose patches are looked at side by side for one request, so that it leaves room for others in the queue.
_SIDE_BY_SIDE = 4


class SearchRequest(ImageOptions):
    """A search of the server's index: by ``text``, by ``image``, or by ``row``, an image of the index.

    Attributes:
        text: English or Chinese.
        image: as for the other questions.
        row: number of an image that a search has found.
        box: part of the image, xyxy in its pixels.
        top: number of images to find.
        fine: rank the nearest images by their patches, and say where; with a box always.
        depth: images whose patches are looked at; null takes four times ``top``.
        folder: search below this folder of the indexed one.
    """

    text: str | None = None
    image: InputSource | None = None
    row: int | None = None
    box: list[float] | None = None
    top: int = 12
    fine: bool = False
    depth: int | None = None
    folder: str = ""
    model: str | None = None


class MapAnswer(msgspec.Struct, frozen=True):
    """Cosines of a text with the patches of an image.

    Attributes:
        text: the text.
        width: of the image in pixels.
        height: likewise.
        cosines: by row of patches, then by column.
        box: around the patch with the largest, xyxy in pixels.
    """

    text: str
    width: int
    height: int
    cosines: list[list[float]]
    box: list[float]


async def search(service: Service, request: Request) -> Searched:
    """The images of the index that are nearest to a text, an image, or a part of one.

    Raises:
        RequestError: the request cannot be answered.
    """
    asked, uploads, texts = await receive(service, request, SearchRequest)
    service.check_model(asked.model)
    index = service.index
    if texts:
        asked.text = texts[0]
    if sum((asked.text is not None, asked.row is not None, asked.image is not None or bool(uploads))) != 1:
        raise RequestError("the request needs exactly one of 'text', 'image' and 'row'.")
    if not 1 <= asked.top <= _MOST_HITS or not 1 <= (asked.depth or 1) <= _MOST_HITS:
        raise RequestError(f"'top' and 'depth' are from 1 to {_MOST_HITS}.", param="top")
    query = await _query(service, request, asked, uploads)
    if query.part is None:
        (hits,) = await _looked_up(service, index, query.whole, asked.top, asked.folder)
        return searched(index, hits, asked.folder)
    depth = asked.depth or min(_MOST_HITS, LOOKED_AT * asked.top)
    (hits,) = await _looked_up(service, index, query.whole, depth, asked.folder)
    turns = asyncio.Semaphore(_SIDE_BY_SIDE)
    looked = await asyncio.gather(*(_look(service, request, turns, hit, query) for hit in hits))
    placed = [each for each in looked if isinstance(each, Hit)]
    skipped = [each for each in looked if isinstance(each, Skipped)]
    return searched(index, ranked(placed, query)[: asked.top], asked.folder, fine=True, skipped=skipped)


async def picture(service: Service, request: Request) -> Response:
    """The image of a row as a JPEG, no larger than its size says: ``thumb`` or ``full``.

    Raises:
        RequestError: there is no such row, or its file cannot be read any more.
    """
    size = request.query_params.get("size", "thumb")
    if size not in _SIZES:
        raise RequestError(f"size is {size!r}; give {' or '.join(_SIZES)}.", param="size")
    hit = _hit(service.index, request)

    def drawn() -> bytes:
        image = service.model.load_image(service.index.file(hit), service.index.about.exif_transpose)
        image.thumbnail((_SIZES[size], _SIZES[size]), Image.Resampling.LANCZOS, reducing_gap=3.0)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    data = await answered(service, drawn)
    return Response(data, headers={"cache-control": "private, max-age=3600"}, media_type="image/jpeg")


async def map_of(service: Service, request: Request) -> MapAnswer:
    """Cosines of a text with the patches of the image of a row.

    Raises:
        RequestError: there is no such row, no text, or the file cannot be read any more.
    """
    text = request.query_params.get("text", "")
    if not text:
        raise RequestError("a map needs a text; give it as '?text='.", param="text")
    hit = _hit(service.index, request)
    (vector,) = await embed_texts(service, request, [text], "box")
    dense = await service.dense(request, _item(service.index, hit))
    (values,) = await service.in_thread(lambda: similarity_maps(dense.features(), vector[None]))
    height, width = dense.image_size
    box = box_around_largest(values, (width, height))
    return MapAnswer(text, width, height, values.round(4).tolist(), list(box))


async def page(service: Service, request: Request) -> Response:  # noqa: ARG001 (all endpoints take it)
    """The page to search with, if the server has an index; it needs nothing from elsewhere.

    Raises:
        RequestError: there is no index.
    """
    assert service.index
    return FileResponse(_PAGE, headers={"content-security-policy": _POLICY})


async def _query(service: Service, request: Request, asked: SearchRequest, uploads: list[bytes]) -> Query:
    """The vectors to search by."""
    model, index = service.model, service.index
    if asked.text is not None:
        if asked.box is not None:
            raise RequestError("a box is a part of an image; give that in 'image' or 'row'.", param="box")
        kinds = ["short", "box"] if asked.fine else ["short"]
        if asked.fine:
            await answered(service, lambda: model.graphs.check_has("dense"))
        embedded = await service.run(request, [TextItem(asked.text, kind) for kind in kinds])
        check_all(embedded)
        vectors = [each.vector for each in embedded]
        return Query(vectors[0], vectors[1] if asked.fine else None)
    if asked.fine and asked.box is None:
        raise RequestError("a fine search looks for a part of an image; give a 'box', or a 'text'.", param="fine")
    item = (
        await one_image(service, asked.image, asked, uploads)
        if asked.row is None
        else _item(index, _row(index, asked.row))
    )
    if asked.max_num_patches is None:
        item = msgspec.structs.replace(item, max_num_patches=index.about.max_num_patches)
    embedded = await service.run(request, [item])
    check_all(embedded)
    part: FloatArray | None = None
    if asked.box is not None:
        box = asked.box
        dense = await service.dense(request, item)
        (part,) = await answered(service, lambda: dense.regions([box]))
    return Query(embedded[0].vector, part, alike=False)


async def _looked_up(
    service: Service, index: ImageIndex, vector: FloatArray, count: int, folder: str
) -> list[list[Hit]]:
    return await answered(service, lambda: index.search(np.asarray(vector)[None], count, folder))


async def _look(service: Service, request: Request, turns: asyncio.Semaphore, hit: Hit, query: Query) -> Hit | Skipped:
    """A hit with its place, or why its image cannot be read any more."""
    async with turns:
        try:
            dense = await service.dense(request, _item(service.index, hit))
        except RequestError as error:
            if not error.code.startswith("image_"):
                raise
            return Skipped(hit.image, error.code, error.message)
        return await service.in_thread(place, hit, dense, query)


def _item(index: ImageIndex, hit: Hit) -> ImageItem:
    """An image of the index as an input. Its name is that below the folder: a client learns no other path."""
    about = index.about
    return ImageItem(index.file(hit), about.max_num_patches, about.exif_transpose, hit.image)


def _hit(index: ImageIndex, request: Request) -> Hit:
    return _row(index, int(request.path_params["row"]))


def _row(index: ImageIndex, row: int) -> Hit:
    hit = index.hit(row) if 0 <= row < 2**63 else None
    if hit is None:
        raise RequestError(f"the index has no row {row}; search again, because it may have changed.", "not_found")
    return hit
