"""``fgclip-rt evaluate``: whether a bundle still means something."""

from __future__ import annotations

from dataclasses import asdict

import click

from ...answers import Counted, Evaluated, Share
from ...evaluation.measures import MEASURES
from ...evaluation.scenes import check_scenes, lacking
from ...evaluation.scenes import evaluate as evaluate_model
from ...pocket.captions import LANGUAGES
from .. import options
from ..options import Loading
from ..output import numbers, say, say_json, say_table, warn, words
from ..progress import progress_bars
from ..status import Command


@click.command(cls=Command)
@options.loading
@click.option("--scenes", default=500, help="Number of scenes to draw, a multiple of 100.")
@click.option("--seed", default=0, help="Seed of the first scene.")
@options.json
def run(loading: Loading, scenes: int, seed: int, json: bool) -> None:
    """Count a bundle's right choices on scenes that are drawn for it.

    Retrieval of short and long captions among 100 scenes, names of regions, true captions against false ones, and
    dense maps, in English and Chinese. It measures bundles of fg-clip2-pocket, which was not trained on these scenes;
    other models never saw such scenes.
    """
    check_scenes(scenes)
    model = loading.open()
    if model.manifest.model.weights != "shipped":
        warn(
            "fgclip-rt: only fg-clip2-pocket was made for these scenes; other models can do little better than chance."
        )
    for what, measures in lacking(model).items():
        warn(f"fgclip-rt: {model.manifest.model.name} has no {what}, so {' and '.join(measures)} cannot be measured.")
    with progress_bars() as begin:
        result = evaluate_model(model, scenes, seed, done=begin("evaluate", scenes))
    answer = Evaluated(
        bundle=str(loading.bundle),
        backend=str(model.backend),
        precision=model.precision,
        scenes=result.scenes,
        seed=result.seed,
        figures=[Share(**asdict(figure), share=figure.share) for figure in result.figures],
        true_before_false_by_change={change: Counted(*counts) for change, counts in result.by_change.items()},
    )
    if json:
        say_json(answer)
    else:
        _say(answer)


def _say(answer: Evaluated) -> None:
    shares = {(figure.measure, figure.language): figure for figure in answer.figures}
    say_table(
        f"right choices on {answer.scenes} scenes ({answer.precision}, {answer.backend})",
        (words("measure"), *map(numbers, LANGUAGES), numbers("by chance")),
        [
            (
                measure,
                *(f"{shares[measure, language].share:.1%}" for language in LANGUAGES),
                f"{shares[measure, LANGUAGES[0]].chance:.1%}",
            )
            for measure in MEASURES
            if (measure, LANGUAGES[0]) in shares
        ],
    )
    changes = answer.true_before_false_by_change.items()
    counted = ", ".join(f"{change} {count.right}/{count.total}" for change, count in changes)
    say(f"true before false caption, by what was changed: {counted}")
