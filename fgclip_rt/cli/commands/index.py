"""``fgclip-rt index``: the images of a folder, ready to be searched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from ...answers import Indexed, Skipped
from ...index import update
from ...index.files import Entry
from ...names import spell_path
from ...shipped import is_shipped
from .. import options
from ..inputs import warn_of_found
from ..options import Loading, Pixels
from ..output import say, say_json, warn
from ..progress import progress_bars
from ..status import Command


@click.command(cls=Command)
@options.loading
@click.argument("folder", type=options.PATH, help="Folder of images; all that lie below it are indexed.")
@click.option("--output", type=options.PATH, required=True, help="Folder of the index, such as photos.index.")
@options.pixels
@click.option(
    "--approximate/--exact",
    default=None,
    help="Make a graph that chooses images, so that a search compares few; or drop it.  [default: as it was, or exact]",
)
@click.option("--overwrite", is_flag=True, help="Replace an index of another folder, space or settings.")
@click.option(
    "--interchangeable", is_flag=True, help="Go on with a bundle or precision that 'compare' found interchangeable."
)
@options.json
def run(
    loading: Loading,
    folder: Path,
    output: Path,
    pixels: Pixels,
    approximate: bool | None,
    overwrite: bool,
    interchangeable: bool,
    json: bool,
) -> None:
    """Index the images of a folder, so that they can be searched.

    The same command again brings the index up to date: it reads only files that are new or changed, by their size and
    time of change, and drops those that are gone. Copies and files that moved are not embedded again.

    An image that cannot be read is reported and left out. If the command is interrupted, the index stays as it was,
    and the next run goes on from the vectors that are done.
    """
    pixels.set_limit()
    model = loading.open()
    bundle = model.bundle.path
    begun = time.perf_counter()
    with progress_bars() as begin:
        updated = update(
            model,
            folder,
            output,
            bundle=bundle.name if is_shipped(bundle) else os.path.realpath(bundle),
            max_num_patches=pixels.max_num_patches,
            exif_transpose=pixels.exif_transpose,
            anew=overwrite,
            interchangeable=interchangeable,
            approximate=approximate,
            begin=begin,
        )
    seconds = time.perf_counter() - begun
    warn_of_found(folder, updated.found)
    for entry in updated.unreadable:
        warn(f"fgclip-rt: left out: {entry.error}")
    answer = Indexed(
        output=spell_path(output),
        root=spell_path(os.path.realpath(folder)),
        images=updated.images,
        added=updated.added,
        changed=updated.changed,
        removed=updated.removed,
        unchanged=updated.unchanged,
        embedded=updated.embedded,
        recall=updated.recall,
        images_per_second=updated.embedded / seconds if updated.embedded else None,
        skipped=[_skipped(entry) for entry in updated.unreadable],
        passed_over=updated.found.passed_over,
        unreadable=list(map(spell_path, updated.found.unreadable)),
    )
    if json:
        say_json(answer)
        return
    changes = f"{answer.added:,} new, {answer.changed:,} changed, {answer.removed:,} gone"
    rate = f"; {answer.images_per_second:.1f} images/s" if answer.images_per_second is not None else ""
    recall = f"; the graph finds {answer.recall:.1%} of the ten nearest" if answer.recall is not None else ""
    say(f"{answer.output}: {answer.images:,} images ({changes}){rate}{recall}")


def _skipped(entry: Entry) -> Skipped:
    assert entry.code is not None
    assert entry.error is not None
    return Skipped(spell_path(os.fsdecode(entry.path)), entry.code, entry.error)
