"""Requests to a worker and its answers, and the work that a worker does, whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from ..bundle import Bundle
from ..errors import BundleError
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


class Worker:
    """A model and an output, for one shard after another."""

    def __init__(self, setup: Setup) -> None:
        """Load the model.

        Raises:
            BundleError: the bundle is another than the job's, or cannot be used.
            FgclipError: the model cannot be loaded.
        """
        import warnings

        from PIL import Image

        # As in the process that began the job; Pillow's warning would only repeat that an image is large.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = setup.most_pixels  # type: ignore[assignment]
        self._setup = setup
        self._model = _open(setup)
        self._store = open_store(setup.output)

    def do(self, task: Task, step: Callable[[int, int], None] = lambda *_: None) -> Marker:
        """Do a shard; arguments and errors are those of :func:`fgclip_rt.shards.embed_shard`."""
        return embed_shard(self._model, self._setup.job, task.shard, self._store, retry=task.retry, step=step)


def _open(setup: Setup) -> Model:
    bundle = Bundle.open(Path(setup.bundle))
    if bundle.manifest_sha256 != setup.job.manifest_sha256:
        raise BundleError(
            f"{setup.bundle} was replaced since the job was begun; restore it, or choose another --output.",
            code="bundle_replaced",
        )
    return open_model(
        bundle, setup.device, setup.job.precision, setup.threads, setup.backend, preparation=setup.preparation
    )
