"""What a folder of images will meet: which buckets, what padding costs, and which batches are fastest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from PIL import Image

from fgclip_rt.errors import ImageError
from fgclip_rt.graphs import ImageInputs
from fgclip_rt.manifest import ImageSpec, SquareSpec, Strict
from fgclip_rt.model import Model
from fgclip_rt.preparation import Patches, target_grid
from fgclip_rt.progress import BeginStage, silent

#: Batches that are tried, as far as they hold no more patches than the second number.
_BATCHES, _MOST_PATCHES = (1, 2, 4, 8, 16, 32), 8192

#: A smaller batch is taken unless a larger one is faster by more than this, which may be noise.
_NOISE = 1.02


class BucketAdvice(Strict, frozen=True):
    """Images of one bucket.

    Attributes:
        bucket: the largest number of patches that they are allowed.
        images: how many.
        patches: mean number that they have.
        padding: share of the work that is on filled-up places, by size of the batch; batches of images as they come.
        rates: images a second that the model embeds, by size of the batch.
        batch_size: the size to take.
    """

    bucket: int
    images: int
    patches: float
    padding: dict[int, float]
    rates: dict[int, float]
    batch_size: int


class Advice(Strict, frozen=True):
    """What to expect.

    Attributes:
        images: how many can be read.
        unreadable: files that cannot.
        buckets: those that occur, the smallest first.
        images_per_second: of them all, each bucket in its best batches; the model alone.
        batch_size: the one size that is fastest for all of them together.
        images_per_second_of_it: what that gives.
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
        rounds: turns of each size of batch.
        seconds: after so many a bucket has no further round.
        begin: is told how far it is.

    Raises:
        ImageError: none of the files is an image.
    """
    done = begin("read sizes", len(files))
    grids: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unreadable = []
    for file in files:
        try:
            with Image.open(file) as image:
                width, height = image.size
        except Exception:  # Pillow's decoders raise nearly anything on damaged files
            unreadable.append(str(file))
        else:
            bucket, shape = _grid(model, width, height, max_num_patches)
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


def _grid(model: Model, width: int, height: int, max_num_patches: int | None) -> tuple[int, tuple[int, int]]:
    """The bucket of an image, and its grid of patches."""
    spec: ImageSpec = model.manifest.image
    if isinstance(spec, SquareSpec):
        side = spec.image_size // spec.patch_size
        return spec.max_num_patches, (side, side)
    bucket = max_num_patches or model.preparation.bucket(width, height)
    return bucket, target_grid(height, width, spec.patch_size, bucket)


def _advise_bucket(
    model: Model,
    bucket: int,
    grids: Sequence[tuple[int, int]],
    rounds: int,
    seconds: float,
    done: Callable[[], None],
) -> BucketAdvice:
    sizes = [size for size in _BATCHES if size == 1 or (size * bucket <= _MOST_PATCHES and size <= len(grids))]
    turns: dict[int, list[float]] = {size: [] for size in sizes}
    start = perf_counter()
    for turn in range(rounds + 1):
        for size in sizes:
            batch = [_noise(model, bucket, grid) for grid in grids[:size]]
            begin = perf_counter()
            model.graphs.vision(ImageInputs.of(batch)).result()
            if turn:  # the first warms up
                turns[size].append(size / (perf_counter() - begin))
        if turn:
            done()
        if turn and perf_counter() - start > seconds:
            break
    rates = {size: median(values) for size, values in turns.items()}
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
    """Share of a batch's places that are filled up to the longest of it."""
    places = sum(len(batch) * batch.max() for batch in np.array_split(lengths, range(size, len(lengths), size)))
    return float(1 - lengths.sum() / places)


def _best(rates: Mapping[int, float]) -> int:
    """The smallest size that is as good as any."""
    most = max(rates.values())
    return min(size for size, rate in rates.items() if rate * _NOISE >= most)


def _overall(buckets: Sequence[BucketAdvice], size: int | None) -> float:
    """Images a second over all buckets, in batches of one size or of each bucket's best."""
    seconds = 0.0
    for advice in buckets:
        tried = [known for known in advice.rates if size is None or known <= size]
        seconds += advice.images / advice.rates[advice.batch_size if size is None else max(tried)]
    return sum(advice.images for advice in buckets) / seconds


def _noise(model: Model, bucket: int, grid: tuple[int, int]) -> Patches:
    spec = model.manifest.image
    width = spec.patch_size**2 * spec.channels
    pixels = np.random.default_rng(bucket).integers(0, 256, (grid[0] * grid[1], width), np.uint8)
    return Patches(pixels, grid, (grid[0] * spec.patch_size, grid[1] * spec.patch_size), bucket)
