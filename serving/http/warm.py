"""Each graph once before the first request, because opening one takes seconds and some devices compile for it."""

from __future__ import annotations

from PIL import Image

from fgclip_rt.manifest import NaflexSpec

from ..batcher import Batcher
from ..items import DenseItem, ImageItem, Item, TextItem


def warm(batcher: Batcher) -> None:
    """Run every graph for each bucket and kind of text, and find the fingerprint of the space.

    Raises:
        FgclipError: a graph cannot run here, or the probe is damaged.
    """
    model = batcher.model
    # Every answer names it, and finding it reads a file.
    _ = model.space_sha256
    spec = model.manifest.image
    buckets = spec.buckets if isinstance(spec, NaflexSpec) else (spec.max_num_patches,)
    photo = Image.new("RGB", (64, 64))
    items: list[Item] = [ImageItem(photo, bucket) for bucket in buckets]
    items += [TextItem("a", walk_type) for walk_type in model.manifest.text.walk_types]
    if model.graphs.has("dense"):
        items += [DenseItem(photo, bucket) for bucket in buckets]
    for item in items:
        if batcher.work_of(item) > batcher.max_work:
            continue  # no request may ask for it
        (future,) = batcher.submit([item])
        answer = future.result()
        if isinstance(item, DenseItem):
            if model.graphs.has("region"):
                answer.regions([[0, 0, 64, 64]])
            if model.graphs.has("mask"):
                answer.masks([[[1] * 64] * 64])
