"""Scenes and captions of the training split, on which a quantised ``fg-clip2-pocket`` is calibrated."""

from __future__ import annotations

from PIL import Image

from .captions import LANGUAGES, box_caption, long_caption, short_caption, state
from .scenes import draw, make_scene

#: Number of scenes; calibration holds 32 of them out.
_SCENES = 192


def calibration_inputs() -> tuple[list[Image.Image], dict[str, list[str]]]:
    """Drawn scenes, and their captions by walk type, English and Chinese in turn."""
    scenes = [make_scene(seed, "train") for seed in range(_SCENES)]
    texts: dict[str, list[str]] = {"short": [], "box": [], "long": []}
    for seed, scene in enumerate(scenes):
        language = LANGUAGES[seed % len(LANGUAGES)]
        texts["short"].append(short_caption(state(scene, seed), language, seed))
        texts["box"].append(box_caption(scene.things[0].look, language, seed))
        texts["long"].append(long_caption(scene, language, seed))
    return [draw(scene) for scene in scenes], texts
