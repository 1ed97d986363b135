"""``fgclip-rt score``: how well texts describe images."""

from __future__ import annotations

from pathlib import Path

import click

from ... import answers
from .. import options
from ..inputs import warn_truncated
from ..options import Loading, Pixels, Texts
from ..output import numbers, say_json, say_table, words
from ..status import Command


@click.command(cls=Command)
@options.loading
@click.argument("images", nargs=-1, required=True, type=options.PATH, help="Image files.")
@options.texts("short")
@options.pixels
@options.json
def run(loading: Loading, images: tuple[Path, ...], texts: Texts, pixels: Pixels, json: bool) -> None:
    """Print the probability that each text describes each image."""
    pixels.set_limit()
    texts.check()
    model = loading.open()
    warn_truncated(model, texts.text, texts.walk_type)
    answer = answers.score(
        model,
        images,
        texts.text,
        texts.walk_type,
        pixels.max_num_patches,
        names=[str(image) for image in images],
        exif_transpose=pixels.exif_transpose,
    )
    pixels.warn_unrotated(answer.unrotated, len(images))
    if json:
        say_json(answer)
    else:
        say_table(
            "probability that the text describes the image",
            (words("image"), words("text"), numbers("probability")),
            [
                (image, text, f"{value:.4f}")
                for image, row in zip(answer.images, answer.probabilities, strict=True)
                for text, value in zip(answer.texts, row, strict=True)
            ],
        )
