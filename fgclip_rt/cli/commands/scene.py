"""``fgclip-rt scene``: a picture to try things with."""

from __future__ import annotations

from pathlib import Path

import click

from ...answers import Captions, SceneDrawn
from ...outputs import check_picture_output, save_picture
from ...pocket.captions import LANGUAGES, box_caption, falsify, long_caption, short_caption, state
from ...pocket.scenes import draw, make_scene
from .. import options
from ..output import say, say_json
from ..status import Command


@click.command(cls=Command)
@click.option("--output", type=options.PATH, required=True, help="Picture to write: .png, .jpg or .webp.")
@click.option("--seed", default=0, help="Which scene; the same seed draws the same one.")
@options.overwrite
@options.json
def run(output: Path, seed: int, overwrite: bool, json: bool) -> None:
    """Draw a scene that fg-clip2-pocket understands, and print its captions.

    It was not trained on it. In English and Chinese: a true short caption, a false one that differs in one attribute, a
    long one, and the box and the name of each thing.
    """
    check_picture_output(output, overwrite)
    scene = make_scene(seed)
    save_picture(draw(scene), output)

    statement = state(scene, seed)
    wrong, change = falsify(scene, statement, seed)
    answer = SceneDrawn(
        output=str(output),
        seed=seed,
        size=[scene.width, scene.height],
        boxes=[[round(value, 1) for value in thing.box] for thing in scene.things],
        changed=change,
        captions={
            language: Captions(
                short=short_caption(statement, language, seed),
                false=short_caption(wrong, language, seed),
                long=long_caption(scene, language, seed),
                names=[box_caption(thing.look, language, seed) for thing in scene.things],
            )
            for language in LANGUAGES
        },
    )
    if json:
        say_json(answer)
        return
    say(f"{output}: {scene.width}×{scene.height}, {len(scene.things)} things")
    for language, captions in answer.captions.items():
        say(language)
        say(f"  true:  {captions.short}")
        say(f"  false: {captions.false} (another {change})")
        say(f"  long:  {captions.long}")
        for box, name in zip(answer.boxes, captions.names, strict=True):
            say(f"  {','.join(f'{value:g}' for value in box)}: {name}")
