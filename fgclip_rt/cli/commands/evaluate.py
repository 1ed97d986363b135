"""``fgclip-rt evaluate``: whether a bundle still means something."""

from __future__ import annotations

from dataclasses import asdict

import click

from ...answers import Counted, Evaluated, EvaluatedBeside, Flipped, Share
from ...evaluation.measures import MEASURES, flips
from ...evaluation.scenes import Evaluation, check_scenes, lacking
from ...evaluation.scenes import evaluate as evaluate_model
from ...model import Model
from ...pocket.captions import LANGUAGES
from .. import options
from ..options import Loading, Loadings
from ..output import numbers, say, say_json, say_table, warn, words
from ..progress import progress_bars
from ..status import Command


@click.command(cls=Command)
@options.loadings
@click.option("--scenes", default=500, help="Number of scenes to draw, a multiple of 100.")
@click.option("--seed", default=0, help="Seed of the first scene.")
@options.json
def run(loadings: Loadings, scenes: int, seed: int, json: bool) -> None:
    """Count a bundle's right choices on scenes that are drawn for it.

    Retrieval of short and long captions among 100 scenes, names of regions, true captions against false ones, and
    dense maps, in English and Chinese. It measures bundles of fg-clip2-pocket, which was not trained on these scenes;
    other models never saw such scenes.

    With several precisions, the others are compared with the first on the same scenes: how many right choices they
    lose and gain, and how likely equally good models would differ so much (McNemar's test).
    """
    check_scenes(scenes)
    first, *others = loadings.each()
    evaluated, result = _evaluate(first, scenes, seed)
    answer = Evaluated(
        bundle=str(loadings.bundle),
        backend=str(evaluated.backend),
        precision=evaluated.precision,
        scenes=result.scenes,
        seed=result.seed,
        figures=[
            Share(figure.measure, figure.language, figure.right, figure.total, figure.chance, figure.share)
            for figure in result.figures
        ],
        true_before_false_by_change={change: Counted(*counts) for change, counts in result.by_change.items()},
        others=[_beside(result, other, scenes, seed) for other in others],
    )
    if json:
        say_json(answer)
    else:
        _say(answer)


def _evaluate(loading: Loading, scenes: int, seed: int) -> tuple[Model, Evaluation]:
    """A model, and its choices."""
    model = loading.open()
    if model.manifest.model.weights != "shipped":
        warn(
            "fgclip-rt: only fg-clip2-pocket was made for these scenes; other models can do little better than chance."
        )
    for what, measures in lacking(model).items():
        warn(f"fgclip-rt: {model.manifest.model.name} has no {what}, so {' and '.join(measures)} cannot be measured.")
    with progress_bars() as begin:
        return model, evaluate_model(model, scenes, seed, done=begin(f"evaluate {model.precision}", scenes))


def _beside(result: Evaluation, loading: Loading, scenes: int, seed: int) -> EvaluatedBeside:
    """The choices of another precision, beside those of ``result``."""
    model, other = _evaluate(loading, scenes, seed)
    figures = [
        Flipped(figure.measure, figure.language, figure.share, **asdict(flips(exact, figure)))
        for exact, figure in zip(result.figures, other.figures, strict=True)
    ]
    return EvaluatedBeside(model.precision, str(model.backend), figures)


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
    for other in answer.others:
        say_table(
            f"choices of {other.precision} that are not those of {answer.precision} ({other.backend})",
            (words("measure"), words("language"), *map(numbers, ("right", "lost", "gained", "by chance"))),
            [
                (
                    flipped.measure,
                    flipped.language,
                    f"{flipped.share:.1%}",
                    f"{flipped.lost}",
                    f"{flipped.gained}",
                    f"{flipped.probability:.2f}",
                )
                for flipped in other.figures
            ],
        )
