"""``fgclip-rt score``: how well texts describe images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import open_model, say_json, say_table, set_max_image_pixels
from .inputs import check_text_arguments, read_images, warn_truncated


def run(
    bundle: options.Bundle,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    text: Annotated[list[str], typer.Option(help="A text; repeatable.")],
    walk_type: Annotated[str, typer.Option(help="Kind of text: short, box or long.")] = "short",
    max_num_patches: options.MaxNumPatches = None,
    exif_transpose: options.ExifTranspose = False,
    max_image_pixels: options.MaxImagePixels = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    json: options.Json = False,
) -> None:
    """Print the probability that each text describes each image."""
    set_max_image_pixels(max_image_pixels)
    check_text_arguments(text)
    model = open_model(bundle, device, precision, threads, backend)
    warn_truncated(model, text, walk_type)
    text_embeds = model.embed_texts(text, walk_type)
    image_embeds = model.embed_images(read_images(images, exif_transpose), max_num_patches)
    probabilities = model.probabilities(image_embeds, text_embeds)
    if json:
        say_json(
            {
                "images": [str(image) for image in images],
                "texts": text,
                "logits": model.logits(image_embeds, text_embeds).tolist(),
                "probabilities": probabilities.tolist(),
            }
        )
        return
    say_table(
        "probability that the text describes the image",
        ("text", *(str(image) for image in images)),
        ((name, *(f"{value:.4f}" for value in column)) for name, column in zip(text, probabilities.T, strict=True)),
    )
