"""``fgclip-rt heatmap``: a picture of where texts are found in an image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import click

from ... import answers
from ...errors import ArgumentError
from ...heatmap import Picture, Scale, check_font, choose_scales, draw, font_advice, plan
from ...map_files import check_maps_output, write_maps
from ...outputs import check_picture_output, save_picture
from .. import options
from ..inputs import warn_of_texts
from ..options import Loading, Pixels, Texts
from ..output import say, say_json, warn
from ..status import Command

#: Between the ends of a scale: with more decimals, the numbers of a narrow bar would meet.
_LEAST_SPAN = 0.001


@click.command(cls=Command)
@options.loading
@click.argument("image", type=options.PATH, help="Image file.")
@options.texts("box")
@click.option("--output", type=options.PATH, required=True, help="Picture to write: .png, .jpg or .webp.")
@click.option(
    "--scale",
    default="shared",
    metavar="own|shared|LOW,HIGH",
    shell_complete=options.completed(("own", "shared")),
    help="Cosines of the first and last colour: each map's own, those of all maps, or given.",
)
@click.option("--overlay", is_flag=True, help="Lay the maps over the photo.")
@click.option("--maps", type=options.PATH, help="File for the cosines themselves: .npz.")
@click.option("--font", type=options.PATH, help="Font file for the titles.  [default: looked for]")
@options.pixels
@options.overwrite
@options.json
def run(
    loading: Loading,
    image: Path,
    texts: Texts,
    output: Path,
    scale: str,
    overlay: bool,
    maps: Path | None,
    font: Path | None,
    pixels: Pixels,
    overwrite: bool,
    json: bool,
) -> None:
    """Draw where in an image each text is found.

    One map per text, of its cosines with the dense features; more patches give finer maps. By default equal colours are
    equal cosines in all maps, so that a text that is not there stays dark beside one that is. --scale own shows the
    most in each map, but also lights up the best place of a text that is nowhere.
    """
    check_picture_output(output, overwrite)
    if maps is not None:
        check_maps_output(maps, overwrite)
    if font is not None:
        check_font(font)
    choice = parse_scale(scale)
    pixels.set_limit()
    texts.check()
    model = loading.open()
    warn_of_texts(model, texts.text, texts.walk_type)
    photo = model.load_image(image, pixels.exif_transpose)
    dense = model.dense(photo, pixels.max_num_patches)
    unrotated = int(dense.patches.orientation != 1)
    pixels.warn_unrotated(unrotated, 1)
    plan(photo.size, dense.grid, len(texts.text), overlay=overlay)
    cosines = dense.map(texts.text, texts.walk_type)
    scales = choose_scales(cosines, choice)
    picture = draw(photo, cosines, texts.text, scales, overlay=overlay, font=font)
    save_picture(picture.image, output)
    if maps is not None:
        write_maps(maps, cosines, texts.text, dense.image_size)
    if picture.unlabelled:
        _warn_unlabelled(picture)
    answer = answers.Maps(
        output=str(output),
        image=str(image),
        grid=list(dense.grid),
        scale=choice if isinstance(choice, str) else "fixed",
        maps=None if maps is None else str(maps),
        texts=[
            answers.found(text, values, photo.size, ends)
            for text, values, ends in zip(texts.text, cosines, scales, strict=True)
        ],
        unrotated=unrotated,
    )
    if json:
        say_json(answer)
        return
    rows, columns = answer.grid
    say(f"{output}: {len(answer.texts)} map{'s' if len(answer.texts) > 1 else ''} of {rows}×{columns} patches")
    if maps is not None:
        say(f"{maps}: float32 {list(cosines.shape)}")
    for found in answer.texts:
        x, y = found.at
        say(f"  {found.text}: cosine {found.least:.3f} to {found.largest:.3f}, largest at {x:.0f},{y:.0f}")


def parse_scale(value: str) -> Literal["own", "shared"] | Scale:
    """A scale from the command line.

    Raises:
        ArgumentError: it is neither a known word nor two cosines in order.
    """
    if value == "own":
        return "own"
    if value == "shared":
        return "shared"
    try:
        low, high = map(float, value.split(","))
    except ValueError:
        low = high = math.nan
    if not (low >= -1 and high <= 1 and round(high - low, 9) >= _LEAST_SPAN):
        raise ArgumentError(
            f"--scale {value!r} is neither own, nor shared, nor two cosines in order; give LOW,HIGH from -1 to 1, "
            f"{_LEAST_SPAN} or more apart: 0,0.3."
        )
    return Scale(low, high)


def _warn_unlabelled(picture: Picture) -> None:
    texts = picture.unlabelled
    shown = ", ".join(texts[:3]) + (", …" if len(texts) > 3 else "")
    titles = "its map has a number" if len(texts) == 1 else "their maps have numbers"
    warn(
        f"fgclip-rt: no font here has all characters of {shown}, so {titles} for a title; "
        f"{font_advice(picture.lacking)}, or name a font file with --font."
    )
