"""The state of a server, and how its endpoints ask the batcher."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from fgclip_rt.dense import DenseImage
from fgclip_rt.errors import FgclipError
from fgclip_rt.index import ImageIndex
from fgclip_rt.model import EmbeddedText, Model

from ..batcher import Batcher
from ..items import DenseItem, EmbeddedImage, ImageItem, Item
from .failures import RequestError
from .fetch import Fetcher
from .forward import Forward
from .inputs import Base64, Parsed, Remote
from .keys import Keys
from .settings import Settings
from .tracing import Tracing

_T = TypeVar("_T")

#: A header by which a client says how long it waits, in milliseconds.
_TIMEOUT_HEADER = "x-request-timeout-ms"

#: Bytes from which on a body is parsed, and base64 decoded, by a thread: below, that takes less than a millisecond.
_LARGE = 2**18

#: Threads that parse large bodies, fetch images, and compute what comes after a tower: boxes, masks and maps.
_THREADS = 8


class Service:
    """A server's model and queue, once they are loaded.

    Attributes:
        settings: its settings.
        draining: whether it is about to end, and ready for nothing new.
        failed: why the model could not be loaded; None if it could, or is being loaded.
        tracing: makes the spans of requests.
        forward: the server that has the tasks of immich which this one lacks; None if there is none.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepare to serve.

        Raises:
            ArgumentError: the file of keys, or the URL to forward to, cannot be used.
            IndexFileError: the index cannot be used.
        """
        self.settings = settings
        self.draining = False
        self.failed: BaseException | None = None
        self._keys = Keys(settings.api_key_file) if settings.api_key_file is not None else None
        self.forward = Forward(settings.forward, settings.timeout) if settings.forward is not None else None
        self.tracing = Tracing()
        self._fetcher = Fetcher(settings.allow_urls, settings.max_body)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fgclip-rt-http")
        self._batcher: Batcher | None = None
        self._index = None if settings.index is None else ImageIndex(settings.index)

    def start(self, batcher: Batcher) -> None:
        """Answer requests by a batcher from now on.

        Raises:
            IndexFileError: the index is of another model.
        """
        if self._index is not None:
            self._index.check_model(batcher.model)
        self._batcher = batcher

    def close(self) -> None:
        """End the threads, and close the index."""
        self._threads.shutdown(cancel_futures=True)
        if self._index is not None:
            self._index.close()

    @property
    def batcher(self) -> Batcher:
        """The batcher.

        Raises:
            RequestError: the model is still being loaded, or could not be.
        """
        if self._batcher is None:
            if self.failed is not None:
                raise RequestError("the model could not be loaded; the server's log says why.", "internal_error")
            raise RequestError("the model is being loaded; ask again later.", "loading")
        return self._batcher

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._batcher is not None and not self.draining

    @property
    def model(self) -> Model:
        """The model, as :attr:`batcher`."""
        return self.batcher.model

    @property
    def has_index(self) -> bool:
        """Whether there are images to search."""
        return self._index is not None

    @property
    def index(self) -> ImageIndex:
        """The index of images.

        Raises:
            RequestError: the server has none.
        """
        if self._index is None:
            raise RequestError("this server has no index; start it with --index.", "not_found")
        return self._index

    @property
    def has_keys(self) -> bool:
        """Whether clients must show a key."""
        return self._keys is not None

    def check_key(self, request: Request) -> None:
        """Refuse a client that shows no key, if one is needed.

        Raises:
            RequestError: it shows none that is known.
        """
        if self._keys is not None and not self._keys.allow(request.headers.get("authorization")):
            raise RequestError(
                "the request shows no key that this server knows; send 'authorization: Bearer KEY'.", "unauthorized"
            )

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served here. Its vectors would be taken for another's.

        Raises:
            RequestError: it is another.
        """
        served = (self.model.manifest.model.name, *self.settings.aliases)
        if name is not None and name not in served:
            raise RequestError(
                f"this server has no model {name!r}; it has {', '.join(served)}.", "model_not_found", "model"
            )

    def check_room(self) -> None:
        """Refuse a request before its body is read and parsed, which under overload would cost more than the answers.

        Raises:
            RequestError: too much work is waiting already, or the model is not loaded.
        """
        if self.batcher.is_full:
            raise RequestError(f"{self.batcher.work:,} patches and tokens are waiting; ask again later.", "overloaded")

    async def in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function that takes milliseconds or more, without holding up other requests."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def unless_small(self, size: int, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function whose time grows with the ``size`` of its argument: at once if it is small."""
        return await self.in_thread(function, *arguments) if size > _LARGE else function(*arguments)

    async def fetch(self, parsed: Sequence[Parsed]) -> list[Item | RequestError]:
        """Fetch and decode those of some inputs that need it, side by side."""
        found = [each if isinstance(each, Item | RequestError) else None for each in parsed]
        wanted = [each for each in parsed if isinstance(each, Remote | Base64)]
        read = iter(await asyncio.gather(*map(self._read, wanted)))
        return [next(read) if each is None else each for each in found]

    async def _read(self, wanted: Remote | Base64) -> Item | RequestError:
        if isinstance(wanted, Base64):
            return await self.unless_small(len(wanted.data), wanted.decode)
        try:
            data = await self.in_thread(self._fetcher.fetch, wanted.url)
        except RequestError as error:
            return RequestError(f"{wanted.item.name}: {error.message}", error.code)
        return msgspec.structs.replace(wanted.item, source=data)

    async def run(self, request: Request, items: Sequence[Item]) -> list[Any]:
        """The answers to items, or their errors, in their order. A client that goes away takes its items with it.

        Raises:
            RequestError: they are too much work, now or ever, or were not answered in time.
            ClientDisconnect: the client has gone away.
        """
        with self.tracing.watch(items, self.model.manifest.model.name):
            return await self._run(request, items)

    async def _run(self, request: Request, items: Sequence[Item]) -> list[Any]:
        try:
            submitted = self.batcher.submit(items, timeout=self._left(request))
        except FgclipError as error:
            raise RequestError.of(error) from None
        try:
            await self.wait(request, _all_done(submitted))
            return [each.exception() or each.result() for each in submitted]
        finally:
            # Nothing is to run that nobody reads.
            for each in submitted:
                each.cancel()

    async def wait(self, request: Request, answered: asyncio.Future[_T]) -> _T:
        """The result of what a request waits for.

        Raises:
            RequestError: it was not there in time.
            ClientDisconnect: the client has gone away.
        """
        gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((answered, gone), timeout=self._left(request), return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                return answered.result()
            if gone.done():
                raise ClientDisconnect
            seconds = self._seconds(request)
            raise RequestError(
                f"the request was not answered within {seconds:g} s; ask again, or allow more.", "deadline_passed"
            )
        finally:
            gone.cancel()

    async def embed(self, request: Request, inputs: Sequence[Item | RequestError]) -> list[Any]:
        """As :meth:`run`, with inputs of which some are errors already."""
        items = [each for each in inputs if not isinstance(each, RequestError)]
        answers = iter(await self.run(request, items) if items else [])
        return [each if isinstance(each, RequestError) else next(answers) for each in inputs]

    async def dense(self, request: Request, image: ImageItem) -> DenseImage:
        """An image whose tower has run.

        Raises:
            RequestError: it cannot be read, or as for :meth:`run`.
        """
        fields = {name: getattr(image, name) for name in image.__struct_fields__}
        (answer,) = await self.run(request, [DenseItem(**fields)])
        if isinstance(answer, BaseException):
            raise RequestError.of(answer, "image")
        assert isinstance(answer, DenseImage)
        return answer

    def _left(self, request: Request) -> float:
        """Seconds that a request has left. Its body took some to come and to be parsed, and the client's clock runs."""
        return float(request.state.came) + self._seconds(request) - time.monotonic()

    def _seconds(self, request: Request) -> float:
        said = request.headers.get(_TIMEOUT_HEADER)
        if said is None:
            return self.settings.timeout
        try:
            seconds = float(said) / 1000
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise RequestError(f"{_TIMEOUT_HEADER} is {said!r}; give milliseconds, as a positive number.")
        return min(seconds, self.settings.timeout)


def _all_done(futures: Sequence[Future[Any]]) -> asyncio.Future[None]:
    """Done when all are. The loop is woken once, and not for each of them."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    left = len(futures)
    counting = threading.Lock()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def count(_: Future[Any]) -> None:
        nonlocal left
        with counting:
            left -= 1
            last = left == 0
        if last:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and there is nobody to tell
                loop.call_soon_threadsafe(finish)

    for each in futures:
        each.add_done_callback(count)
    if not futures:
        finish()
    return done


async def _gone(request: Request) -> None:
    """Wait until the client has gone away. The body was read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def usage(answers: Sequence[object]) -> int:
    """Tokens of texts and patches of images, together."""
    tokens = sum(answer.tokens for answer in answers if isinstance(answer, EmbeddedText))
    return tokens + sum(answer.patches for answer in answers if isinstance(answer, EmbeddedImage))
