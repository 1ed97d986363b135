"""``fgclip-rt compare``: whether old vectors may stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
import msgspec
import numpy as np

from ...answers import Compared, Problem
from ...arrays import FloatArray
from ...errors import ArgumentError, ParityError
from ...evaluation.spaces import Comparison, compare_spaces
from ...model import Model
from ...names import unspell_path
from ...probe import Probe
from ...vectors import SUFFIXES, read_rows
from .. import options
from ..inputs import find_images, read_texts
from ..options import Loading, Pixels
from ..output import numbers, say, say_json, say_table, words
from ..status import Command, Failed

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
    settings: dict[str, Any] = {
        "max_num_patches": pixels.max_num_patches,
        "exif_transpose": pixels.exif_transpose,
    }
    if old.suffix in SUFFIXES:
        if images or texts is not None or old_precision is not None:
            raise ArgumentError(
                f"{old} names its own inputs; leave out --images, --texts and --old-precision, or give a bundle."
            )
        rows = read_rows(old)
        is_image = np.array([kind == "image" for kind in rows.kinds])
        sources: list[Any] = [unspell_path(name) for name in np.array(rows.inputs)[is_image]]
        lines = np.array(rows.inputs)[~is_image].tolist()
        before = rows.vectors[is_image], rows.vectors[~is_image]
    else:
        sources = list(find_images(images).files) if images else []
        lines = read_texts(texts) if texts is not None else []
        if not sources and not lines:
            probe = Probe.of(new.bundle)
            sources = [image.rgb for image in probe.images]
            lines = list(probe.walk_types[walk_type].texts)
        opened = msgspec.structs.replace(loading, bundle=old, precision=old_precision).open()
        before = _vectors(opened, sources, lines, walk_type, settings)
    if not sources and not lines:
        raise ArgumentError(f"{old} holds no vectors; give a file with some, or a bundle.")
    answer = _compared(old, loading, before, new, sources, lines, walk_type, settings)
    if json:
        say_json(answer)
    else:
        _say(answer)
    if answer.error is not msgspec.UNSET:
        raise Failed(ParityError(answer.error.message, {}, code=answer.error.code))


def _compared(
    old: Path,
    loading: Loading,
    before: _Vectors,
    new: Model,
    sources: Sequence[Any],
    lines: Sequence[str],
    walk_type: str,
    settings: dict[str, Any],
) -> Compared:
    """The answer for vectors of images and texts that were there before."""
    width = before[0].shape[1]
    found: Comparison | None = None
    why = f"they have {width} numbers, and the new ones {new.dim}"
    if width == new.dim:
        (old_images, old_texts), (images, texts) = before, _vectors(new, sources, lines, walk_type, settings)
        if len(old_images):
            queries = (_unit(old_texts), _unit(texts)) if len(old_texts) else None
            found = compare_spaces(_unit(old_images), _unit(images), queries)
        else:
            found = compare_spaces(_unit(old_texts), _unit(texts))
        why = f"the cosines of old and new vectors are {found.mean:.3f} in the mean and {found.least:.3f} at least"
    verdict = "re-index" if found is None else found.verdict
    error = ParityError(
        f"the vectors of {old} must not share an index with those of {loading.bundle}: {why}; embed everything again.",
        {},
        code="space_differs",
    )
    return Compared(
        old=str(old),
        new=str(loading.bundle),
        verdict=verdict,
        images=len(sources),
        texts=len(lines),
        least=None if found is None else found.least,
        mean=None if found is None else found.mean,
        kept={str(depth): share for depth, share in (found.kept if found else {}).items()},
        shift=None if found is None else found.shift,
        error=Problem(error.code, str(error)) if verdict == "re-index" else msgspec.UNSET,
    )


def _vectors(
    model: Model, sources: Sequence[Any], lines: Sequence[str], walk_type: str, settings: dict[str, Any]
) -> _Vectors:
    return model.embed_images(sources, **settings), model.embed_texts(lines, walk_type)


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _say(answer: Compared) -> None:
    if answer.least is not None:
        rows = [("smallest cosine", f"{answer.least:.4f}"), ("mean cosine", f"{answer.mean:.4f}")]
        rows += [(f"first {depth} results that stay", f"{share:.1%}") for depth, share in answer.kept.items()]
        rows.append(("largest change of a score", f"{answer.shift:.4f}"))
        title = f"{answer.old} and {answer.new}, {answer.images} images and {answer.texts} texts"
        say_table(title, (words("of old and new vectors"), numbers("")), rows)
    say(f"{answer.old} and {answer.new}: {answer.verdict}")
