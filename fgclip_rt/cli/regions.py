"""``fgclip-rt regions``: how well texts describe boxes of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BoxError
from . import options
from .console import open_model, say_json, say_table, set_max_image_pixels
from .inputs import check_text_arguments, read_images, warn_truncated


def run(
    bundle: options.Bundle,
    image: Annotated[Path, typer.Argument(help="Image file.")],
    box: Annotated[list[str], typer.Option(help="A box in pixels, x1,y1,x2,y2; repeatable.")],
    text: Annotated[list[str], typer.Option(help="A text; repeatable.")],
    walk_type: Annotated[str, typer.Option(help="Kind of text: short, box or long.")] = "box",
    max_num_patches: options.MaxNumPatches = None,
    exif_transpose: options.ExifTranspose = False,
    max_image_pixels: options.MaxImagePixels = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    json: options.Json = False,
) -> None:
    """Print the cosine of each text with each box of an image."""
    set_max_image_pixels(max_image_pixels)
    boxes = [parse_box(value) for value in box]
    check_text_arguments(text)
    model = open_model(bundle, device, precision, threads, backend)
    warn_truncated(model, text, walk_type)
    (picture,) = read_images([image], exif_transpose)
    regions = model.embed_regions(picture, boxes, max_num_patches)
    cosines = regions @ model.embed_texts(text, walk_type).T
    if json:
        say_json({"image": str(image), "boxes": boxes, "texts": text, "cosines": cosines.tolist()})
        return
    say_table(
        f"cosine of text and region in {image}",
        ("text", *box),
        ((name, *(f"{value:.4f}" for value in column)) for name, column in zip(text, cosines.T, strict=True)),
    )


def parse_box(value: str) -> list[float]:
    """A box from the command line.

    Raises:
        BoxError: it is not four numbers.
    """
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise BoxError(f"--box {value!r} is not four numbers; give it as x1,y1,x2,y2 in pixels.")
    return numbers
