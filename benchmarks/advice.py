"""Advice for a folder of images: the buckets that they take, the cost of padding, and the fastest batch sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from fgclip_rt.errors import ImageError
from fgclip_rt.graphs import ImageInputs
from fgclip_rt.images import image_size
from fgclip_rt.manifest import Strict
from fgclip_rt.model import Model
from fgclip_rt.names import spell_path
from fgclip_rt.progress import BeginStage, silent
from fgclip_rt.turns import take_turns, timed

from .inputs import noise_patches

#: Batch sizes to try, and the largest number of patches in a batch of more than one image.
_BATCHES, _MOST_PATCHES = (1, 2, 4, 8, 16, 32), 8192

#: A larger batch must be faster than a smaller one by more than this factor, because a smaller gain may be noise.
_NOISE = 1.02


class BucketAdvice(Strict, frozen=True):
    """Images of one bucket.

    Attributes:
        bucket: largest number of patches of an image.
        images: number of images.
        patches: mean number of patches of an image.
        padding: share of padding among the patches of all batches, by batch size. Batches keep the images' order.
        rates: images a second that the model embeds, by batch size.
        batch_size: the smallest batch size that is as fast as any, but for noise.
    """

    bucket: int
    images: int
    patches: float
    padding: dict[int, float]
    rates: dict[int, float]
    batch_size: int


class Advice(Strict, frozen=True):
    """Advice for all images together.

    Attributes:
        images: number of files that can be read.
        unreadable: files that cannot be read, as :func:`fgclip_rt.spell_path` spells them.
        buckets: advice for each bucket that occurs, the smallest first.
        images_per_second: rate of the model alone over all images, each bucket in its best batch size.
        batch_size: the one batch size that is fastest over all buckets.
        images_per_second_of_it: rate of the model alone over all images in batches of ``batch_size``.
    """

    images: int
    unreadable: tuple[str, ...]
    buckets: tuple[BucketAdvice, ...]
    images_per_second: float
    batch_size: int
    images_per_second_of_it: float


def advise(
    model: Model,
    files: Sequence[Path],
    max_num_patches: int | None = None,
    rounds: int = 5,
    seconds: float = 20.0,
    begin: BeginStage = silent,
) -> Advice:
    """Look at the sizes of image files, and time the model on images of those sizes.

    Only the headers of the files are read.

    Args:
        model: a loaded bundle.
        files: images.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.
        rounds: number of turns of each batch size.
        seconds: seconds after which a bucket has no further round.
        begin: is told how far the work is.

    Raises:
        ImageError: none of the files is an image.
    """
    done = begin("read sizes", len(files))
    grids: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unreadable = []
    for file in files:
        try:
            width, height = image_size(file)
        except ImageError:
            unreadable.append(spell_path(file))
        else:
            bucket, shape = model.preparation.grid(width, height, max_num_patches)
            grids[bucket].append(shape)
        done()
    if not grids:
        raise ImageError(f"none of the {len(files)} files is an image that Pillow can read; give others.")
    done = begin("measure", rounds * len(grids))
    buckets = tuple(_advise_bucket(model, bucket, grids[bucket], rounds, seconds, done) for bucket in sorted(grids))
    batch_size = _best({size: _overall(buckets, size) for size in _BATCHES})
    return Advice(
        images=sum(advice.images for advice in buckets),
        unreadable=tuple(unreadable),
        buckets=buckets,
        images_per_second=_overall(buckets, None),
        batch_size=batch_size,
        images_per_second_of_it=_overall(buckets, batch_size),
    )


def _advise_bucket(
    model: Model,
    bucket: int,
    grids: Sequence[tuple[int, int]],
    rounds: int,
    seconds: float,
    done: Callable[[], None],
) -> BucketAdvice:
    sizes = [size for size in _BATCHES if size == 1 or (size * bucket <= _MOST_PATCHES and size <= len(grids))]

    def turn(size: int) -> float:
        batch = [noise_patches(model.manifest.image, grid, bucket) for grid in grids[:size]]
        return timed(lambda: model.graphs.vision(ImageInputs.of(batch)).result())

    turns = {size: partial(turn, size) for size in sizes}
    measured = take_turns(turns, rounds, warm_up=1, seconds=seconds, progress=done)
    rates = {size: median(size / elapsed for elapsed in values) for size, values in measured.items()}
    lengths = np.array([rows * columns for rows, columns in grids])
    return BucketAdvice(
        bucket=bucket,
        images=len(grids),
        patches=float(lengths.mean()),
        padding={size: _padding(lengths, size) for size in sizes},
        rates=rates,
        batch_size=_best(rates),
    )


def _padding(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], size: int) -> float:
    """Share of padding among the patches of all batches, each padded to its longest image."""
    padded = sum(len(batch) * batch.max() for batch in np.array_split(lengths, range(size, len(lengths), size)))
    return float(1 - lengths.sum() / padded)


def _best(rates: Mapping[int, float]) -> int:
    """The smallest batch size that is as fast as any, but for noise."""
    most = max(rates.values())
    return min(size for size, rate in rates.items() if rate * _NOISE >= most)


def _overall(buckets: Sequence[BucketAdvice], size: int | None) -> float:
    """Images a second over all buckets, in batches of ``size``; with None, in each bucket's best batch size."""
    seconds = 0.0
    for advice in buckets:
        tried = [batch for batch in advice.rates if size is None or batch <= size]
        seconds += advice.images / advice.rates[advice.batch_size if size is None else max(tried)]
    return sum(advice.images for advice in buckets) / seconds
