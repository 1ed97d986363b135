"""The engines to build of a bundle, and the shapes that each of them takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fgclip_rt.engine_files import Profile
from fgclip_rt.errors import ArgumentError
from fgclip_rt.manifest import Axis, Manifest, TensorSpec

#: Smallest, most usual and largest value of an axis.
Range: TypeAlias = tuple[int, int, int]

#: Images or texts in a run, and boxes or masks.
DEFAULT_BATCH: Range = (1, 8, 32)
DEFAULT_BOXES: Range = (1, 16, 256)

_LARGEST_RANGE = 2**16


@dataclass(frozen=True)
class EngineSpec:
    """One engine to build.

    Attributes:
        graph: name of the graph.
        precision: one of the bundle's; the first of those that share the graph's file.
        file: the graph's file.
        fixed: size of every axis that is fixed.
        profiles: by input.
        parts: profiles by input that together cover ``profiles``: a batch of one, those up to the usual, and the rest.
    """

    graph: str
    precision: str
    file: str
    fixed: Mapping[str, int]
    profiles: Mapping[str, Profile]
    parts: Sequence[Mapping[str, Profile]]


@dataclass(frozen=True)
class Shapes:
    """The shapes that engines are asked for; None stands for all that the bundle's preparation makes.

    Attributes:
        buckets: numbers of patches, each an engine of its own.
        text_lengths: numbers of tokens, each an engine of its own.
        batch: range of images or texts.
        boxes: range of boxes.
        masks: range of masks.
    """

    buckets: Sequence[int] | None = None
    text_lengths: Sequence[int] | None = None
    batch: Range = DEFAULT_BATCH
    boxes: Range = DEFAULT_BOXES
    masks: Range = DEFAULT_BOXES


def plan(
    manifest: Manifest, precisions: Sequence[str], graphs: Sequence[str] | None = None, shapes: Shapes | None = None
) -> list[EngineSpec]:
    """The engines to build.

    Args:
        manifest: the bundle's.
        precisions: of the bundle's.
        graphs: names of graphs; None takes all.
        shapes: which shapes; None takes the defaults.

    Raises:
        ArgumentError: the bundle has no such graph, precision, number of patches or text length, or a range is none.
    """
    shapes = shapes or Shapes()
    for graph in graphs or ():
        _check_known("graph", graph, manifest.graphs)
    for precision in precisions:
        _check_known("precision", precision, manifest.precisions)
    # Of these axes an engine has one size, and of the others a range.
    fixed = {
        Axis.PATCHES: _buckets(manifest, shapes.buckets),
        Axis.TOKENS: _text_lengths(manifest, shapes.text_lengths),
    }
    ranges = {
        axis: _range(axis, values)
        for axis, values in ((Axis.BATCH, shapes.batch), (Axis.BOXES, shapes.boxes), (Axis.MASKS, shapes.masks))
    }
    specs: dict[tuple[str, tuple[tuple[str, int], ...]], EngineSpec] = {}
    for graph in graphs or manifest.graphs:
        for precision in precisions:
            for spec in _specs(manifest, graph, precision, fixed, ranges):
                # One file may serve several precisions; its engines do so too.
                specs.setdefault((spec.file, tuple(spec.fixed.items())), spec)
    return list(specs.values())


def _specs(
    manifest: Manifest,
    graph: str,
    precision: str,
    fixed: Mapping[str, Sequence[int]],
    ranges: Mapping[str, Range],
) -> Iterator[EngineSpec]:
    entries = manifest.graphs[graph]
    entry = entries[precision]
    first = next(name for name in manifest.precisions if entries[name].file == entry.file)
    axes = dict.fromkeys(axis for spec in entry.inputs for axis in spec.shape if isinstance(axis, str))
    for axis in axes:
        if axis not in fixed and axis not in ranges:
            raise ArgumentError(
                f"the {graph} graph has an axis {axis!r} that engines cannot have; leave it out with --graph."
            )
    static = next((axis for axis in axes if axis in fixed), None)
    for sizes in [{}] if static is None else [{static: size} for size in fixed[static]]:
        values = {axis: (size, size, size) for axis, size in sizes.items()} | dict(ranges)
        # Boxes and masks are many in one image; their graphs are small, and have no weights.
        batches = [ranges[Axis.BATCH]] if {Axis.BOXES, Axis.MASKS} & set(axes) else batch_parts(ranges[Axis.BATCH])
        parts = [_profiles(entry.inputs, {**values, Axis.BATCH: batch}) for batch in batches]
        yield EngineSpec(graph, first, entry.file, sizes, _profiles(entry.inputs, values), parts)


def batch_parts(batch: Range) -> list[Range]:
    """Profiles of a range of batches: one of a single image or text, those up to the usual batch, and the rest."""
    smallest, usual, largest = batch
    alone: list[Range] = [(1, 1, 1)] if smallest == 1 else []
    start = max(smallest, 2) if alone else smallest
    usual_part: list[Range] = [(start, usual, usual)] if start <= usual else []
    return alone + usual_part + ([(usual + 1, largest, largest)] if usual < largest else [])


def _profiles(inputs: Sequence[TensorSpec], values: Mapping[str, Range]) -> dict[str, Profile]:
    return {spec.name: _profile(spec, values) for spec in inputs}


def _profile(spec: TensorSpec, values: Mapping[str, Range]) -> Profile:
    smallest, usual, largest = (
        tuple(axis if isinstance(axis, int) else values[axis][index] for axis in spec.shape) for index in range(3)
    )
    return Profile(smallest, usual, largest)


def _check_known(kind: str, name: str, known: Mapping[str, object] | Sequence[str]) -> None:
    if name not in known:
        raise ArgumentError(f"this bundle has no {kind} {name!r}; choose from {', '.join(known)}.")


def _buckets(manifest: Manifest, asked: Sequence[int] | None) -> Sequence[int]:
    """Numbers of patches, ascending. Beside the buckets only larger numbers serve anybody: those of dense maps."""
    known, most = manifest.image.buckets, manifest.image.max_num_patches
    if asked is None:
        return known
    if not asked:
        raise ArgumentError(f"no bucket was asked for; choose from {_listed(known)}.")
    for bucket in asked:
        if bucket not in known and not known[-1] < bucket <= most:
            larger = (
                f", or for dense maps a number of patches from {known[-1] + 1} to {most}" if most > known[-1] else ""
            )
            raise ArgumentError(
                f"bucket {bucket} is none of this model's ({_listed(known)}); choose from them{larger}."
            )
    return sorted(set(asked))


def _text_lengths(manifest: Manifest, asked: Sequence[int] | None) -> Sequence[int]:
    known = sorted({walk_type.length for walk_type in manifest.text.walk_types.values()})
    if asked is None:
        return known
    if not asked:
        raise ArgumentError(f"no text length was asked for; choose from {_listed(known)}.")
    for length in asked:
        if length not in known:
            raise ArgumentError(f"text length {length} is none of this model's; choose from {_listed(known)}.")
    return sorted(set(asked))


def _range(axis: str, values: Range) -> Range:
    if len(values) != 3 or not 1 <= values[0] <= values[1] <= values[2] <= _LARGEST_RANGE:
        raise ArgumentError(
            f"--{axis} is {_listed(values)}; give the smallest, the most usual and the largest number, ascending, "
            f"from 1 to {_LARGEST_RANGE}."
        )
    return values


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
