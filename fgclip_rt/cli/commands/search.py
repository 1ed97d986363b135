"""``fgclip-rt search``: the images of an index that are nearest to a text, an image, or a part of one."""

from __future__ import annotations

from pathlib import Path

import click
from PIL import Image

from ...answers import Duplicates, Searched
from ...bundle import Bundle
from ...errors import ArgumentError, ImageError
from ...index import ImageIndex, Query, find
from ...index.duplicates import find_duplicates
from ...model import Model, open_model
from ...outputs import check_picture_output, save_picture
from .. import options
from ..inputs import warn_of_texts
from ..output import numbers, say, say_json, say_table, warn, words
from ..progress import progress_bars
from ..status import Command
from .regions import parse_box


@click.command(cls=Command)
@click.argument("index", type=options.PATH, metavar="INDEX", help="Index, made by 'fgclip-rt index'.")
@click.option("--text", help="Find images that this text describes, in English or Chinese.  [default: none]")
@click.option("--image", type=options.PATH, help="Find images like this one.  [default: none]")
@click.option("--box", metavar="X1,Y1,X2,Y2", help="Find images like this part of --image, in pixels.  [default: all]")
@click.option("--duplicates", is_flag=True, help="Find images that are nearly the same as others.")
@click.option("--threshold", default=0.98, type=click.FloatRange(-1, 1), help="Least cosine of --duplicates.")
@click.option("--top", default=12, type=click.IntRange(1), help="Number of images to find.")
@click.option("--fine", is_flag=True, help="Rank the nearest images by their patches, and say where in them.")
@click.option("--depth", type=click.IntRange(1), help="Images that --fine looks at.  [default: four times --top]")
@click.option("--folder", default="", help="Search below this folder of the indexed one.  [default: all]")
@click.option("--exact", is_flag=True, help="Compare every image, even if the index has a graph that chooses some.")
@click.option("--picture", type=options.PATH, help="Picture of what is found: .png, .jpg or .webp.")
@click.option("--bundle", type=options.PATH, help="The bundle, if it has moved.  [default: where it was]")
@options.device
@options.threads
@options.overwrite
@options.json
def run(
    index: Path,
    text: str | None,
    image: Path | None,
    box: str | None,
    duplicates: bool,
    threshold: float,
    top: int,
    fine: bool,
    depth: int | None,
    folder: str,
    exact: bool,
    picture: Path | None,
    bundle: Path | None,
    device: str,
    threads: int | None,
    overwrite: bool,
    json: bool,
) -> None:
    """Find images of an index by a text, an image, or a part of one.

    Cosines are exact. Every image is compared, unless the index was made with --approximate. --box and --fine compare
    the patches of the nearest images too, which takes the model's time for each, and find things that are a small part
    of a picture.
    """
    if sum((text is not None, image is not None, duplicates)) != 1:
        raise ArgumentError("give one of --text, --image and --duplicates.")
    if box is not None and image is None:
        raise ArgumentError("--box is a part of an image; give that with --image.")
    if fine and text is None and box is None:
        raise ArgumentError("--fine looks for a part of an image; give --text, or --image and --box.")
    if picture is not None:
        check_picture_output(picture, overwrite)
    with ImageIndex(index) as opened:
        if duplicates:
            with progress_bars() as begin:
                alike = find_duplicates(opened, threshold, folder, begin)
            say_json(alike) if json else _say_duplicates(alike)
            return
        model = _open_model(opened, bundle, device, threads)
        query = _query(opened, model, text, image, box, fine=fine)
        answer = find(opened, model, query, top, folder, depth, compare_all=exact)
        for skipped in answer.skipped:
            warn(f"fgclip-rt: left out: {skipped.error}")
        if picture is not None:
            _save(opened, model, answer, picture)
    if json:
        say_json(answer)
        return
    columns = [numbers("rank"), words("image"), numbers("cosine"), numbers("copies")]
    rows = [[str(rank), hit.image, f"{hit.cosine:.4f}", str(hit.copies)] for rank, hit in enumerate(answer.hits, 1)]
    if answer.fine:
        columns += [numbers("finest"), words("box")]
        for row, hit in zip(rows, answer.hits, strict=True):
            row += [f"{hit.finest:.4f}", ",".join(f"{value:.0f}" for value in hit.box or ())]
    recall = "" if answer.recall is None else f", of which the graph finds {answer.recall:.1%}"
    say_table(f"nearest of {answer.searched:,} images below {answer.root}{recall}", columns, rows)


def _open_model(index: ImageIndex, bundle: Path | None, device: str, threads: int | None) -> Model:
    """The model that made the index."""
    opened = Bundle.open(bundle or Path(index.about.bundle))
    index.check_bundle(opened)
    return open_model(opened, device, index.about.precision, threads)


def _query(
    index: ImageIndex, model: Model, text: str | None, image: Path | None, box: str | None, *, fine: bool
) -> Query:
    if text is not None:
        warn_of_texts(model, [text], "short", fixed=True)
        return Query.of_text(model, text, fine=fine)
    assert image is not None
    corners = None if box is None else parse_box(box, "xyxy")
    return Query.of_image(model, image, corners, turned=index.about.exif_transpose)


def _save(index: ImageIndex, model: Model, answer: Searched, picture: Path) -> None:
    from ...index.picture import draw_hits

    images: list[Image.Image | None] = []
    for hit in answer.hits:
        try:
            images.append(model.load_image(index.file(hit), index.about.exif_transpose))
        except ImageError as error:
            warn(f"fgclip-rt: {error}")
            images.append(None)
    save_picture(draw_hits(answer.hits, images), picture)


def _say_duplicates(answer: Duplicates) -> None:
    groups = "1 group" if len(answer.groups) == 1 else f"{len(answer.groups):,} groups"
    say(f"{groups} of images that are nearly the same, of {answer.searched:,} distinct ones")
    for group in answer.groups:
        say(f"cosine {group.cosine:.4f}")
        for name in group.images:
            say(f"  {name}")
