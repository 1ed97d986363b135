"""A bundle as a deployment of Ray Serve: replicas, each with a batcher, behind HTTP and Ray's handles.

>>> from ray import serve
>>> from fgclip_rt.serving.ray import build
>>> handle = serve.run(build({"bundle": "/shared/bundle", "max_replicas": 4, "num_gpus": 1}))
>>> vectors = handle.embed_texts.remote(["a red star"]).result()
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

import fgclip_rt
from fgclip_rt.arrays import FloatArray
from fgclip_rt.errors import ArgumentError, check_positive
from fgclip_rt.model import EmbeddedText
from fgclip_rt.packages import require

from .batcher import Batcher
from .items import EmbeddedImage, ImageItem, Item, TextItem

if TYPE_CHECKING:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Message

    from .http import Application


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a deployment.

    Attributes:
        bundle: folder of the bundle, which every node finds under this path; or ``fg-clip2-pocket``.
        device: as for :func:`fgclip_rt.load`.
        precision: likewise.
        threads: CPU threads of each replica, which Ray reserves as CPUs of its node.
        num_gpus: GPUs of each replica, such as 0.5.
        min_replicas: fewest replicas.
        max_replicas: most replicas; None keeps as many as the fewest.
        ongoing: requests that each replica of several should have at once; with more, Ray begins another.
        most_ongoing: requests that a replica takes at once; its batches are made of them.
        max_wait: as for :class:`fgclip_rt.serving.Batcher`.
        max_work: likewise.
        name: of the deployment.
    """

    bundle: str
    device: str = "auto"
    precision: str | None = None
    threads: int = 1
    num_gpus: float = 0.0
    min_replicas: int = 1
    max_replicas: int | None = None
    ongoing: float = 32.0
    most_ongoing: int = 256
    max_wait: float = 0.005
    max_work: int = 65_536
    name: str = "fgclip"


def build(settings: Mapping[str, Any]) -> serve.Application:
    """The application, for ``serve.run``, ``serve run fgclip_rt.serving.ray:build`` or a file of ``serve deploy``.

    Args:
        settings: those of :class:`Deployment` by name; numbers may be strings, as on the command line.

    Raises:
        ArgumentError: a setting is unknown, missing or out of range.
        MissingDependencyError: Ray Serve, or the HTTP server's packages, are not installed.
    """
    require(
        "ray-serve",
        ["ray", "fastapi", "starlette", "multipart", "prometheus_client"],
        "a deployment of Ray Serve needs {}, which is not installed",
    )
    from ray import serve

    try:
        asked = msgspec.convert(dict(settings), Deployment, strict=False)
    except msgspec.ValidationError as error:
        raise ArgumentError(f"the settings of the deployment do not fit ({error}); see Deployment.") from None
    for name in ("threads", "min_replicas", "max_replicas", "most_ongoing"):
        check_positive(name, getattr(asked, name))
    if not asked.num_gpus >= 0 or not asked.ongoing > 0:
        raise ArgumentError(
            f"num_gpus is {asked.num_gpus:g} and ongoing {asked.ongoing:g}; give 0 or more, and more than 0."
        )
    most = asked.max_replicas or asked.min_replicas
    if most < asked.min_replicas:
        raise ArgumentError(f"max_replicas is {most}, and min_replicas {asked.min_replicas}; give it as many or more.")
    deployment = serve.deployment(
        Embedder,
        name=asked.name,
        # By default Ray gives a replica five requests at once, which is less than a batch.
        max_ongoing_requests=asked.most_ongoing,
        ray_actor_options={"num_cpus": asked.threads, "num_gpus": asked.num_gpus},
        autoscaling_config={
            "min_replicas": asked.min_replicas,
            "initial_replicas": asked.min_replicas,
            "max_replicas": most,
            "target_ongoing_requests": asked.ongoing,
        },
    )
    return deployment.bind(asked)


class Embedder:
    """A replica: the server of ``fgclip-rt serve`` without its port, and its batcher for handles.

    It is ready once every graph has run. Requests by HTTP and by handles share the batches.
    """

    # Ray awaits it.
    async def __init__(self, settings: Deployment) -> None:  # type: ignore[misc]
        """Load the model.

        Raises:
            FgclipError: it cannot be loaded, or a graph cannot run here.
        """
        from .http import Application, Observer, Settings

        def open_batcher(observer: Observer) -> Batcher:
            return Batcher(
                fgclip_rt.load(settings.bundle, settings.device, settings.precision, settings.threads),
                max_wait=settings.max_wait,
                max_work=settings.max_work,
                on_batch=observer.on_batch,
                on_prepared=observer.on_prepared,
            )

        self._application: Application = Application(open_batcher, Settings())
        self._open = AsyncExitStack()
        await self._open.enter_async_context(self._application.running())

    async def __call__(self, request: Request) -> Response:
        """Answer a request by HTTP, as ``fgclip-rt serve`` does."""
        from starlette.responses import Response

        start: dict[str, Any] = {}
        body = bytearray()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))

        await self._application(request.scope, request.receive, send)
        response = Response(bytes(body), start["status"])
        response.raw_headers = list(start["headers"])
        return response

    async def embed_images(self, images: Sequence[bytes], max_num_patches: int | None = None) -> FloatArray:
        """Vectors of image files, float32 [n, D], as those of :meth:`fgclip_rt.Model.embed_images`.

        Args:
            images: whole files.
            max_num_patches: as there.

        Raises:
            ImageError: one cannot be read; the message has its number.
            ServingError: too much work is waiting.
            ArgumentError: ``max_num_patches`` cannot be used.
        """
        return await self._embed(
            [ImageItem(image, max_num_patches, name=f"image {index}") for index, image in enumerate(images)]
        )

    async def embed_texts(self, texts: Sequence[str], walk_type: str = "short") -> FloatArray:
        """Vectors of texts, float32 [n, D], as those of :meth:`fgclip_rt.Model.embed_texts`.

        Args:
            texts: English or Chinese.
            walk_type: as there.

        Raises:
            TextError: one cannot be tokenised.
            ServingError: too much work is waiting.
            ArgumentError: there is no such walk type.
        """
        return await self._embed([TextItem(text, walk_type) for text in texts])

    async def _embed(self, items: Sequence[Item]) -> FloatArray:
        batcher = self._application.service.batcher
        futures = batcher.submit(items)
        answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
        vectors = np.zeros((len(answers), batcher.model.dim), np.float32)
        for row, answer in zip(vectors, answers, strict=True):
            assert isinstance(answer, EmbeddedImage | EmbeddedText)
            row[:] = answer.vector
        return vectors

    async def __del__(self) -> None:
        """Answer what was taken, and end the threads."""
        await self._open.aclose()
