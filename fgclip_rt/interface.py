"""The interface of a bundle's graphs: names, types and shapes of their tensors, as this version runs them.

A manifest describes its graphs' tensors for readers in any language. This module says which descriptions fit the rest
of the manifest, so that a graph is never given inputs of another shape than its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from .errors import BundleError
from .manifest import Axis, GraphFile, Manifest, SquareSpec, TensorSpec

#: Names of inputs.
PATCHES: Final = "patches"
SPATIAL_SHAPES: Final = "spatial_shapes"
INPUT_IDS: Final = "input_ids"
WALK_TYPE: Final = "walk_type"
ATTENTION_MASK: Final = "attention_mask"
BOXES: Final = "boxes"
BOX_IMAGES: Final = "box_images"
MASKS: Final = "masks"
MASK_IMAGES: Final = "mask_images"

#: Names of outputs. Features are the reference's own; embeds have length one. Two graphs also take dense features.
IMAGE_FEATURES: Final = "image_features"
IMAGE_EMBEDS: Final = "image_embeds"
DENSE_FEATURES: Final = "dense_features"
TEXT_FEATURES: Final = "text_features"
TEXT_EMBEDS: Final = "text_embeds"
REGION_FEATURES: Final = "region_features"
REGION_EMBEDS: Final = "region_embeds"
MASK_FEATURES: Final = "mask_features"
MASK_EMBEDS: Final = "mask_embeds"

#: Graphs that every model has.
REQUIRED: Final = ("vision", "text")
DENSE: Final = "dense"

#: Graphs that take the dense features of another.
FROM_DENSE: Final = ("region", "mask")

Tensors: TypeAlias = dict[str, TensorSpec]


def tensors(manifest: Manifest, graph: str) -> tuple[Tensors, Tensors]:
    """The inputs and outputs of ``graph`` in a bundle of this manifest, by name.

    ``walk_type`` is among the inputs of ``text``, and some models' graphs lack it.

    Raises:
        KeyError: there is no such graph in any bundle.
    """
    image, width = manifest.image, manifest.embedding_size
    grids = _int32(SPATIAL_SHAPES, Axis.BATCH, 2)
    length: int | str = image.max_num_patches
    of_images, of_texts = [], [_int32(INPUT_IDS, Axis.BATCH, Axis.TOKENS), _int32(WALK_TYPE, Axis.BATCH)]
    if not isinstance(image, SquareSpec):
        length, of_images = Axis.PATCHES, [grids]
    if manifest.text.attention_mask:
        of_texts.append(_int32(ATTENTION_MASK, Axis.BATCH, Axis.TOKENS))
    patches = _uint8(PATCHES, Axis.BATCH, length, image.patch_size**2 * image.channels)
    # One graph of regions serves every grid, whatever the vision tower takes.
    dense = _float32(DENSE_FEATURES, Axis.BATCH, Axis.PATCHES, width)
    images = [_float32(name, Axis.BATCH, width) for name in (IMAGE_FEATURES, IMAGE_EMBEDS)]
    inputs, outputs = {
        "vision": ([patches, *of_images], images),
        "dense": ([patches, *of_images], [*images, _float32(DENSE_FEATURES, Axis.BATCH, length, width)]),
        "text": (of_texts, [_float32(name, Axis.BATCH, width) for name in (TEXT_FEATURES, TEXT_EMBEDS)]),
        "region": (
            [
                dense,
                grids,
                _float32(BOXES, Axis.BOXES, 4),
                _int32(BOX_IMAGES, Axis.BOXES),
            ],
            [_float32(name, Axis.BOXES, width) for name in (REGION_FEATURES, REGION_EMBEDS)],
        ),
        "mask": (
            [dense, _float32(MASKS, Axis.MASKS, Axis.PATCHES), _int32(MASK_IMAGES, Axis.MASKS)],
            [_float32(name, Axis.MASKS, width) for name in (MASK_FEATURES, MASK_EMBEDS)],
        ),
    }[graph]
    return {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}


def check(manifest: Manifest, where: str) -> None:
    """Make sure that the graphs of a manifest have this version's interface, and that it fits the rest.

    Args:
        manifest: the manifest.
        where: its path, for messages.

    Raises:
        BundleError: a graph is unknown or missing, or has other inputs or outputs.
    """
    known = (*REQUIRED, DENSE, *FROM_DENSE)
    for graph in manifest.graphs:
        if graph not in known:
            raise BundleError(
                f"{where} lists the graph {graph!r}, which is none of {', '.join(known)}; export the bundle again."
            )
    needed = (*REQUIRED, *(DENSE for graph in FROM_DENSE if graph in manifest.graphs))
    for graph in needed:
        if graph not in manifest.graphs:
            raise BundleError(f"{where} lists no {graph} graph; export the bundle again.")
    for graph, files in manifest.graphs.items():
        for precision, file in files.items():
            if (misfit := next(_misfits(manifest, graph, file), None)) is not None:
                raise BundleError(
                    f"{where} gives the {graph} graph in {precision!r} {misfit}; export the bundle again."
                )


def describe(spec: TensorSpec) -> str:
    """A tensor's name, type and shape, as they stand in tables and messages."""
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _type(spec: TensorSpec) -> str:
    """Type and shape in quotes, because a manifest may hold any characters."""
    return f"{spec.dtype!r} {list(spec.shape)}"


def _uint8(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "uint8", shape)


def _int32(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "int32", shape)


def _float32(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def _misfits(manifest: Manifest, graph: str, file: GraphFile) -> Iterator[str]:
    """How the inputs and outputs of a graph's file differ from this version's, each as part of a sentence."""
    inputs, outputs = tensors(manifest, graph)
    kinds = {spec.index for spec in manifest.text.walk_types.values()}
    if len(kinds) == 1 and WALK_TYPE not in {spec.name for spec in file.inputs}:
        inputs.pop(WALK_TYPE, None)
    for role, given, expected in (("input", file.inputs, inputs), ("output", file.outputs, outputs)):
        names = [spec.name for spec in given]
        for spec in given:
            if spec.name not in expected:
                yield f"the unknown {role} {spec.name!r}"
            elif spec != expected[spec.name]:
                yield f"the {role} {spec.name} {_type(spec)}, not {_type(expected[spec.name])}"
            elif names.count(spec.name) > 1:
                yield f"the {role} {spec.name} twice"
        yield from (f"no {role} {name}" for name in expected if name not in names)
