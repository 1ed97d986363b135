"""The precisions that a bundle can hold: their types, and the limits that they must keep."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fgclip_rt.manifest import FP32, Limits

from .layers import Layer
from .lower import FLOAT, QUANTISED


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        name: the name that users give.
        linear: type of the linear layers.
        other: type of attention, of tables of vectors, and of a linear layer that loses too much in ``linear``.
        limits: the largest distance from the reference that its graphs may have.
    """

    name: str
    linear: ir.DataType
    other: ir.DataType
    limits: Limits

    @property
    def is_quantised(self) -> bool:
        """Whether ranges of activations must be known."""
        return self.linear in QUANTISED

    def type_of(self, layer: Layer) -> ir.DataType:
        """The type that a layer gets at first."""
        return self.linear if layer.kind == "linear" else self.other

    @property
    def residual(self) -> ir.DataType:
        """The type of the residual stream where it stays small; in bfloat16 it would lose too much at every block."""
        return ir.DataType.FLOAT16 if self.other == ir.DataType.FLOAT16 else FLOAT

    def next_above(self, dtype: ir.DataType) -> ir.DataType:
        """The next higher type, for a layer that loses too much in ``dtype``."""
        return self.other if dtype in QUANTISED else FLOAT


def _floor(cosine: float, dense_share: float = 1.0) -> Limits:
    """Limits of the direction alone; ``dense_share`` of the vectors of a dense map must keep them."""
    return Limits(max_error=None, min_cosine=cosine, dense_share=dense_share)


#: Precisions by name, in the order in which a bundle lists them. A dense map has hundreds of vectors, and the model
#: itself is undecided on some. With coarse steps, one in twenty may fall below the floor.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision(FP32, FLOAT, FLOAT, Limits(max_error=2e-5, min_cosine=0.999999, dense_share=1.0)),
        Precision("fp16", ir.DataType.FLOAT16, ir.DataType.FLOAT16, _floor(0.9995)),
        Precision("bf16", ir.DataType.BFLOAT16, ir.DataType.BFLOAT16, _floor(0.995, dense_share=0.95)),
        Precision("int8", ir.DataType.INT8, ir.DataType.FLOAT16, _floor(0.99, dense_share=0.95)),
        Precision("fp8", ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT16, _floor(0.99, dense_share=0.95)),
    )
}
