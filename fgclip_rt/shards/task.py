"""A shard as a request to a worker, and its outcome, whoever runs the worker: a process here or an actor elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from .. import errors
from ..bundle import Bundle
from ..errors import BundleError, FgclipError, ShardError
from ..model import Model, open_model
from .embedding import embed_shard
from .job import Job, Marker, Shard
from .storage import open_store


class Setup(msgspec.Struct, frozen=True):
    """The work that all shards of a job have in common.

    Attributes:
        output: path or URL of the output.
        job: which rows are made.
        bundle: as for :func:`fgclip_rt.load`, as the following are.
        device: the device.
        threads: CPU threads.
        backend: the backend.
        preparation: what resizes images.
        most_pixels: half of the most pixels of an image, as ``PIL.Image.MAX_IMAGE_PIXELS``.
    """

    output: str
    job: Job
    bundle: str
    device: str = "auto"
    threads: int | None = None
    backend: str | None = None
    preparation: str = "python"
    most_pixels: float | None = None


class Task(msgspec.Struct, frozen=True):
    """A shard to do. With the marker of one that is done, only its dead letters are read again."""

    shard: Shard
    retry: Marker | None = None


class Done(msgspec.Struct, frozen=True, tag=True):
    """A task is done."""

    marker: Marker


class Refused(msgspec.Struct, frozen=True, tag=True):
    """An error ended a task; its class is called ``kind``."""

    kind: str
    code: str
    message: str

    @classmethod
    def of(cls, error: FgclipError) -> Refused:
        """An error as an answer."""
        return cls(type(error).__name__, error.code, str(error))


class Failed(msgspec.Struct, frozen=True):
    """A shard that is not done: its name, and the error."""

    shard: str
    error: ShardError


class Report(Protocol):
    """Is told how the work goes, from several threads."""

    def step(self, rows: int, errors: int) -> None:
        """Images were embedded, and items refused."""

    def ended(self, outcome: Marker | Failed) -> None:
        """A shard is done, or cannot be."""


class Worker:
    """Does one shard after another. It loads its model with the first."""

    def __init__(self, setup: Setup) -> None:
        """Make a worker of a job."""
        self._setup = setup
        self._store = open_store(setup.output)
        self._model: Model | None = None

    def do(self, task: Task, step: Callable[[int, int], None] = lambda *_: None) -> Done | Refused:
        """Do a shard, unless it was done meanwhile; ``step`` is as for :func:`fgclip_rt.shards.embed_shard`."""
        try:
            # A task comes twice if a node is lost whose work is there, or another run does the same.
            found = self._store.marker(task.shard.name)
            if found is not None and found != task.retry and found.stamp == task.shard.stamp:
                return Done(found)
            self._model = self._model or _open(self._setup)
            return Done(embed_shard(self._model, self._setup.job, task.shard, self._store, retry=task.retry, step=step))
        except FgclipError as error:
            return Refused.of(error)
        except MemoryError:
            message = "memory ran out; start fewer --processes, or choose fewer --max-num-patches."
            return Refused("DeviceError", "out_of_memory", message)


def outcome(task: Task, answer: Done | Refused) -> Marker | Failed:
    """The outcome of a task.

    Raises:
        FgclipError: no other task can be done either.
    """
    if isinstance(answer, Done):
        return answer.marker
    kind: type[FgclipError] = getattr(errors, answer.kind)
    error = kind(answer.message, code=answer.code)
    if isinstance(error, ShardError):
        return Failed(task.shard.name, error)
    raise error


def _open(setup: Setup) -> Model:
    import warnings

    from PIL import Image

    # As in the process that began the job; Pillow's warning would only repeat that an image is large.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = setup.most_pixels  # type: ignore[assignment]
    bundle = Bundle.open(Path(setup.bundle))
    if bundle.manifest_sha256 != setup.job.manifest_sha256:
        raise BundleError(
            f"{setup.bundle} was replaced since the job was begun; restore it, or choose another --output.",
            code="bundle_replaced",
        )
    return open_model(
        bundle, setup.device, setup.job.precision, setup.threads, setup.backend, preparation=setup.preparation
    )
