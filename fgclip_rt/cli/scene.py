"""``fgclip-rt scene``: a picture to try things with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..outputs import check_picture_output, save_picture
from ..pocket.captions import LANGUAGES, box_caption, falsify, long_caption, short_caption, state
from ..pocket.scenes import draw, make_scene
from . import options
from .console import say, say_json


def run(
    output: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")],
    seed: Annotated[int, typer.Option(help="Which scene; the same seed draws the same one.")] = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Draw a scene that fg-clip2-pocket understands but was not trained on, and print captions of it.

    In English and Chinese: a true short caption, a false one that differs in one attribute, a long one, and the box and
    the name of each thing.
    """
    check_picture_output(output, overwrite)
    scene = make_scene(seed)
    save_picture(draw(scene), output)

    statement = state(scene, seed)
    wrong, change = falsify(scene, statement, seed)
    captions = {
        language: {
            "short": short_caption(statement, language, seed),
            "false": short_caption(wrong, language, seed),
            "long": long_caption(scene, language, seed),
            "names": [box_caption(thing.look, language, seed) for thing in scene.things],
        }
        for language in LANGUAGES
    }
    boxes = [[round(value, 1) for value in thing.box] for thing in scene.things]
    if json:
        say_json(
            {
                "output": str(output),
                "seed": seed,
                "size": [scene.width, scene.height],
                "boxes": boxes,
                "changed": change,
                "captions": captions,
            }
        )
        return
    say(f"{output}: {scene.width}×{scene.height}, {len(scene.things)} things")
    for language, entries in captions.items():
        say(language)
        say(f"  true:  {entries['short']}")
        say(f"  false: {entries['false']} (another {change})")
        say(f"  long:  {entries['long']}")
        for box, name in zip(boxes, entries["names"], strict=True):
            say(f"  {','.join(f'{value:g}' for value in box)}: {name}")
