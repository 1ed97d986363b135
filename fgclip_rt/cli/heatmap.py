"""``fgclip-rt heatmap``: a picture of where texts are found in an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..heatmap import draw, largest_at
from ..outputs import check_picture_output, save_picture
from . import options
from .console import open_model, say, say_json, set_max_image_pixels, warn
from .inputs import check_text_arguments, read_images, warn_truncated


def run(
    bundle: options.Bundle,
    image: Annotated[Path, typer.Argument(help="Image file.")],
    text: Annotated[list[str], typer.Option(help="A text; repeatable.")],
    output: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")],
    walk_type: Annotated[str, typer.Option(help="Kind of text: short, box or long.")] = "box",
    max_num_patches: options.MaxNumPatches = None,
    font: Annotated[Path | None, typer.Option(help="Font file for the labels.  [default: looked for]")] = None,
    exif_transpose: options.ExifTranspose = False,
    max_image_pixels: options.MaxImagePixels = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Draw where in an image each text is found.

    One map per text, from its least to its largest cosine with the dense features; more patches give finer maps.
    """
    check_picture_output(output, overwrite)
    set_max_image_pixels(max_image_pixels)
    check_text_arguments(text)
    model = open_model(bundle, device, precision, threads, backend)
    warn_truncated(model, text, walk_type)
    (photo,) = read_images([image], exif_transpose)
    maps = model.dense(photo, max_num_patches).map(text, walk_type)
    picture = draw(photo, maps, text, font)
    save_picture(picture.image, output)
    if picture.unlabelled:
        warn(
            f"fgclip-rt: no font here can write {', '.join(picture.unlabelled)}, so these maps carry numbers; "
            "name a font file with --font."
        )

    found: list[dict[str, Any]] = []
    for name, values in zip(text, maps, strict=True):
        at = list(largest_at(values, photo.size))
        found.append({"text": name, "largest": float(values.max()), "least": float(values.min()), "at": at})
    if json:
        say_json({"output": str(output), "image": str(image), "grid": list(maps.shape[1:]), "texts": found})
        return
    say(f"{output}: {len(text)} maps of {maps.shape[1]}×{maps.shape[2]} patches")
    for entry in found:
        x, y = entry["at"]
        say(f"  {entry['text']}: cosine {entry['least']:.3f} to {entry['largest']:.3f}, largest at {x:.0f},{y:.0f}")
