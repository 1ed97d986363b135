"""``fgclip-rt heatmap``: a picture of where texts are found in an image."""

from __future__ import annotations

from pathlib import Path

import click

from ... import answers
from ...heatmap import draw
from ...outputs import check_picture_output, save_picture
from .. import options
from ..inputs import warn_truncated
from ..options import Loading, Pixels, Texts
from ..output import say, say_json, warn
from ..status import Command


@click.command(cls=Command)
@options.loading
@click.argument("image", type=options.PATH, help="Image file.")
@options.texts("box")
@click.option("--output", type=options.PATH, required=True, help="Picture to write: .png, .jpg or .webp.")
@click.option("--font", type=options.PATH, help="Font file for the labels.  [default: looked for]")
@options.pixels
@options.overwrite
@options.json
def run(
    loading: Loading,
    image: Path,
    texts: Texts,
    output: Path,
    font: Path | None,
    pixels: Pixels,
    overwrite: bool,
    json: bool,
) -> None:
    """Draw where in an image each text is found.

    One map per text, from its least to its largest cosine with the dense features; more patches give finer maps.
    """
    check_picture_output(output, overwrite)
    pixels.set_limit()
    texts.check()
    model = loading.open()
    warn_truncated(model, texts.text, texts.walk_type)
    photo = model.load_image(image, pixels.exif_transpose)
    dense = model.dense(photo, pixels.max_num_patches)
    unrotated = int(dense.patches.orientation != 1)
    pixels.warn_unrotated(unrotated, 1)
    maps = dense.map(texts.text, texts.walk_type)
    picture = draw(photo, maps, texts.text, font)
    save_picture(picture.image, output)
    if picture.unlabelled:
        warn(
            f"fgclip-rt: no font here can write {', '.join(picture.unlabelled)}, so these maps carry numbers; "
            "name a font file with --font."
        )
    answer = answers.Maps(
        output=str(output),
        image=str(image),
        grid=list(maps.shape[1:]),
        texts=[answers.found(text, values, photo.size) for text, values in zip(texts.text, maps, strict=True)],
        unrotated=unrotated,
    )
    if json:
        say_json(answer)
        return
    rows, columns = answer.grid
    say(f"{output}: {len(answer.texts)} maps of {rows}×{columns} patches")
    for found in answer.texts:
        x, y = found.at
        say(f"  {found.text}: cosine {found.least:.3f} to {found.largest:.3f}, largest at {x:.0f},{y:.0f}")
