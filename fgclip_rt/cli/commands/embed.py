"""``fgclip-rt embed``: images and texts to a file of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import click
import msgspec
import numpy as np

from ... import __version__
from ...answers import Embedding, Problem, Skipped
from ...batching import Failure
from ...errors import ArgumentError, ImageError
from ...journal import Journal, Setting, Stamp, Work, check_no_journal, digest, stamp
from ...model import EmbeddedBatch
from ...names import spell_path
from ...outputs import check_space
from ...space import Origin
from ...text import Tokenizer
from ...vectors import Rows, check_format, check_inputs, size_of, write_rows
from .. import options
from ..inputs import find_images, read_texts, warn_of_texts
from ..options import Loading, Pixels
from ..output import say, say_json, saying_what_is_kept, warn
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
    lines = read_texts(texts) if texts is not None else []
    model = loading.open()
    model.tokenizer.walk_type(walk_type)
    inputs = _Inputs.of(found.files, lines, model.tokenizer, walk_type)
    check_inputs(output, inputs.names + lines, model.dim)
    truncated = warn_of_texts(model, lines, walk_type)

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
    work = Work(settings, inputs.digest, inputs.count, model.dim)
    stream_images = partial(
        model.iter_images,
        max_num_patches=pixels.max_num_patches,
        batch_size=batch_size,
        normalize=normalize,
        on_error="raise" if strict else "skip",
        exif_transpose=pixels.exif_transpose,
    )
    stream_texts = partial(model.iter_texts, walk_type=walk_type, normalize=normalize)
    with (
        Journal(output, work, inputs.stamp, resume=resume) as journal,
        saying_what_is_kept(lambda: _kept(journal, work.count)),
    ):
        # The vectors that are missing are written twice, to the journal and to the output.
        missing = 4 * (work.count - journal.kept) * model.dim
        check_space(output, size_of(output, inputs.names + lines, model.dim) + missing)
        if journal.kept:
            warn(f"fgclip-rt: {journal.kept:,} of {work.count:,} vectors are there from the interrupted run.")
        with progress_bars() as begin:
            failures = _embed(stream_images, inputs.files, 0, journal, inputs, partial(begin, "images"))
        pixels.warn_unrotated(len(journal.unrotated), len(inputs.files) - len(failures))
        for failure in failures:
            warn(f"fgclip-rt: skipped: {failure.error}")
        if inputs.files and len(failures) == len(inputs.files):
            raise ImageError(f"none of the {len(failures)} images could be read, so {output} was not written.")
        with progress_bars() as begin:
            _embed(stream_texts, inputs.texts, len(inputs.files), journal, inputs, partial(begin, "texts"))
        origin = Origin.of(model.bundle, model.precision)
        rows = inputs.rows(journal, origin)
        write_rows(rows, output, journal.folder)

    error = _named(images, [inputs.files[failure.index] for failure in failures], output)
    answer = Embedding(
        output=str(output),
        shape=list(rows.shape),
        space_sha256=model.space_sha256,
        rows=rows.index(),
        skipped=[Skipped(inputs.names[failure.index], failure.error.code, str(failure.error)) for failure in failures],
        passed_over=found.passed_over,
        unreadable=list(map(spell_path, found.unreadable)),
        truncated_texts=truncated,
        unrotated=len(journal.unrotated),
        error=msgspec.UNSET if error is None else Problem(error.code, str(error)),
    )
    if json:
        say_json(answer)
    else:
        say(
            f"{output}: float32 {answer.shape}, {rows.kinds.count('image')} of images and {len(lines)} of texts"
            + (f"; images skipped: {len(failures)}" if failures else "")
            + (f"; texts truncated: {len(truncated)}" if truncated else "")
        )
    if error is not None:
        raise Failed(error)


class _Inputs(msgspec.Struct, frozen=True):
    """Everything that is to be embedded: images, and then texts, each of which has a number in the journal.

    Attributes:
        files: paths of images.
        names: their spellings.
        lines: texts.
        texts: of the lines that the model takes for the same text, the first.
        numbers: for each line, the index of its text among ``texts``.
    """

    files: list[str]
    names: list[str]
    lines: list[str]
    texts: list[str]
    numbers: list[int]

    @classmethod
    def of(cls, files: list[str], lines: list[str], tokenizer: Tokenizer, walk_type: str) -> _Inputs:
        texts: dict[str, str] = {}
        indices: dict[str, int] = {}
        numbers = []
        for index, line in enumerate(lines):
            prepared = tokenizer.prepare(line, walk_type, index)
            texts.setdefault(prepared, line)
            numbers.append(indices.setdefault(prepared, len(indices)))
        return cls(files, list(map(spell_path, files)), lines, list(texts.values()), numbers)

    @property
    def count(self) -> int:
        """Number of vectors that they need."""
        return len(self.files) + len(self.texts)

    @property
    def digest(self) -> str:
        """Digest of all of them in their order."""
        # No name is empty.
        return digest([*self.names, "", *self.lines])

    def stamp(self, item: int) -> Stamp:
        """The stamp of an input's file, by its number in the journal; None for texts."""
        return stamp(self.files[item]) if item < len(self.files) else None

    def rows(self, journal: Journal, origin: Origin) -> Rows:
        """The vectors of all images that could be read and of all lines."""
        images = np.flatnonzero(journal.positions[: len(self.files)] >= 0).tolist()
        return Rows(
            kinds=["image"] * len(images) + ["text"] * len(self.lines),
            inputs=[self.names[image] for image in images] + self.lines,
            vectors=journal.vectors(),
            order=journal.positions[images + [len(self.files) + number for number in self.numbers]],
            origin=origin,
        )


def _embed(
    stream: Callable[[Iterator[str]], Iterator[EmbeddedBatch | Failure]],
    sources: Sequence[str],
    first: int,
    journal: Journal,
    inputs: _Inputs,
    begin: Callable[[int], Callable[[], None]],
) -> list[Failure]:
    """Embed inputs that have no vector yet, and keep each batch as it is done.

    Args:
        stream: embeds images or texts batch by batch.
        sources: all paths of images, or all texts.
        first: number in the journal of the first of them.
        journal: keeps the vectors.
        inputs: all inputs, to which ``sources`` belong.
        begin: begins a progress bar of some steps.

    Returns:
        The sources that cannot be read, by their index; ascending.
    """
    missing = journal.missing(first, len(sources))
    if not missing:
        return []
    done = begin(len(missing))
    stamps: dict[int, Stamp] = {}

    def given() -> Iterator[str]:
        for item in missing:
            stamps[item] = inputs.stamp(item)
            yield sources[item - first]
            done()

    failures = []
    for entry in stream(given()):
        if isinstance(entry, Failure):
            failures.append(Failure(missing[entry.index] - first, entry.error))
        else:
            items = [missing[index] for index in entry.indices]
            unrotated = [missing[index] for index in entry.unrotated]
            journal.add(items, entry.vectors, [stamps.pop(item) for item in items], unrotated)
    return failures


def _kept(journal: Journal, count: int) -> str | None:
    """The vectors that are kept if the command is stopped, as a sentence; None if there are none."""
    if not journal.kept:
        return None
    return f"{journal.kept:,} of {count:,} vectors are kept; add --resume to the same command to go on"


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
