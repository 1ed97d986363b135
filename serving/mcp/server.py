"""The tools that an agent calls. Answers are dataclasses, from which the protocol's library makes their schemas."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import numpy as np
from mcp.server import MCPServer
from mcp.server.mcpserver import Image as Picture
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from PIL import Image

from fgclip_rt import __version__, answers
from fgclip_rt.answers import Hit
from fgclip_rt.errors import ArgumentError, FgclipError
from fgclip_rt.heatmap import choose_scales, draw, plan
from fgclip_rt.index import ImageIndex, Query, find
from fgclip_rt.index.picture import draw_hits
from fgclip_rt.model import Model
from fgclip_rt.scores import box_around_largest, largest_at

from .sources import Sources
from .vectors import Vectors

_P = ParamSpec("_P")
_R = TypeVar("_R")

_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

_INSTRUCTIONS = """FG-CLIP on this machine: how well texts describe images and parts of them, in English or Chinese.
Images are paths below the allowed folders, or data URIs. Boxes are x1, y1, x2, y2 in pixels. Use short texts that name
one thing with its looks ("a small spotted yellow star"), and compare cosines with each other, not with a threshold."""

#: Images of one call, which bounds its time.
_MOST = 64


@dataclass
class Saved:
    """Addresses of vectors, which `cosine_similarity` takes."""

    success: bool
    error_msg: str | None
    saved_uris: list[str]


@dataclass
class Similarities:
    """Cosines: of each pair, or by the first list, then by the second."""

    success: bool
    similarities: list[float] | list[list[float]]
    shape: list[int]


@dataclass
class TextScore:
    """How well a text describes an image."""

    image: str
    text: str
    cosine: float
    probability: float


@dataclass
class RegionScore:
    """How well a text describes a part of an image."""

    box: list[float]
    text: str
    cosine: float


@dataclass
class IndexStatus:
    """The index of images, if there is one."""

    folder: str
    images: int
    unreadable: int
    model: str
    precision: str


def make_server() -> MCPServer:
    """A server of the protocol, without tools yet."""
    # Its tools never change, so there is nothing to subscribe to.
    return MCPServer(
        "fgclip-rt", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING", subscriptions=False
    )


def add_tools(server: MCPServer, model: Model, sources: Sources, index: ImageIndex | None = None) -> None:
    """Give a server all tools that a model and an index allow.

    Args:
        server: gets them.
        model: answers the questions.
        sources: the images that an agent may name.
        index: images to search; None leaves out the tools for it.

    Raises:
        IndexFileError: the index is of another model.
    """
    if index is not None:
        index.check_model(model)
    tools = _Tools(model, sources)
    functions: list[Callable[..., object]] = [
        tools.text_embedding,
        tools.image_embedding,
        tools.cosine_similarity,
        tools.score,
    ]
    if model.graphs.has("region"):
        functions.append(tools.score_regions)
    if model.graphs.has("dense"):
        functions += [tools.find_in_image, tools.heatmap]
    if index is not None:
        searches = _Searches(model, sources, index)
        functions += [searches.search_images, searches.index_status]
    for function in functions:
        server.tool(annotations=_READS)(function)


def _plain(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have our errors reach the agent as their sentence alone."""

    @wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except FgclipError as error:
            raise ToolError(str(error)) from None

    return called


class _Tools:
    """Tools for single images and texts."""

    def __init__(self, model: Model, sources: Sources) -> None:
        self._model, self._sources = model, sources
        self._vectors = Vectors(model.manifest.model.name, model.bundle.manifest_sha256)

    @_plain
    def text_embedding(self, texts: list[str], walk_type: str = "short", model: str | None = None) -> Saved:
        """Embed texts, and keep their vectors at addresses for `cosine_similarity`.

        walk_type is short for captions, box for names of things, long for long captions. model may be left out.
        """
        self._check_model(model)
        _check_count("texts", texts)
        vectors = self._model.embed_texts(texts, walk_type)
        uris = [
            self._vectors.keep("text", text.encode(), vector, walk_type)
            for text, vector in zip(texts, vectors, strict=True)
        ]
        return Saved(True, None, uris)

    @_plain
    def image_embedding(self, images: list[str], model: str | None = None) -> Saved:
        """Embed images, and keep their vectors at addresses for `cosine_similarity`."""
        self._check_model(model)
        _check_count("images", images)
        contents = [_bytes(self._sources.read(image)) for image in images]
        vectors = self._model.embed_images(contents)
        uris = [self._vectors.keep("image", content, vector) for content, vector in zip(contents, vectors, strict=True)]
        return Saved(True, None, uris)

    @_plain
    def cosine_similarity(
        self, uris_a: list[str], uris_b: list[str], mode: Literal["pairwise", "matrix"] = "pairwise"
    ) -> Similarities:
        """Cosines of vectors by their addresses: of each pair, or of all with all as a matrix."""
        _check_count("uris_a", uris_a)
        _check_count("uris_b", uris_b)
        one, other = (np.stack([self._vectors.get(uri) for uri in uris]) for uris in (uris_a, uris_b))
        if mode == "matrix":
            matrix = (one @ other.T).round(6)
            return Similarities(True, matrix.tolist(), list(matrix.shape))
        if len(one) != len(other):
            raise ArgumentError(f"there are {len(one)} and {len(other)} addresses; give as many of each, or 'matrix'.")
        pairs = (one * other).sum(axis=1).round(6)
        return Similarities(True, pairs.tolist(), list(pairs.shape))

    @_plain
    def score(self, images: list[str], texts: list[str], walk_type: str = "short") -> list[TextScore]:
        """How well each text describes each image: the cosine, and the model's probability."""
        _check_count("images", images)
        _check_count("texts", texts)
        scored = answers.score(
            self._model,
            [self._sources.read(image) for image in images],
            texts,
            walk_type,
            names=[self._sources.shown(image) for image in images],
        )
        if scored.skipped:
            raise ArgumentError(scored.skipped[0].error)
        return [
            TextScore(image, text, round(cosine, 4), round(probability, 4))
            for image, cosines, probabilities in zip(scored.images, scored.cosines, scored.probabilities, strict=True)
            for text, cosine, probability in zip(scored.texts, cosines, probabilities, strict=True)
        ]

    @_plain
    def score_regions(self, image: str, boxes: list[list[float]], texts: list[str]) -> list[RegionScore]:
        """How well each text describes each box of an image, by cosines. Boxes are x1, y1, x2, y2 in pixels."""
        scored = answers.regions(self._model, self._sources.read(image), boxes, texts, name=self._sources.shown(image))
        return [
            RegionScore(box, text, round(cosine, 4))
            for box, cosines in zip(scored.boxes, scored.cosines, strict=True)
            for text, cosine in zip(scored.texts, cosines, strict=True)
        ]

    @_plain
    def find_in_image(self, image: str, text: str) -> list[str | Picture]:
        """Find the place in an image that a text describes best: its box, its cosine, and a picture of it."""
        photo = self._model.load_image(self._sources.read(image))
        (values,) = self._model.dense(photo).map(text)
        box = box_around_largest(values, photo.size)
        x, y = largest_at(values, photo.size)
        corners = ", ".join(f"{corner:.0f}" for corner in box)
        said = (
            f"box [{corners}] of {photo.width}×{photo.height} pixels; nearest patch at ({x:.0f}, {y:.0f}) with the "
            f"cosine {values.max():.4f}, and the image's median is {np.median(values):.4f}"
        )
        hit = Hit(0, self._sources.shown(image)[-40:], 0.0, *photo.size, 0, float(values.max()), list(box))
        return [said, _picture(draw_hits([hit], [photo]))]

    @_plain
    def heatmap(self, image: str, texts: list[str]) -> Picture:
        """Draw where in an image each text is found: one map per text, of cosines with its patches."""
        _check_count("texts", texts)
        photo = self._model.load_image(self._sources.read(image))
        dense = self._model.dense(photo)
        plan(photo.size, dense.grid, len(texts), overlay=True)
        cosines = dense.map(texts)
        return _picture(draw(photo, cosines, texts, choose_scales(cosines, "shared"), overlay=True).image)

    def _check_model(self, name: str | None) -> None:
        """Refuse another model by name; ``fg-clip`` is the name that the hosted service gives to all."""
        own = self._model.manifest.model.name
        if name not in (None, own, "fg-clip"):
            raise ArgumentError(f"this server has no model {name!r}; it has {own}, so leave the name out.")


class _Searches:
    """Tools for an index of images."""

    def __init__(self, model: Model, sources: Sources, index: ImageIndex) -> None:
        self._model, self._sources, self._index = model, sources, index

    @_plain
    def search_images(
        self,
        text: str | None = None,
        image: str | None = None,
        box: list[float] | None = None,
        top: int = 8,
        fine: bool = False,
        folder: str = "",
    ) -> list[str | Picture]:
        """Find images of the index by a text, by an image, or by the part of an image in a box.

        fine ranks by small parts and takes longer. The answer lists paths below the index's folder, nearest first, and
        shows the images.
        """
        if (text is None) == (image is None):
            raise ArgumentError("give either a text or an image.")
        if not 1 <= top <= _MOST:
            raise ArgumentError(f"top is {top}; ask for 1 to {_MOST} images.")
        if text is not None:
            query = Query.of_text(self._model, text, fine=fine)
        else:
            assert image is not None
            turned = self._index.about.exif_transpose
            query = Query.of_image(self._model, self._sources.read(image), box, turned=turned)
        found = find(self._index, self._model, query, top, folder)
        lines = [f"{number}. {_described(hit)}" for number, hit in enumerate(found.hits, 1)]
        pictures = [self._load(hit) for hit in found.hits]
        head = f"the nearest of {found.searched} images below {found.root}"
        return ["\n".join([head, *lines]), _picture(draw_hits(found.hits, pictures))]

    @_plain
    def index_status(self) -> IndexStatus:
        """The index that `search_images` searches: its folder, its images, and the model that made it."""
        images, unreadable = self._index.counts()
        about = self._index.about
        return IndexStatus(about.root, images, unreadable, about.model, about.precision)

    def _load(self, hit: Hit) -> Image.Image | None:
        try:
            return self._model.load_image(self._index.file(hit), self._index.about.exif_transpose)
        except FgclipError:
            # It is drawn as missing, and its name is in the list.
            return None


def _described(hit: Hit) -> str:
    where = "" if hit.box is None else f", box [{', '.join(f'{value:.0f}' for value in hit.box)}]"
    cosine = hit.cosine if hit.finest is None else hit.finest
    return f"{hit.image}, cosine {cosine:.4f}, {hit.width}×{hit.height} pixels{where}"


def _picture(image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(data=buffer.getvalue(), format="png")


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _check_count(name: str, values: Sequence[object]) -> None:
    if not 1 <= len(values) <= _MOST:
        raise ArgumentError(f"there are {len(values)} {name}; give 1 to {_MOST}.")
