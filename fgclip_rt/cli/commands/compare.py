"""``fgclip-rt compare``: whether old vectors may stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import click
import msgspec
import numpy as np

from ...answers import Compared, Problem
from ...arrays import FloatArray
from ...errors import ArgumentError, ImageError, ParityError, check_positive
from ...evaluation.spaces import Comparison, compare_spaces
from ...model import Model
from ...probe import Probe
from ...scores import l2_normalize
from ...space import Origin
from .. import options
from ..inputs import find_images, read_texts
from ..kept import Kept, keeps_vectors, kept_vectors
from ..options import Loading, Pixels
from ..output import numbers, say, say_json, say_table, warn, words
from ..status import Command, Failed

#: Most images, and most texts, of kept vectors that are embedded anew.
_LIMIT = 1000

#: The vectors of images and of texts, [n, D] and [m, D].
_Vectors: TypeAlias = tuple[FloatArray, FloatArray]


class _Both(msgspec.Struct, frozen=True):
    """Old and new vectors of the same inputs.

    Attributes:
        width: D of the old vectors.
        origin: what made them; None if it is not known.
        vectors: old and new ones; None if their widths differ.
        left_out: number of images that are gone, changed or cannot be read.
        halves: whether the old ones were kept as float16.
    """

    width: int
    origin: Origin | None
    vectors: tuple[_Vectors, _Vectors] | None
    left_out: int = 0
    halves: bool = False


@click.command(cls=Command)
@click.argument(
    "old", type=options.PATH, help="Bundle; file of vectors that 'embed' wrote; index; or output of 'embed-shards'."
)
@options.loading
@click.option("--old-precision", help="Precision of the old bundle.  [default: its first]")
@click.option("--images", type=options.PATH, multiple=True, help="Images, or folders of them; repeatable.")
@click.option("--texts", type=options.PATH, help="File of texts, one a line, UTF-8; - reads standard input.")
@click.option("--limit", type=int, help="Most images, and texts, of old vectors to embed anew.  [default: 1000]")
@options.walk_type("short")
@options.pixels
@options.json
def run(
    old: Path,
    loading: Loading,
    old_precision: str | None,
    images: tuple[Path, ...],
    texts: Path | None,
    limit: int | None,
    walk_type: str,
    pixels: Pixels,
    json: bool,
) -> None:
    """Tell whether old vectors may stay when the bundle changes.

    OLD is what made the vectors, or what keeps them; BUNDLE is what will make vectors from now on. The answer is
    identical, interchangeable (they may share an index, at the price that the table states) or re-index, with which
    the command ends with status 1.

    Vectors that are kept are compared on images and texts of their own, evenly spread over all. Two bundles are
    compared on --images and --texts, and else on what was recorded when BUNDLE was exported.
    """
    pixels.set_limit()
    check_positive("--limit", limit)
    new = loading.open()
    if keeps_vectors(old):
        if images or texts is not None or old_precision is not None:
            raise ArgumentError(
                f"{old} names its own inputs; leave out --images, --texts and --old-precision, or give a bundle."
            )
        with kept_vectors(old, limit or _LIMIT) as kept:
            both = _of_kept(old, kept, new, walk_type, pixels)
    else:
        if limit is not None:
            raise ArgumentError(f"--limit goes with vectors that are kept, and {old} keeps none; leave it out.")
        opened = msgspec.structs.replace(loading, bundle=old, precision=old_precision).open()
        both = _of_bundles(opened, new, images, texts, walk_type, pixels)
    found = None if both.vectors is None else _compare(*both.vectors, halves=both.halves)
    error = _difference(old, loading.bundle, found, both, new)
    compared = [0, 0] if both.vectors is None else [len(vectors) for vectors in both.vectors[1]]
    answer = Compared(
        old=str(old),
        new=str(loading.bundle),
        old_space=None if both.origin is None else both.origin.space_sha256,
        new_space=new.space_sha256,
        verdict="re-index" if found is None else found.verdict,
        images=compared[0],
        texts=compared[1],
        left_out=both.left_out,
        least=None if found is None else found.least,
        mean=None if found is None else found.mean,
        kept={str(depth): share for depth, share in (found.kept if found else {}).items()},
        shift=None if found is None else found.shift,
        error=msgspec.UNSET if error is None else Problem(error.code, str(error)),
    )
    if both.left_out:
        warn(f"fgclip-rt: left out: {both.left_out:,} images that are gone, changed or cannot be read.")
    if json:
        say_json(answer)
    else:
        _say(answer)
    if error is not None:
        raise Failed(error)


def _of_kept(old: Path, kept: Kept, model: Model, walk_type: str, pixels: Pixels) -> _Both:
    """Vectors that are kept, and those that the model makes of the same images and texts.

    Raises:
        ArgumentError: there are none.
        ImageError: no image can be read, and there are no texts.
    """
    if kept.width != model.dim:
        return _Both(kept.width, kept.origin, None)
    vectors: list[FloatArray] = []
    gone = 0

    def sources() -> Iterator[Any]:
        nonlocal gone
        for source, vector in kept.images:
            if source is None:
                gone += 1
            else:
                vectors.append(vector)
                yield source

    embedded = model.embed_images(
        sources(),
        pixels.max_num_patches or kept.max_num_patches,
        on_error="skip",
        exif_transpose=kept.exif_transpose if pixels.exif_transpose is None else pixels.exif_transpose,
    )
    left_out = gone + len(embedded.failures)
    if not embedded.rows and not kept.texts:
        if left_out:
            raise ImageError(f"none of the {left_out} images of {old} is there as it was; put them where they lay.")
        raise ArgumentError(f"{old} holds no vectors; give a file with some, or a bundle.")
    before = np.array([vectors[row] for row in embedded.rows], np.float32).reshape(-1, kept.width)
    after = embedded.vectors, model.embed_texts(kept.texts, walk_type)
    return _Both(kept.width, kept.origin, ((before, kept.text_vectors), after), left_out, kept.halves)


def _of_bundles(
    old: Model, new: Model, images: tuple[Path, ...], texts: Path | None, walk_type: str, pixels: Pixels
) -> _Both:
    """The vectors that two models make of the same images and texts."""
    sources: list[Any] = list(find_images(images).files) if images else []
    lines = read_texts(texts) if texts is not None else []
    if not sources and not lines:
        probe = Probe.of(new.bundle)
        sources = [image.rgb for image in probe.images]
        lines = list(probe.walk_types[walk_type].texts)

    def embed(model: Model) -> _Vectors:
        vectors = model.embed_images(sources, pixels.max_num_patches, exif_transpose=pixels.exif_transpose)
        return vectors, model.embed_texts(lines, walk_type)

    origin = Origin.of(old.bundle, old.precision)
    return _Both(old.dim, origin, (embed(old), embed(new)) if old.dim == new.dim else None)


def _compare(old: _Vectors, new: _Vectors, *, halves: bool) -> Comparison:
    """Compare images, which texts search if there are any; or texts alone."""
    (old_images, old_texts), (images, texts) = (tuple(map(l2_normalize, vectors)) for vectors in (old, new))
    if not len(images):
        return compare_spaces(old_texts, texts, halves=halves)
    return compare_spaces(old_images, images, (old_texts, texts) if len(texts) else None, halves=halves)


def _difference(old: Path, new: Path, found: Comparison | None, both: _Both, model: Model) -> ParityError | None:
    """The error of vectors that must not share an index; None if they may."""
    remedy = "embed everything again"
    if found is None:
        why = f"they have {both.width} numbers, and the new ones {model.dim}"
    elif found.verdict == "re-index":
        why = f"the cosines of old and new vectors are {found.mean:.3f} in the mean and {found.least:.3f} at least"
        if both.origin is not None and both.origin.space_sha256 == model.space_sha256:
            why += ", though the space is the same, so that images or settings must have changed"
            remedy = "give those of then, or embed everything again"
    else:
        return None
    return ParityError(
        f"the vectors of {old} must not share an index with those of {new}: {why}; {remedy}.", {}, code="space_differs"
    )


def _say(answer: Compared) -> None:
    if answer.least is not None:
        rows = [("smallest cosine", f"{answer.least:.4f}"), ("mean cosine", f"{answer.mean:.4f}")]
        rows += [(f"first {depth} results that stay", f"{share:.1%}") for depth, share in answer.kept.items()]
        rows.append(("largest change of a score", f"{answer.shift:.4f}"))
        alike = {None: "not recorded", answer.new_space: "the same"}.get(answer.old_space, "another")
        rows.append(("fingerprint of the space", alike))
        title = f"{answer.old} and {answer.new}, {answer.images} images and {answer.texts} texts"
        say_table(title, (words("of old and new vectors"), numbers("")), rows)
    say(f"{answer.old} and {answer.new}: {answer.verdict}")
