"""``fgclip-rt score``: how well texts describe images."""

from __future__ import annotations

from pathlib import Path

import click

from ... import answers
from ...errors import ImageError
from .. import options
from ..inputs import warn_of_texts
from ..options import Loading, Pixels, Texts
from ..output import numbers, say_json, say_table, warn, words
from ..status import Command, Failed

_TITLES = {
    "sigmoid": "probability that the text describes the image, each text by itself (sigmoid)",
    "softmax": "probability that the text, of these texts, describes the image best (softmax)",
}


@click.command(cls=Command)
@options.loading
@click.argument("images", nargs=-1, required=True, type=options.PATH, help="Image files.")
@options.texts("short")
@options.pixels
@options.json
def run(loading: Loading, images: tuple[Path, ...], texts: Texts, pixels: Pixels, json: bool) -> None:
    """Print how well each text describes each image.

    That is the cosine of their vectors, the logit, and the probability. Models with a sigmoid give each text a
    probability of its own. Models with a softmax share one among the texts, so that a single text always has 1.0000:
    give several, or compare cosines.

    An image that cannot be read is reported and left out, and the command ends with status 1.
    """
    pixels.set_limit()
    texts.check()
    model = loading.open()
    warn_of_texts(model, texts.text, texts.walk_type)
    answer = answers.score(
        model,
        images,
        texts.text,
        texts.walk_type,
        pixels.max_num_patches,
        names=[str(image) for image in images],
        exif_transpose=pixels.exif_transpose,
    )
    pixels.warn_unrotated(answer.unrotated, len(answer.images))
    for skipped in answer.skipped:
        warn(f"fgclip-rt: skipped: {skipped.error}")
    if answer.activation == "softmax" and len(answer.texts) == 1:
        warn(
            "fgclip-rt: this model's softmax compares texts with each other, so one text alone has the probability 1 "
            "for every image; give several with --text, or compare the cosines."
        )
    if json:
        say_json(answer)
    else:
        say_table(
            _TITLES[answer.activation],
            (words("image"), words("text"), numbers("cosine"), numbers("logit"), numbers("probability")),
            [
                (image, text, f"{cosine:.4f}", f"{logit:.2f}", f"{probability:.4f}")
                for image, *rows in zip(answer.images, answer.cosines, answer.logits, answer.probabilities, strict=True)
                for text, cosine, logit, probability in zip(answer.texts, *rows, strict=True)
            ],
        )
    if answer.error:
        raise Failed(ImageError(answer.error.message, code=answer.error.code))
