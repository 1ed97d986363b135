"""``fgclip-rt inspect``: what is inside a bundle."""

from __future__ import annotations

import msgspec

from ..bundle import Bundle
from ..engine_files import Engine, Profile, find_engines
from ..manifest import Manifest, ParityRow, TensorSpec
from . import options
from .console import PARITY_COLUMNS, describe_lowering, parity_cells, say, say_json, say_table


def run(bundle: options.Bundle, json: options.Json = False) -> None:
    """Show what is inside a bundle, once every file has been checked against its digest."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    built = find_engines(opened)
    if json:
        engines = {engine.path.name: msgspec.to_builtins(engine.record) for engine in built}
        say_json(
            {"path": str(opened.path), "size": opened.size, "manifest": manifest.to_builtins(), "engines": engines}
        )
        return
    for name, value in _facts(opened):
        say(f"{name:<12} {value}")
    say_table(
        "graphs",
        ("graph", "precision", "file", "inputs", "outputs"),
        (
            (name, precision, graph.file, _tensors(graph.inputs), _tensors(graph.outputs))
            for name, graphs in manifest.graphs.items()
            for precision, graph in graphs.items()
        ),
        right=False,
    )
    say_table(
        "files",
        ("file", "bytes", "sha256"),
        ((name, f"{info.size:,}", info.sha256) for name, info in manifest.files.items()),
    )
    if built:
        columns = ("engine", "library", "targets", "inputs", "bytes", "layers", "seconds")
        say_table("engines", columns, map(_engine, built), right=False)
    say_table("parity at export", ("precision", *PARITY_COLUMNS), _parity(manifest))


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    model, image, text, score = manifest.model, manifest.image, manifest.text, manifest.score
    revision = f" at {model.revision}" if model.revision else ""
    weights = {
        "random": "RANDOM: for benchmarks only, its numbers mean nothing",
        "shipped": "shipped with fgclip-rt",
        "local": f"local, from {model.source}",
        "released": f"released, {model.source}{revision}",
    }[model.weights]
    walk_types = ", ".join(f"{name} {spec.length}" for name, spec in text.walk_types.items())
    return [
        ("model", f"{model.name} ({model.family}), vectors of {manifest.embedding_size}"),
        ("weights", weights),
        ("size", f"{bundle.size / 1e6:,.1f} MB in {len(manifest.files) + 1} files"),
        ("precisions", ", ".join(manifest.precisions)),
        *(("lowering", f"{precision}: {describe_lowering(entry)}") for precision, entry in manifest.lowering.items()),
        ("score", f"{score.activation}(exp({score.logit_scale:.4f}) · cosine {score.logit_bias:+.4f})"),
        ("images", str(image)),
        ("texts", f"tokens by walk type: {walk_types}; attention mask: {'yes' if text.attention_mask else 'no'}"),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.producer.items())),
    ]


def _engine(engine: Engine) -> tuple[str, ...]:
    key, record = engine.key, engine.record
    return (
        engine.path.name,
        str(key.library),
        ", ".join([*key.targets, *([key.gpu] if key.gpu else [])]),
        "\n".join(f"{name} {_shapes(profile)}" for name, profile in key.profiles.items()),
        f"{engine.size:,}",
        "-" if record.layers is None else f"{record.layers:,}",
        f"{record.seconds:.1f}",
    )


def _shapes(profile: Profile) -> str:
    """The shapes of an input, with min, opt and max where they differ."""
    sizes = zip(profile.min, profile.opt, profile.max, strict=True)
    return f"[{', '.join('/'.join(map(str, dict.fromkeys(axis))) for axis in sizes)}]"


def _tensors(specs: tuple[TensorSpec, ...]) -> str:
    return "\n".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)


def _parity(manifest: Manifest) -> list[tuple[str, ...]]:
    """A line per graph for fp32, where all is alike, and one per comparison for what has to be chosen between."""
    lines: list[tuple[str, ...]] = []
    for precision, rows in manifest.parity.measured.items():
        shown = _by_graph(rows) if precision == "fp32" else rows
        lines += [(precision, *parity_cells(row)) for row in shown]
    return lines


def _by_graph(rows: tuple[ParityRow, ...]) -> list[ParityRow]:
    graphs = dict.fromkeys(row.graph for row in rows)
    return [_worst([row for row in rows if row.graph == graph]) for graph in graphs]


def _worst(rows: list[ParityRow]) -> ParityRow:
    """Several comparisons of one graph as one: their worst, the sum of what is counted, and the mean over all."""
    count = sum(row.count for row in rows)
    shifts = [row.logit_shift for row in rows if row.logit_shift is not None]
    flips = [row.flips for row in rows if row.flips is not None]
    return ParityRow(
        graph=rows[0].graph,
        case=f"{len(rows)} case{'s' if len(rows) > 1 else ''}",
        count=count,
        max_error=max(row.max_error for row in rows),
        max_difference=max(row.max_difference for row in rows),
        min_cosine=min(row.min_cosine for row in rows),
        mean_cosine=sum(row.mean_cosine * row.count for row in rows) / max(1, count),
        within=sum(row.within * row.count for row in rows) / max(1, count),
        logit_shift=max(shifts, default=None),
        flips=sum(flips) if flips else None,
        passed=all(row.passed for row in rows),
    )
