"""``fgclip-rt models``: the models that can be exported by name."""

from __future__ import annotations

import click

from fgclip_rt.export.checkpoints.registry import MODELS, ModelSpec

from ...answers import Answer
from .. import options
from ..output import names, numbers, say, say_json, say_table, words
from ..status import Command

_WALK_TYPES = ("short", "box", "long")


class Listed(Answer, frozen=True):
    """A model that can be exported by name.

    Attributes:
        name: what to call it.
        hub_id: its repository on the Hugging Face Hub; None if it is not there.
        weights: where they come from: ``hub``, ``shipped`` with fgclip-rt, or a ``file`` of the user's.
        images: how they are prepared, in words.
        texts: number of tokens by walk type.
        has: what it has besides vectors of images and texts: ``dense``, ``region``, ``mask``.
        score: ``sigmoid`` or ``softmax``.
    """

    name: str
    hub_id: str | None
    weights: str
    images: str
    texts: dict[str, int]
    has: tuple[str, ...]
    score: str


@click.command(cls=Command)
@options.json
def run(json: bool) -> None:
    """List the models that can be exported by name.

    Give a name, or its Hub id, to 'fgclip-rt export --model'.
    """
    answer = [_listed(model) for model in MODELS.values()]
    if json:
        say_json(answer)
        return
    say_table(
        "",
        (names("model"), words("images"), *map(numbers, _WALK_TYPES), words("has")),
        [
            (
                "\n".join(filter(None, (model.name, model.hub_id))),
                model.images,
                *(str(model.texts.get(name, "-")) for name in _WALK_TYPES),
                ", ".join(model.has) or "-",
            )
            for model in answer
        ],
    )
    say("short, box and long: tokens of such a text; has: dense features, and vectors of regions and of masks")


def _listed(model: ModelSpec) -> Listed:
    traits = model.traits
    return Listed(
        name=model.name,
        hub_id=model.hub_id,
        weights="hub" if model.hub_id else "shipped" if model.folder else "file",
        images=model.images,
        texts=dict(traits.texts),
        has=traits.has,
        score=traits.score,
    )
