"""The manifest of a bundle: the content of ``manifest.json``, decoded strictly.

An unknown key, a missing key or a value of the wrong type is an error that names its place. The format is specified
in ``docs/bundle/``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

FORMAT: Literal["fgclip-rt-bundle"] = "fgclip-rt-bundle"
#: The version that this package writes, and the only one that it reads.
FORMAT_VERSION: Literal[2] = 2

#: The precision of the reference. Every other precision is made from it and compared with it.
FP32 = "fp32"


#: Bounds of what a bundle may say. They lie far above all models, and low enough that no number of a damaged manifest
#: fills the memory or overflows a tensor's type.
MOST_PATCHES = 2**16
MOST_TOKENS = 2**15
MOST_PIXELS = 2**15
MOST_AREA = 2**28
MOST_WIDTH = 2**20
_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1
#: exp(88) is the largest power of e, to a whole number, that float32 holds.
_MOST_LOGIT_SCALE, _MOST_LOGIT_BIAS = 88.0, 1e6

Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_INT64_MAX)]
Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_INT32_MAX)]
PatchCount: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=MOST_PATCHES)]
TokenCount: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=MOST_TOKENS)]
PixelCount: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=MOST_PIXELS)]
Width: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=MOST_WIDTH)]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Cosine: TypeAlias = Annotated[float, msgspec.Meta(ge=-1, le=1)]
Distance: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all parts: immutable, and an unknown key is an error."""


class ModelInfo(Strict, frozen=True):
    """Identity of the model.

    Attributes:
        name: name in the registry, or of the checkpoint folder.
        family: architecture.
        source: Hub id, model or folder name that the weights came from; None for random weights.
        revision: Hub revision (a commit); None if there is none.
        weights: ``released`` from the Hub, ``shipped`` with fgclip-rt, ``local`` from a folder, ``random`` for
            benchmarks only.
        checkpoint_sha256: digest over the checkpoint's weight files, in their order; None for random weights.
    """

    name: str
    family: str
    source: str | None
    revision: str | None
    weights: Literal["released", "shipped", "local", "random"]
    checkpoint_sha256: str | None


class Score(Strict, frozen=True):
    """logits = exp(logit_scale) · cosine + logit_bias, then ``activation``."""

    activation: Literal["sigmoid", "softmax"]
    logit_scale: Annotated[float, msgspec.Meta(ge=-_MOST_LOGIT_SCALE, le=_MOST_LOGIT_SCALE)]
    logit_bias: Annotated[float, msgspec.Meta(ge=-_MOST_LOGIT_BIAS, le=_MOST_LOGIT_BIAS)]


class NaflexSpec(Strict, frozen=True, tag_field="kind", tag="naflex"):
    """Resize to a grid of patches that fills a bucket, keeping the aspect ratio.

    Attributes:
        patch_size: side of a patch in pixels.
        channels: channels of a pixel, RGB.
        resample: Pillow's name of the filter.
        buckets: patch counts, ascending; an image takes the first that holds its own number of whole patches.
        max_num_patches: the largest patch count that can be asked for.
        exif_transpose: whether the reference turns image files upright by their EXIF orientation.
    """

    patch_size: PixelCount
    channels: PixelCount
    resample: Literal["bilinear"]
    buckets: Annotated[tuple[PatchCount, ...], msgspec.Meta(min_length=1)]
    max_num_patches: PatchCount
    exif_transpose: bool

    @property
    def lengths(self) -> range:
        """The patch counts that can be asked for."""
        return range(1, self.max_num_patches + 1)

    def __str__(self) -> str:
        buckets = ", ".join(map(str, self.buckets))
        turned = ", files turned upright" if self.exif_transpose else ""
        return f"naflex, patches of {self.patch_size} px, buckets {buckets}, up to {self.max_num_patches:,}{turned}"


class SquareSpec(Strict, frozen=True, tag_field="kind", tag="square"):
    """Resize to a square of one size, whatever the aspect ratio.

    Attributes:
        patch_size: side of a patch in pixels.
        channels: channels of a pixel, RGB.
        resample: Pillow's name of the filter.
        image_size: side of the square in pixels, a multiple of ``patch_size``.
        exif_transpose: whether the reference turns image files upright by their EXIF orientation.
    """

    patch_size: PixelCount
    channels: PixelCount
    resample: Literal["bilinear", "bicubic"]
    image_size: PixelCount
    exif_transpose: bool

    @property
    def buckets(self) -> tuple[int, ...]:
        """The only patch count."""
        return (self.max_num_patches,)

    @property
    def max_num_patches(self) -> int:
        """Number of patches of an image."""
        side: int = self.image_size // self.patch_size
        return side**2

    @property
    def lengths(self) -> range:
        """The patch counts that can be asked for: one."""
        return range(self.max_num_patches, self.max_num_patches + 1)

    def __str__(self) -> str:
        return (
            f"square, {self.image_size}×{self.image_size} px, {self.resample}, "
            f"{self.max_num_patches} patches of {self.patch_size} px"
            f"{', files turned upright' if self.exif_transpose else ''}"
        )


#: Preparation of images.
ImageSpec: TypeAlias = NaflexSpec | SquareSpec


#: Type that a box's shares of the image are rounded to, before they are multiplied by the grid.
BoxShares: TypeAlias = Literal["float64", "float32"]


class WalkTypeSpec(Strict, frozen=True):
    """``index`` is the text graph's ``walk_type`` input; ``length`` is the number of tokens, padding included."""

    index: Index
    length: TokenCount


class TextSpec(Strict, frozen=True):
    """Tokenisation.

    Attributes:
        tokenizer: file of the tokenizer, in the format of Hugging Face's ``tokenizers``.
        lowercase: whether the text is lower-cased first.
        pad_token_id: id that fills a text up to its length.
        attention_mask: whether the text graph takes an ``attention_mask``.
        walk_types: by name.
    """

    tokenizer: str
    lowercase: bool
    pad_token_id: Index
    attention_mask: bool
    walk_types: dict[str, WalkTypeSpec]


class Axis:
    """Names of the graphs' dynamic axes, as they stand in the shapes of :class:`TensorSpec`."""

    BATCH: Final = "batch"
    PATCHES: Final = "patches"
    TOKENS: Final = "tokens"
    BOXES: Final = "boxes"
    MASKS: Final = "masks"


class KeyBias:
    """Names of the ONNX metadata that record how a graph's attention nodes hide keys.

    Attributes:
        COUNT: on the model, the number of attention nodes that hide keys; every traced graph has it.
        QUERIES: on such a node, the name of its queries [B, Q, heads, c].
        KEYS: on such a node, the name of its keys [B, N, heads, c].
        BIAS: on such a node, the name of the values that are added to the scores of each key, float [B, N].
    """

    COUNT: Final = "fgclip_rt.key_biases"
    QUERIES: Final = "fgclip_rt.queries"
    KEYS: Final = "fgclip_rt.keys"
    BIAS: Final = "fgclip_rt.key_bias"


class TensorSpec(Strict, frozen=True):
    """An input or output of a graph; a named axis is dynamic, and its name is one of :class:`Axis`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphFile(Strict, frozen=True):
    """One graph in one precision."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Limits(Strict, frozen=True):
    """Limits of parity.

    Attributes:
        max_error: largest absolute difference, as a share of the reference's largest absolute value; None if it is
            only reported.
        min_cosine: smallest cosine between a vector and the reference's.
        dense_share: share of the vectors of dense maps that must keep ``min_cosine``; all other vectors must.
    """

    max_error: Distance | None
    min_cosine: Cosine
    dense_share: Share


class FromExact(Strict, frozen=True):
    """Distances from the reference in float64, of vectors that miss the fixed limits because float32 itself does.

    Attributes:
        error: largest absolute difference of the graph's vectors, as a share of the largest absolute value.
        min_cosine: smallest cosine of the graph's vectors.
        reference_error: as ``error``, of the reference in float32.
        reference_min_cosine: as ``min_cosine``, of the reference in float32.
    """

    error: float
    min_cosine: float
    reference_error: float
    reference_min_cosine: float


class ParityRow(Strict, frozen=True):
    """One comparison with the reference.

    Attributes:
        graph: the graph, or a step around it, such as ``tokens`` or ``logits``.
        case: the image, bucket or walk type.
        count: number of vectors; for whole numbers (tokens, patches), number of rows.
        max_error: as in :class:`Limits`; for whole numbers, the share that differs.
        max_difference: the largest absolute difference itself.
        min_cosine: as in :class:`Limits`.
        mean_cosine: mean of the same cosines.
        within: share of the cosines that reach the limit.
        logit_shift: largest absolute difference of the vectors' logits with the reference's vectors of the other kind
            (texts for images, images for texts); None if there are none.
        flips: number of vectors whose nearest vector of the other kind changed; None if there are none.
        from_exact: distances from the reference in float64, which decided; None if the limits alone did.
        passed: whether the vectors kept the limits, or are as near to the exact ones as float32 allows.
    """

    graph: str
    case: str
    count: Natural
    max_error: float
    max_difference: float
    min_cosine: float
    mean_cosine: float
    within: float
    logit_shift: float | None
    flips: Natural | None
    from_exact: FromExact | None
    passed: bool


class Parity(Strict, frozen=True):
    """The recorded probe, and its measurements at export by precision.

    Attributes:
        probe: file of the probe's inputs and the reference's results.
        exact_probe: file of the same with the results of the reference in float64; None if fp32 kept its limits.
        limits: by precision.
        measured: by precision.
    """

    probe: str
    exact_probe: str | None
    limits: dict[str, Limits]
    measured: dict[str, tuple[ParityRow, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        """The files that hold the probe."""
        return (self.probe,) if self.exact_probe is None else (self.probe, self.exact_probe)


class Calibration(Strict, frozen=True):
    """Data that the ranges of quantised layers were measured on.

    Attributes:
        method: choice of a range from the observed values.
        images: number of images measured.
        texts: number of texts measured.
        held_out_images: number of images held out, on which the outcome was judged.
        held_out_texts: number of texts held out.
        sha256: digest over the digests of the images and the texts.
    """

    method: str
    images: Natural
    texts: Natural
    held_out_images: Natural
    held_out_texts: Natural
    sha256: str


class Span(Strict, frozen=True):
    """Consecutive blocks of one tower, by name, such as ``vision.blocks.0`` to ``vision.blocks.11``."""

    first: str
    last: str


class Lowering(Strict, frozen=True):
    """Changes to the fp32 graphs that make the graphs of a lower precision.

    Attributes:
        linear: type of the linear layers, such as ``float16`` or ``int8``.
        other: type of the attention's products and of the token table.
        moved: layers that were put back to a higher type to keep the limits, with that type.
        residual: spans of blocks whose residual stream is in float16; it is float32 elsewhere.
        smoothed: number of layers whose input channels were rescaled.
        calibration: data of the measured ranges; None if no ranges were measured.
    """

    linear: str
    other: str
    moved: dict[str, str]
    residual: tuple[Span, ...]
    smoothed: Natural
    calibration: Calibration | None


class FileInfo(Strict, frozen=True):
    """Size in bytes and digest of one file."""

    size: Natural
    sha256: Sha256


class Manifest(Strict, frozen=True):
    """The whole ``manifest.json``.

    ``lowering`` is by precision, and fp32 has none. ``box_shares`` is None if the model has no regions.
    """

    format: Literal["fgclip-rt-bundle"]
    format_version: Literal[2]
    model: ModelInfo
    producer: dict[str, str]
    embedding_size: Width
    score: Score
    image: ImageSpec
    text: TextSpec
    box_shares: BoxShares | None
    graphs: dict[str, dict[str, GraphFile]]
    lowering: dict[str, Lowering]
    parity: Parity
    files: dict[str, FileInfo]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that every graph has, in the order of the file."""
        first, *others = self.graphs.values()
        return tuple(precision for precision in first if all(precision in graph for graph in others))

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(msgspec.to_builtins(self), indent=2, ensure_ascii=False) + "\n"

    def to_builtins(self) -> dict[str, Any]:
        """The same as dictionaries, tuples and plain values."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result
