"""``fgclip-rt embed``: images and texts to a file of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import numpy as np
from msgspec import UNSET

from ... import __version__
from ...answers import Embedding, Problem, Skipped
from ...batching import Failure
from ...errors import ArgumentError, ImageError
from ...journal import Journal, Setting, Stamp, Work, check_no_journal, digest, stamp
from ...model import EmbeddedBatch
from ...names import spell_path
from ...outputs import check_space
from ...vectors import Rows, check_format, check_inputs, size_of, write_rows
from .. import options
from ..inputs import find_images, read_texts, warn_truncated
from ..options import Loading, Pixels
from ..output import say, say_json, warn
from ..progress import progress_bars
from ..status import Command, Failed


@click.command(cls=Command)
@options.loading
@click.argument("images", nargs=-1, type=options.PATH, help="Image files, or folders of them.")
@click.option("--output", type=options.PATH, required=True, help="File to write: .npy, .npz or .parquet.")
@click.option("--texts", type=options.PATH, help="File of texts, one a line, UTF-8; - reads standard input.")
@options.walk_type("short")
@options.pixels
@click.option("--batch-size", type=int, help="Images per run.  [default: by their patches]")
@click.option("--normalize/--no-normalize", default=True, help="Scale vectors to length one.")
@click.option("--strict", is_flag=True, help="Stop at the first image or folder that cannot be read.")
@click.option("--resume", is_flag=True, help="Go on from a run with the same arguments that was interrupted.")
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
    resume: bool,
    overwrite: bool,
    json: bool,
) -> None:
    """Write the vectors of images and texts to a file.

    The file also says which row is which input; a .npy file holds the vectors only, and OUTPUT.json beside it says it.

    An image that cannot be read is reported and left out, unless --strict is given. If it was named itself, and not
    found in a folder, the command ends with status 1 all the same, after the others have been written.

    If the command is interrupted, the vectors that are done are kept beside OUTPUT, and --resume goes on from there.
    """
    check_format(output, overwrite)
    if not (resume or overwrite):
        check_no_journal(output)
    if not images and texts is None:
        raise ArgumentError("there is nothing to embed; give image files, folders, or --texts FILE.")
    pixels.set_limit()
    found = find_images(images)
    if strict and found.unreadable:
        raise ImageError(f"{found.unreadable[0]} could not be read; check its permissions, or leave out --strict.")
    files, names = found.files, list(map(spell_path, found.files))
    lines = read_texts(texts) if texts is not None else []
    model = loading.open()
    model.tokenizer.walk_type(walk_type)
    check_inputs(output, [*names, *lines], model.dim)
    truncated = warn_truncated(model, lines, walk_type)

    # Lines that the model takes for the same text have one vector.
    numbers: dict[str, int] = {}
    of_line = [numbers.setdefault(model.tokenizer.prepare(line), len(numbers)) for line in lines]
    distinct = [lines[line] for line in np.unique(of_line, return_index=True)[1]]

    def stamp_of(item: int) -> Stamp:
        return stamp(files[item]) if item < len(files) else None

    settings: dict[str, Setting] = {
        "fgclip-rt": __version__,
        "bundle": model.bundle.manifest_sha256,
        "--precision": model.precision,
        "--backend": str(model.backend),
        "--batch-size": batch_size,
        "--max-num-patches": pixels.max_num_patches,
        "--exif-transpose": pixels.exif_transpose,
        "--normalize": normalize,
        "--walk-type": walk_type,
    }
    work = Work(settings, digest([*names, "", *lines]), len(files) + len(distinct), model.dim)
    with Journal(output, work, stamp_of, resume=resume) as journal, _kept(journal, work.count):
        # The vectors that are missing are written twice, to the journal and to the output.
        rest = 4 * (work.count - journal.kept) * model.dim
        check_space(output, size_of(output, [*names, *lines], model.dim) + rest)
        if journal.kept:
            warn(f"fgclip-rt: {journal.kept:,} of {work.count:,} vectors are there from the interrupted run.")
        stream_images = partial(
            model.iter_images,
            max_num_patches=pixels.max_num_patches,
            batch_size=batch_size,
            normalize=normalize,
            on_error="raise" if strict else "skip",
            exif_transpose=pixels.exif_transpose,
        )
        stream_texts = partial(model.iter_texts, walk_type=walk_type, normalize=normalize)
        with progress_bars() as begin:
            failures = _embed(stream_images, files, 0, journal, stamp_of, partial(begin, "images"))
            if len(failures) == len(files) > 0:
                for failure in failures:
                    warn(f"fgclip-rt: skipped: {failure.error}")
                raise ImageError(f"none of the {len(files)} images could be read, so {output} was not written.")
            _embed(stream_texts, distinct, len(files), journal, stamp_of, partial(begin, "texts"))
        kept = np.flatnonzero(journal.positions[: len(files)] >= 0).tolist()
        rows = Rows(
            kinds=["image"] * len(kept) + ["text"] * len(lines),
            inputs=[names[item] for item in kept] + lines,
            vectors=journal.vectors(),
            order=journal.positions[kept + [len(files) + number for number in of_line]],
        )
        write_rows(rows, output, journal.folder)

    for failure in failures:
        warn(f"fgclip-rt: skipped: {failure.error}")
    error = _named(images, [files[failure.index] for failure in failures], output)
    answer = Embedding(
        output=str(output),
        shape=list(rows.shape),
        rows=rows.index(),
        skipped=[Skipped(names[failure.index], failure.error.code, str(failure.error)) for failure in failures],
        passed_over=found.passed_over,
        unreadable=list(map(spell_path, found.unreadable)),
        truncated_texts=truncated,
        error=UNSET if error is None else Problem(error.code, str(error)),
    )
    if json:
        say_json(answer)
    else:
        say(
            f"{output}: float32 {answer.shape}, {len(kept)} of images and {len(lines)} of texts"
            + (f"; images skipped: {len(failures)}" if failures else "")
            + (f"; texts truncated: {len(truncated)}" if truncated else "")
        )
    if error is not None:
        raise Failed(error)


def _embed(
    stream: Callable[[Iterator[str]], Iterator[EmbeddedBatch | Failure]],
    inputs: Sequence[str],
    first: int,
    journal: Journal,
    stamp_of: Callable[[int], Stamp],
    begin: Callable[[int], Callable[[], None]],
) -> list[Failure]:
    """Embed inputs that have no vector yet, and keep each batch as it is done.

    Args:
        stream: embeds images or texts batch by batch.
        inputs: all paths of images, or all texts.
        first: number in the journal of the first of them.
        journal: keeps the vectors.
        stamp_of: gives the stamp of an input's file, by its number in the journal.
        begin: begins a progress bar of some steps.

    Returns:
        The inputs that cannot be read, by their index among ``inputs``; ascending.
    """
    missing = journal.missing(first, len(inputs))
    if not missing:
        return []
    done = begin(len(missing))
    stamps: dict[int, Stamp] = {}

    def given() -> Iterator[str]:
        for item in missing:
            stamps[item] = stamp_of(item)
            yield inputs[item - first]
            done()

    failures = []
    for entry in stream(given()):
        if isinstance(entry, Failure):
            failures.append(Failure(missing[entry.index] - first, entry.error))
        else:
            items = [missing[index] for index in entry.indices]
            journal.add(items, entry.vectors, [stamps.pop(item) for item in items])
    return failures


@contextmanager
def _kept(journal: Journal, count: int) -> Iterator[None]:
    """Say how many vectors are kept if the block does not end well."""
    try:
        yield
    except BaseException as error:
        if not journal.kept:
            raise
        kept = f"{journal.kept:,} of {count:,} vectors are kept; add --resume to the same command to go on"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(kept) from None
        warn(f"fgclip-rt: {kept}.")
        raise


def _named(images: Sequence[Path], skipped: Sequence[str], output: Path) -> ImageError | None:
    """The error of images that were named, not found in a folder, and could not be read; None if there are none."""
    named = set(map(str, images))
    missing = [path for path in skipped if path in named]
    if not missing:
        return None
    one = len(missing) == 1
    return ImageError(
        f"{missing[0] if one else f'{len(missing)} images that were named'} could not be read, so {output} lacks "
        f"{'it' if one else 'them'}; correct the command, or leave {'it' if one else 'them'} out."
    )
