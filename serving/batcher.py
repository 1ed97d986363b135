"""One process owns the device: items of many callers are prepared by threads and run together, graph by graph."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

import msgspec

from fgclip_rt import forks
from fgclip_rt.ahead import preparing_threads
from fgclip_rt.arrays import FloatArray
from fgclip_rt.batching import Item as Queued
from fgclip_rt.batching import full
from fgclip_rt.dense import DenseImage
from fgclip_rt.errors import ArgumentError, ServingError
from fgclip_rt.graphs import ImageInputs, Output, TextInputs
from fgclip_rt.model import EmbeddedText, Model
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Encoded

from .admission import Admission, closed
from .items import DenseItem, EmbeddedImage, ImageItem, Item, TextItem
from .lanes import Lanes, Waiting

#: An asynchronous backend runs a batch while the next one is handed over.
_BATCHES_AHEAD = 1

#: Characters of a lone text that is tokenised by its caller, which takes less time than handing it to a thread.
_AT_ONCE = 512

Answer: TypeAlias = EmbeddedImage | EmbeddedText | DenseImage


class Lane(msgspec.Struct, frozen=True):
    """Items that may run together: those of a graph and a bucket, or a walk type, whose length is the same."""

    graph: str
    kind: int | str
    length: int


class BatchRun(msgspec.Struct, frozen=True):
    """A batch that ran, for metrics.

    Attributes:
        lane: its graph and length.
        items: number of items.
        room: number of items that a full batch has.
        waited: seconds that each item waited for the batch.
        seconds: from handing it to the device until its results were there.
        error: the code of the error that it ended with; None if it ran.
        inputs: the items themselves, in the order of ``waited``.
    """

    lane: Lane
    items: int
    room: int
    waited: Sequence[float]
    seconds: float
    error: str | None
    inputs: Sequence[Item]


class _ReadyText(msgspec.Struct, frozen=True):
    """A text that was tokenised."""

    prepared: str
    encoded: Encoded


class _Job(msgspec.Struct, eq=False):
    """An item on its way, and what a thread made of it."""

    item: Item
    until: float
    future: Future[Any]
    ready: Patches | _ReadyText | None = None

    def is_unwanted(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.future.cancelled() or self.until <= time.monotonic()

    def answer(self, answer: Answer) -> None:
        """Hand over the answer, unless the caller has gone away. An item is answered or failed once."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Hand over an error, as :meth:`answer` does."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Running(msgspec.Struct, frozen=True):
    """A batch on the device."""

    lane: Lane
    jobs: list[_Job]
    waited: list[float]
    begun: float
    output: Output


class Batcher:
    """A model behind a queue. Safe to use from several threads; a forked child makes its own.

    Images are decoded and resized by threads, and texts are tokenised by another one, so that a text never waits for a
    photo; a lone short text is tokenised by its caller. One thread runs the batches. A batch is due when it is full,
    when its oldest item has waited ``max_wait``, or when nothing else is on its way: a lone request waits for nobody.

    Vectors are those of :meth:`fgclip_rt.Model.embed_images` and :meth:`fgclip_rt.Model.embed_texts`: equal bits in
    equal batches, and equal within the limits of parity otherwise.

    Attributes:
        model: the model.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_wait: float = 0.005,
        max_work: int = 65_536,
        on_batch: Callable[[BatchRun], None] | None = None,
        on_prepared: Callable[[Item, float], None] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            model: a loaded model.
            max_wait: seconds that an item waits for others at most, while the device is idle.
            max_work: patches and tokens that may wait together. It bounds memory, and how long a request waits.
            on_batch: is told of each batch, in the thread that runs them.
            on_prepared: is told of each item and the seconds that preparing it took, in the thread that did so.

        Raises:
            ArgumentError: ``max_wait`` is negative, or ``max_work`` is not positive.
        """
        if not 0 <= max_wait < math.inf:
            raise ArgumentError(f"max_wait is {max_wait!r}; pass seconds, 0 or more.")
        if max_work < 1:
            raise ArgumentError(f"max_work is {max_work!r}; pass a positive number of patches and tokens.")
        self.model = model
        self._admission = Admission(max_work)
        self._shortest = min(kind.length for kind in model.manifest.text.walk_types.values())
        self._lanes: Lanes[_Job] = Lanes(full(self._size), max_wait)
        self._on_batch = on_batch
        self._on_prepared = on_prepared
        self._preparing = 0
        self._stopped = False
        self._forked = False
        #: Guards the lanes and the two fields above it. Nothing of a caller's runs while it is held.
        self._changed = threading.Condition()
        self._photos = ThreadPoolExecutor(preparing_threads(), thread_name_prefix="fgclip-rt-image")
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="fgclip-rt-text")
        self._runner = threading.Thread(target=self._run, name="fgclip-rt-run", daemon=True)
        self._runner.start()
        forks.call_in_children(self._leave)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def max_work(self) -> int:
        """Patches and tokens that may wait together."""
        return self._admission.most

    @property
    def work(self) -> int:
        """Patches and tokens that were taken and are not answered yet."""
        return self._admission.work

    @property
    def is_full(self) -> bool:
        """Whether even the shortest text would be too much now."""
        return self.work > 0 and self.max_work - self.work < self._shortest

    def work_of(self, item: Item) -> int:
        """Patches or tokens that an item counts for until it is answered; those of the largest bucket for an image.

        Raises:
            ArgumentError: the model has no such walk type.
        """
        if isinstance(item, TextItem):
            return self.model.tokenizer.walk_type(item.walk_type).length
        return item.max_num_patches or self.model.manifest.image.buckets[-1]

    def submit(self, items: Iterable[Item], *, timeout: float | None = None) -> list[Future[Any]]:
        """Take the items of one request, all of them or none, and return at once.

        A future that is cancelled before its item runs takes the item out of the queue.

        Args:
            items: images and texts.
            timeout: seconds after which nobody waits for the answers any more; None waits for ever.

        Returns:
            For each item a future of its :class:`EmbeddedImage`, its :class:`EmbeddedText`, or of a
            :class:`DenseItem` its :class:`fgclip_rt.dense.DenseImage`. It raises the item's own FgclipError.

        Raises:
            ServingError: the request is more work than may wait, now or ever, or the batcher is closed or a forked
                child's.
            ArgumentError: the model has no such walk type, or no dense features.
        """
        if self._forked:
            raise ServingError(
                "the batcher was made before this process was forked, and its threads are not here; make one in the "
                "child.",
                code="shutting_down",
            )
        until = math.inf if timeout is None else time.monotonic() + timeout
        jobs = [_Job(item, until, Future()) for item in items]
        if any(isinstance(job.item, DenseItem) for job in jobs):
            self.model.graphs.check_has("dense")
        works = [self.work_of(job.item) for job in jobs]
        self._admission.take(sum(works))
        with self._changed:
            self._preparing += len(jobs)
        for job, work in zip(jobs, works, strict=True):
            job.future.add_done_callback(partial(self._give_back, work))
            if not isinstance(job.item, TextItem):
                self._photos.submit(self._prepare, job)
            elif len(jobs) == 1 and len(job.item.text) <= _AT_ONCE:
                self._prepare(job)
            else:
                self._texts.submit(self._prepare, job)
        return [job.future for job in jobs]

    def close(self, timeout: float | None = None) -> bool:
        """Take no more requests, answer those that were taken, and end the threads.

        Args:
            timeout: seconds; requests that are not answered by then get a ServingError. None waits for all.

        Returns:
            Whether all were answered.
        """
        if self._forked:
            return True
        answered = self._admission.close(timeout)
        with self._changed:
            self._stopped = True
            left = self._lanes.drop(lambda _: True)
            self._changed.notify_all()
        for waiting in left:
            waiting.item.value.fail(closed())
        for pool in (self._photos, self._texts):
            pool.shutdown()
        self._runner.join()
        return answered

    def _give_back(self, work: int, _: Future[Any]) -> None:
        self._admission.give_back(work)

    def _leave(self) -> None:
        self._forked = True

    def _size(self, lane: Lane) -> int:
        """Number of items of a full batch."""
        return self.model.backend.batch_size(lane.graph, lane.length)

    def _prepare(self, job: _Job) -> None:
        """Decode and resize, or tokenise, and put the result into its lane."""
        begun = time.perf_counter()
        lane: Lane | None = None
        try:
            if self._stopped:
                job.fail(closed())
            elif job.is_unwanted():
                job.fail(_late())
            else:
                lane = self._prepare_text(job) if isinstance(job.item, TextItem) else self._prepare_image(job)
                if self._on_prepared is not None:
                    self._on_prepared(job.item, time.perf_counter() - begun)
        except BaseException as error:
            job.fail(error)
            lane = None
        finally:
            with self._changed:
                self._preparing -= 1
                queued = lane is not None and not self._stopped
                if lane is not None and queued:
                    self._lanes.add(Waiting(Queued(0, lane, lane.length, job), time.monotonic()))
                self._changed.notify_all()
        if lane is not None and not queued:
            job.fail(closed())

    def _prepare_image(self, job: _Job) -> Lane:
        item = job.item
        assert isinstance(item, ImageItem)
        patches = self.model.prepare(item.source, item.max_num_patches, item.name, exif_transpose=item.exif_transpose)
        job.ready = patches
        return Lane("dense" if isinstance(item, DenseItem) else "vision", patches.bucket, patches.bucket)

    def _prepare_text(self, job: _Job) -> Lane | None:
        item, tokenizer = job.item, self.model.tokenizer
        assert isinstance(item, TextItem)
        prepared = tokenizer.prepare(item.text, item.walk_type)
        known = self.model.recent_texts.get((prepared, item.walk_type, True))
        if known is not None:
            job.answer(known)
            return None
        job.ready = _ReadyText(prepared, tokenizer.encode(prepared, item.walk_type))
        return Lane("text", item.walk_type, tokenizer.walk_type(item.walk_type).length)

    def _run(self) -> None:
        """Run batch after batch until the batcher is closed."""
        running: deque[_Running] = deque()
        while True:
            taken = self._take(wait=not running)
            if taken is None and not running:
                return
            if taken is not None:
                begun = self._begin(taken)
                running.extend([begun] if begun is not None else [])
            # Results that are there must not wait for the next batch.
            while running and (taken is None or len(running) > _BATCHES_AHEAD or running[0].output.is_ready):
                self._finish(running.popleft())

    def _take(self, *, wait: bool) -> list[Waiting[_Job]] | None:
        """Take the batch that is due. None if the batcher is closed; without ``wait`` also if none is due."""
        while True:
            with self._changed:
                unwanted = self._lanes.drop(lambda waiting: waiting.item.value.is_unwanted())
                now = time.monotonic()
                taken = self._lanes.next(now, more_to_come=self._preparing > 0)
                if not (unwanted or taken or self._stopped) and wait:
                    self._changed.wait(self._lanes.due_in(now))
            for waiting in unwanted:
                waiting.item.value.fail(_late())
            if taken is not None or self._stopped or not wait:
                return taken

    def _begin(self, taken: list[Waiting[_Job]]) -> _Running | None:
        """Hand a batch over to the device; None if it failed."""
        begun = time.monotonic()
        lane: Any = taken[0].item.key
        jobs = [waiting.item.value for waiting in taken]
        waited = [begun - waiting.since for waiting in taken]
        try:
            return _Running(lane, jobs, waited, begun, self._submit_batch(lane, jobs))
        except BaseException as error:
            self._fail(lane, jobs, waited, begun, error)
            return None

    def _submit_batch(self, lane: Lane, jobs: list[_Job]) -> Output:
        graphs = self.model.graphs
        if lane.graph != "text":
            inputs = ImageInputs.of([_patches(job) for job in jobs])
            return graphs.dense(inputs) if lane.graph == "dense" else graphs.vision(inputs)
        tokenizer = self.model.tokenizer
        tokens = tokenizer.pad([_text(job).encoded for job in jobs], str(lane.kind))
        return graphs.text(TextInputs.of(tokens, tokenizer.walk_type(str(lane.kind)).index))

    def _finish(self, running: _Running) -> None:
        """Wait for a batch, and answer its items."""
        try:
            rows = running.output.result()
            answers = [self._answer(job, row) for job, row in zip(running.jobs, rows, strict=True)]
        except BaseException as error:
            self._fail(running.lane, running.jobs, running.waited, running.begun, error)
            return
        self._report(running.lane, running.jobs, running.waited, running.begun, None)
        for job, answer in zip(running.jobs, answers, strict=True):
            job.answer(answer)

    def _answer(self, job: _Job, row: FloatArray) -> Answer:
        """The answer to an item, from its row of a graph's output. A copy, so that it does not keep the whole batch."""
        if isinstance(job.item, TextItem):
            text = _text(job)
            answer = EmbeddedText.of(row, text.encoded)
            self.model.recent_texts.put((text.prepared, job.item.walk_type, True), answer)
            return answer
        patches = _patches(job)
        if isinstance(job.item, DenseItem):
            return self.model.dense_image(patches, row[: len(patches.pixels)].copy())
        return EmbeddedImage(row.copy(), len(patches.pixels), patches.orientation)

    def _fail(self, lane: Lane, jobs: list[_Job], waited: list[float], begun: float, error: BaseException) -> None:
        """Fail the items of a batch. The batch is told of first, while the requests that it belongs to are open."""
        self._report(lane, jobs, waited, begun, error)
        for job in jobs:
            job.fail(error)

    def _report(
        self, lane: Lane, jobs: list[_Job], waited: list[float], begun: float, error: BaseException | None
    ) -> None:
        """Tell of a batch."""
        if self._on_batch is not None:
            code = None if error is None else getattr(error, "code", type(error).__name__)
            seconds = time.monotonic() - begun
            items = [job.item for job in jobs]
            self._on_batch(BatchRun(lane, len(jobs), self._size(lane), waited, seconds, code, items))


def _patches(job: _Job) -> Patches:
    assert isinstance(job.ready, Patches)
    return job.ready


def _text(job: _Job) -> _ReadyText:
    assert isinstance(job.ready, _ReadyText)
    return job.ready


def _late() -> ServingError:
    return ServingError("the request waited until its time was over; ask again, or allow more.", code="deadline_passed")
