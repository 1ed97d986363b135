"""``fgclip-rt inspect``: what is inside a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ... import answers
from ...answers import Inspected
from ...bundle import Bundle
from ...engine_files import EngineRecord, Profile
from ...interface import describe
from ...manifest import TensorSpec
from .. import options
from ..output import numbers, say, say_json, say_table, words
from ..parity import LEGEND, describe_lowering, say_parity
from ..status import Command

#: Most names of other files on one line.
_MOST_SHOWN = 8


@click.command(cls=Command, epilog=LEGEND)
@options.bundle
@click.option("--all", "every", is_flag=True, help="Show every comparison, not the worst figures of each graph.")
@options.json
def run(bundle: Path, every: bool, json: bool) -> None:
    """Show what is inside a bundle.

    Every file that the manifest lists is first checked against its digest. Other files are named, and nothing else.
    """
    answer = answers.inspect(Bundle.open(bundle))
    if json:
        say_json(answer)
        return
    manifest = answer.manifest
    for name, value in _facts(answer):
        say(f"{name:<12} {value}")
    say_table(
        "graphs",
        (words("graph"), words("precision"), words("file"), words("inputs and outputs")),
        [
            (name, precision, graph.file, f"{_tensors(graph.inputs)}\n→ {_tensors(graph.outputs)}")
            for name, graphs in manifest.graphs.items()
            for precision, graph in graphs.items()
        ],
    )
    say_table(
        "files",
        (words("file"), numbers("bytes"), words("sha256")),
        [(name, f"{info.size:,}", info.sha256) for name, info in manifest.files.items()],
    )
    if answer.engines:
        say_table(
            "engines",
            (words("engine"), words("for"), words("inputs"), numbers("MB"), numbers("layers"), numbers("seconds")),
            [_engine(name, record) for name, record in answer.engines.items()],
        )
    for precision, rows in manifest.parity.measured.items():
        say_parity(rows, f"parity at export, {precision}", every=every)


def _facts(answer: Inspected) -> list[tuple[str, str]]:
    manifest = answer.manifest
    model, image, text, score = manifest.model, manifest.image, manifest.text, manifest.score
    revision = f" at {model.revision}" if model.revision else ""
    weights = {
        "random": "RANDOM: for benchmarks only, its numbers mean nothing",
        "shipped": "shipped with fgclip-rt",
        "local": f"local, from {model.source}",
        "released": f"released, {model.source}{revision}",
    }[model.weights]
    # Every released model reads the padding of its texts.
    masking = "yes, which no released model has" if text.attention_mask else "no"
    walk_types = ", ".join(f"{name} {spec.length}" for name, spec in text.walk_types.items())
    return [
        ("model", f"{model.name} ({model.family}), vectors of {manifest.embedding_size}"),
        ("weights", weights),
        ("size", f"{answer.size / 1e6:,.1f} MB in {len(manifest.files) + 1} files"),
        *([("other files", _others(answer))] if answer.other_files else []),
        ("precisions", ", ".join(manifest.precisions)),
        *(("lowering", f"{precision}: {describe_lowering(entry)}") for precision, entry in manifest.lowering.items()),
        *(("space", f"{space}, of {', '.join(names)}") for space, names in _spaces(answer).items()),
        ("score", f"{score.activation}(exp({score.logit_scale:.4f}) · cosine {score.logit_bias:+.4f})"),
        ("images", str(image)),
        ("texts", f"tokens by walk type: {walk_types}; attention mask: {masking}"),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.producer.items())),
    ]


def _spaces(answer: Inspected) -> dict[str, list[str]]:
    """The precisions of each space."""
    spaces: dict[str, list[str]] = {}
    for precision, space in answer.spaces.items():
        spaces.setdefault(space, []).append(precision)
    return spaces


def _others(answer: Inspected) -> str:
    """The first names of other files, and the number of the rest."""
    shown = answer.other_files[:_MOST_SHOWN]
    more = answer.other_files_total - len(shown)
    return f"{', '.join(shown)}{f', and {more:,} more' if more else ''} (not part of the bundle)"


def _engine(name: str, record: EngineRecord) -> tuple[str, ...]:
    key = record.key
    return (
        name,
        ", ".join([str(key.library), *key.targets, *([key.gpu] if key.gpu else [])]),
        "\n".join(f"{name} {_shapes(profile)}" for name, profile in key.profiles.items()),
        f"{sum(info.size for info in record.files.values()) / 1e6:,.1f}",
        "-" if record.layers is None else f"{record.layers:,}",
        f"{record.seconds:.1f}",
    )


def _shapes(profile: Profile) -> str:
    """The shapes of an input, with min, opt and max where they differ."""
    sizes = zip(profile.min, profile.opt, profile.max, strict=True)
    return f"[{', '.join('/'.join(map(str, dict.fromkeys(axis))) for axis in sizes)}]"


def _tensors(specs: tuple[TensorSpec, ...]) -> str:
    return "\n".join(map(describe, specs))
