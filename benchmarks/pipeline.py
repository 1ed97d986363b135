"""Time from image files to vectors: stage by stage, and as a whole, in which reading may overlap the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from fgclip_rt.errors import BenchmarkError, ImageError
from fgclip_rt.graphs import ImageInputs
from fgclip_rt.model import Model
from fgclip_rt.names import spell_path
from fgclip_rt.preparation import Patches, side_by_side
from fgclip_rt.turns import take_turns, timed

from .results import Pipeline

#: (width, height) of the synthetic photos, as cameras, phones and the web have them.
_SIZES = ((640, 480), (480, 640), (500, 375), (1024, 768), (320, 240), (1600, 1200), (800, 600), (427, 640))


def measure_pipeline(
    model: Model,
    files: Sequence[Path],
    rounds: int = 5,
    max_num_patches: int | None = None,
    progress: Callable[[], None] = lambda: None,
    *,
    most: int | None = None,
) -> Pipeline:
    """Embed image files, as a whole and stage by stage. Files that cannot be read are left out and listed.

    Args:
        model: a loaded bundle.
        files: images.
        rounds: number of turns of the whole, and of the model alone.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.
        progress: called after each turn.
        most: number of files to embed, the first ones that can be read; None takes all.

    Returns:
        The times, and the files that cannot be read, which were left out.

    Raises:
        BenchmarkError: there are no files, or none can be read.
    """
    stages: dict[str, float] = defaultdict(float)
    buckets: dict[int, list[Patches]] = defaultdict(list)
    readable: list[Path] = []
    unreadable: list[str] = []
    for file in files:
        if len(readable) == most:
            break
        start = perf_counter()
        try:
            image = model.load_image(file)
            decoded = perf_counter()
            patches = model.preparation(image, max_num_patches)
        except ImageError:
            unreadable.append(spell_path(file))
            continue
        readable.append(file)
        stages["decode"] += decoded - start
        stages["resize"] += perf_counter() - decoded
        buckets[patches.bucket].append(patches)
    if not readable:
        raise BenchmarkError(f"none of {len(files)} image files can be read and embedded; give others.")
    batches = [
        bucket[first : first + size]
        for length, bucket in buckets.items()
        for size in [model.backend.batch_size("vision", length)]
        for first in range(0, len(bucket), size)
    ]

    def alone() -> None:
        for batch in batches:
            model.graphs.vision(ImageInputs.of(batch)).result()

    def copy() -> None:
        for batch in batches:
            side_by_side(batch)

    def whole() -> None:
        model.embed_images(readable, max_num_patches)

    turns = {"alone": partial(timed, alone), "whole": partial(timed, whole)}
    measured = take_turns(turns, rounds, warm_up=1, progress=progress)
    stages["copy"] = timed(copy)
    stages["model"] = min(measured["alone"])
    return Pipeline(len(readable), dict(stages), tuple(measured["alone"]), tuple(measured["whole"]), tuple(unreadable))


def make_photos(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of several sizes: smooth shapes with a camera's noise, which compress as photos do."""
    random = np.random.default_rng(0)
    files = []
    for index in range(count):
        width, height = _SIZES[index % len(_SIZES)]
        coarse = random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + random.normal(0, 8, (height, width, 1))
        files.append(folder / f"{index:03d}_{width}x{height}.jpg")
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files
