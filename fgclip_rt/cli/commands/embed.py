"""``fgclip-rt embed``: images and texts to a file of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
from msgspec import UNSET

from ...answers import Embedding, Problem, Skipped
from ...arrays import FloatArray
from ...errors import ArgumentError, FgclipError, ImageError
from ...model import Embedded, Model, OnError
from ...outputs import check_space
from ...vectors import Rows, check_format, size_of, write_rows
from .. import options
from ..inputs import find_images, read_texts, warn_truncated
from ..options import Loading, Pixels
from ..output import printable, say, say_json, warn
from ..progress import progress_bars
from ..status import Command, Failed

_T = TypeVar("_T")


@click.command(cls=Command)
@options.loading
@click.argument("images", nargs=-1, type=options.PATH, help="Image files, or folders of them.")
@click.option("--output", type=options.PATH, required=True, help="File to write: .npy, .npz or .parquet.")
@click.option("--texts", type=options.PATH, help="File of texts, one a line, UTF-8; - reads standard input.")
@options.walk_type("short")
@options.pixels
@click.option("--batch-size", type=int, help="Images per run.  [default: by their patches]")
@click.option("--normalize/--no-normalize", default=True, help="Scale vectors to length one.")
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read.")
@options.overwrite
@options.json
def run(
    loading: Loading,
    images: tuple[Path, ...],
    output: Path,
    texts: Path | None,
    walk_type: str,
    pixels: Pixels,
    batch_size: int | None,
    normalize: bool,
    strict: bool,
    overwrite: bool,
    json: bool,
) -> None:
    """Write the vectors of images and texts to a file.

    The file also says which row is which input; a .npy file holds the vectors only, and OUTPUT.json beside it says it.

    An image that cannot be read is reported and left out, unless --strict is given. If it was named itself, and not
    found in a folder, the command ends with status 1 all the same, after the others have been written.
    """
    check_format(output, overwrite)
    if not images and texts is None:
        raise ArgumentError("there is nothing to embed; give image files, folders, or --texts FILE.")
    pixels.set_limit()
    files = find_images(images)
    lines = read_texts(texts) if texts is not None else []
    model = loading.open()
    model.tokenizer.walk_type(walk_type)
    check_space(output, size_of(output, len(files) + len(lines), model.dim))
    truncated = warn_truncated(model, lines, walk_type)

    with progress_bars() as begin:
        sources = _counted(files, begin("images", len(files))) if files else []
        embedded = _embed(model, sources, pixels, batch_size, normalize=normalize, strict=strict)
        counted = _counted(lines, begin("texts", len(lines))) if lines else []
        text_vectors = model.embed_texts(counted, walk_type, normalize)
    kept = [files[index] for index in embedded.rows]
    pixels.warn_unrotated(len(embedded.unrotated), len(kept))
    skipped = [(files[failure.index], failure.error) for failure in embedded.failures]
    for _, reason in skipped:
        warn(f"fgclip-rt: skipped: {reason}")
    if files and not kept:
        raise ImageError(f"none of the {len(files)} images could be read, so {output} was not written.")

    rows = Rows(
        kinds=["image"] * len(kept) + ["text"] * len(lines),
        inputs=[printable(str(path)) for path in kept] + lines,
        vectors=np.concatenate([embedded.vectors, text_vectors]),
    )
    write_rows(rows, output)
    error = _named(images, skipped, output)
    answer = Embedding(
        output=str(output),
        shape=list(rows.vectors.shape),
        rows=rows.index(),
        skipped=[Skipped(str(path), reason.code, str(reason)) for path, reason in skipped],
        truncated_texts=truncated,
        unrotated=len(embedded.unrotated),
        error=UNSET if error is None else Problem(error.code, str(error)),
    )
    if json:
        say_json(answer)
    else:
        say(
            f"{output}: float32 {answer.shape}, {len(kept)} of images and {len(lines)} of texts"
            + (f"; images skipped: {len(skipped)}" if skipped else "")
            + (f"; texts truncated: {len(truncated)}" if truncated else "")
        )
    if error is not None:
        raise Failed(error)


def _embed(
    model: Model, files: Iterable[Path], pixels: Pixels, batch_size: int | None, *, normalize: bool, strict: bool
) -> Embedded[FloatArray]:
    """The vectors of image files; of those that can be read, unless ``strict``."""
    number, exif_transpose = pixels.max_num_patches, pixels.exif_transpose
    on_error: OnError = "raise" if strict else "skip"
    return model.embed_images(
        files, number, batch_size, normalize, on_error=on_error, exif_transpose=exif_transpose, details=True
    )


def _counted(inputs: Sequence[_T], done: Callable[[], None]) -> Iterator[_T]:
    """The inputs, with a progress bar that follows them."""
    for each in inputs:
        yield each
        done()


def _named(images: Sequence[Path], skipped: Sequence[tuple[Path, FgclipError]], output: Path) -> ImageError | None:
    """The error of images that were named, not found in a folder, and could not be read; None if there are none."""
    missing = [path for path, _ in skipped if path in images]
    if not missing:
        return None
    one = len(missing) == 1
    return ImageError(
        f"{missing[0] if one else f'{len(missing)} images that were named'} could not be read, so {output} lacks "
        f"{'it' if one else 'them'}; correct the command, or leave {'it' if one else 'them'} out."
    )
