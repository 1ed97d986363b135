"""``fgclip-rt regions``: how well texts describe boxes of an image."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from ... import answers
from ...boxes import BOX_FORMATS, BoxFormat, BoxUnitsWarning, check_format
from ...errors import BoxError
from .. import options
from ..inputs import warn_of_texts
from ..options import Loading, Pixels, Texts
from ..output import numbers, say_json, say_table, warn, words
from ..status import Command


@click.command(cls=Command)
@options.loading
@click.argument("image", type=options.PATH, help="Image file.")
@click.option("--box", multiple=True, required=True, help="A box, four numbers as --box-format says; repeatable.")
@click.option(
    "--box-format",
    default="xyxy",
    shell_complete=options.completed(tuple(BOX_FORMATS)),
    help="xyxy or xywh in pixels, or normalized: x1,y1,x2,y2 in shares of the image.",
)
@options.texts("box")
@options.pixels
@options.json
def run(
    loading: Loading,
    image: Path,
    box: tuple[str, ...],
    box_format: BoxFormat,
    texts: Texts,
    pixels: Pixels,
    json: bool,
) -> None:
    """Print the cosine of each text with each box of an image."""
    pixels.set_limit()
    check_format(box_format)
    boxes = [parse_box(value, box_format) for value in box]
    texts.check()
    model = loading.open()
    warn_of_texts(model, texts.text, texts.walk_type)
    with warnings.catch_warnings(record=True, category=BoxUnitsWarning, action="always") as doubts:
        answer = answers.regions(
            model,
            image,
            boxes,
            texts.text,
            texts.walk_type,
            pixels.max_num_patches,
            box_format=box_format,
            name=str(image),
            exif_transpose=pixels.exif_transpose,
        )
    for doubt in doubts:
        warn(f"fgclip-rt: {doubt.message}")
    pixels.warn_unrotated(answer.unrotated, 1)
    if json:
        say_json(answer)
    else:
        say_table(
            f"cosine of text and region in {image}",
            (words("box"), words("text"), numbers("cosine")),
            [
                (name, text, f"{value:.4f}")
                for name, row in zip(box, answer.cosines, strict=True)
                for text, value in zip(answer.texts, row, strict=True)
            ],
        )


def parse_box(value: str, box_format: BoxFormat) -> list[float]:
    """A box from the command line.

    Raises:
        BoxError: it is not four numbers.
    """
    try:
        corners = [float(part) for part in value.split(",")]
    except ValueError:
        corners = []
    if len(corners) != 4:
        raise BoxError(f"--box {value!r} is not four numbers; give it as {BOX_FORMATS[box_format]}.")
    return corners
