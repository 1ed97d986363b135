"""``fgclip-rt evaluate``: whether a bundle still means something."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ..evaluation.measures import MEASURES
from ..evaluation.scenes import Evaluation, check_scenes, lacking
from ..evaluation.scenes import evaluate as evaluate_model
from ..pocket.captions import LANGUAGES
from . import options
from .console import open_model, progress_bars, say, say_json, say_table, warn


def run(
    bundle: options.Bundle,
    scenes: Annotated[int, typer.Option(help="Number of scenes to draw, a multiple of 100.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the first scene.")] = 0,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    json: options.Json = False,
) -> None:
    """Count right choices on scenes that are drawn for it and that fg-clip2-pocket was not trained on.

    Retrieval of short and long captions among 100 scenes, names of regions, true captions against false ones, and
    dense maps, in English and Chinese. It measures bundles of fg-clip2-pocket; other models never saw such scenes.
    """
    check_scenes(scenes)
    model = open_model(bundle, device, precision, threads, backend)
    if model.manifest.model.weights != "shipped":
        warn(
            "fgclip-rt: only fg-clip2-pocket was made for these scenes; other models can do little better than chance."
        )
    for what, measures in lacking(model).items():
        warn(f"fgclip-rt: {model.manifest.model.name} has no {what}, so {' and '.join(measures)} cannot be measured.")
    with progress_bars() as begin:
        result = evaluate_model(model, scenes, seed, done=begin("evaluate", scenes))
    if json:
        say_json(_document(str(bundle), str(model.backend), model.precision, result))
        return
    figures = {(figure.measure, figure.language): figure for figure in result.figures}
    say_table(
        f"right choices on {scenes} scenes ({model.precision}, {model.backend})",
        ("measure", *LANGUAGES, "by chance"),
        (
            (
                measure,
                *(f"{figures[measure, language].share:.1%}" for language in LANGUAGES),
                f"{figures[measure, LANGUAGES[0]].chance:.1%}",
            )
            for measure in MEASURES
            if (measure, LANGUAGES[0]) in figures
        ),
    )
    changes = ", ".join(f"{change} {right}/{total}" for change, (right, total) in result.by_change.items())
    say(f"true before false caption, by what was changed: {changes}")


def _document(bundle: str, backend: str, precision: str, result: Evaluation) -> dict[str, object]:
    return {
        "bundle": bundle,
        "backend": backend,
        "precision": precision,
        "scenes": result.scenes,
        "seed": result.seed,
        "figures": [{**asdict(figure), "share": figure.share} for figure in result.figures],
        "true_before_false_by_change": {
            change: {"right": right, "total": total} for change, (right, total) in result.by_change.items()
        },
    }
