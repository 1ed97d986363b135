"""``fgclip-rt compare``: whether old vectors may stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import click
import msgspec

from ...answers import Compared, Problem
from ...arrays import FloatArray
from ...errors import ArgumentError, ParityError
from ...evaluation.spaces import Comparison, compare_spaces
from ...model import Model
from ...names import unspell_path
from ...probe import Probe
from ...scores import l2_normalize
from ...vectors import SUFFIXES, read_rows
from .. import options
from ..inputs import find_images, read_texts
from ..options import Loading, Pixels
from ..output import numbers, say, say_json, say_table, words
from ..status import Command, Failed

_KINDS = ("image", "text")

#: The vectors of images and of texts, [n, D] and [m, D].
_Vectors: TypeAlias = tuple[FloatArray, FloatArray]


@click.command(cls=Command)
@click.argument("old", type=options.PATH, help="Bundle, or a file of vectors that 'fgclip-rt embed' wrote.")
@options.loading
@click.option("--old-precision", help="Precision of the old bundle.  [default: its first]")
@click.option("--images", type=options.PATH, multiple=True, help="Images, or folders of them; repeatable.")
@click.option("--texts", type=options.PATH, help="File of texts, one a line, UTF-8; - reads standard input.")
@options.walk_type("short")
@options.pixels
@options.json
def run(
    old: Path,
    loading: Loading,
    old_precision: str | None,
    images: tuple[Path, ...],
    texts: Path | None,
    walk_type: str,
    pixels: Pixels,
    json: bool,
) -> None:
    """Tell whether old vectors may stay when the bundle changes.

    OLD is what made the vectors, or a file of them; BUNDLE is what will make vectors from now on. The answer is
    identical, interchangeable (they may share an index, at the price that the table states) or re-index, with which
    the command ends with status 1.

    A file is compared on its own images and texts. Two bundles are compared on --images and --texts, and else on what
    was recorded when BUNDLE was exported.
    """
    pixels.set_limit()
    new = loading.open()
    if old.suffix in SUFFIXES:
        if images or texts is not None or old_precision is not None:
            raise ArgumentError(
                f"{old} names its own inputs; leave out --images, --texts and --old-precision, or give a bundle."
            )
        rows = read_rows(old)
        of_images, of_texts = ([row for row, kind in enumerate(rows.kinds) if kind == each] for each in _KINDS)
        sources: list[Any] = [unspell_path(rows.inputs[row]) for row in of_images]
        lines = [rows.inputs[row] for row in of_texts]
        width, opened = rows.shape[1], None
    else:
        sources = list(find_images(images).files) if images else []
        lines = read_texts(texts) if texts is not None else []
        if not sources and not lines:
            probe = Probe.of(new.bundle)
            sources = [image.rgb for image in probe.images]
            lines = list(probe.walk_types[walk_type].texts)
        opened = msgspec.structs.replace(loading, bundle=old, precision=old_precision).open()
        width = opened.dim
    if not sources and not lines:
        raise ArgumentError(f"{old} holds no vectors; give a file with some, or a bundle.")

    def embed(model: Model) -> _Vectors:
        vectors = model.embed_images(
            sources, max_num_patches=pixels.max_num_patches, exif_transpose=pixels.exif_transpose
        )
        return vectors, model.embed_texts(lines, walk_type)

    found: Comparison | None = None
    if width == new.dim:
        before = (rows.vectors[of_images], rows.vectors[of_texts]) if opened is None else embed(opened)
        found = _compare(before, embed(new))
    error = _difference(old, loading.bundle, found, width, new.dim)
    answer = Compared(
        old=str(old),
        new=str(loading.bundle),
        verdict="re-index" if found is None else found.verdict,
        images=len(sources),
        texts=len(lines),
        least=None if found is None else found.least,
        mean=None if found is None else found.mean,
        kept={str(depth): share for depth, share in (found.kept if found else {}).items()},
        shift=None if found is None else found.shift,
        error=msgspec.UNSET if error is None else Problem(error.code, str(error)),
    )
    if json:
        say_json(answer)
    else:
        _say(answer)
    if error is not None:
        raise Failed(error)


def _compare(old: _Vectors, new: _Vectors) -> Comparison:
    """Compare images, which texts search if there are any; or texts alone."""
    (old_images, old_texts), (images, texts) = (tuple(map(l2_normalize, vectors)) for vectors in (old, new))
    if not len(images):
        return compare_spaces(old_texts, texts)
    return compare_spaces(old_images, images, (old_texts, texts) if len(texts) else None)


def _difference(old: Path, new: Path, found: Comparison | None, width: int, dim: int) -> ParityError | None:
    """The error of vectors that must not share an index; None if they may."""
    if found is None:
        why = f"they have {width} numbers, and the new ones {dim}"
    elif found.verdict == "re-index":
        why = f"the cosines of old and new vectors are {found.mean:.3f} in the mean and {found.least:.3f} at least"
    else:
        return None
    return ParityError(
        f"the vectors of {old} must not share an index with those of {new}: {why}; embed everything again.",
        {},
        code="space_differs",
    )


def _say(answer: Compared) -> None:
    if answer.least is not None:
        rows = [("smallest cosine", f"{answer.least:.4f}"), ("mean cosine", f"{answer.mean:.4f}")]
        rows += [(f"first {depth} results that stay", f"{share:.1%}") for depth, share in answer.kept.items()]
        rows.append(("largest change of a score", f"{answer.shift:.4f}"))
        title = f"{answer.old} and {answer.new}, {answer.images} images and {answer.texts} texts"
        say_table(title, (words("of old and new vectors"), numbers("")), rows)
    say(f"{answer.old} and {answer.new}: {answer.verdict}")
