"""The precisions that a bundle can hold."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fgclip_rt.manifest import FP32

from .layers import Layer
from .lower import FLOAT, QUANTISED


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        name: what users call it.
        linear: type of the linear layers.
        other: type of attention and of tables of vectors, and of a linear layer that ``linear`` does not suit.
    """

    name: str
    linear: ir.DataType
    other: ir.DataType

    @property
    def is_quantised(self) -> bool:
        """Whether ranges of activations must be known."""
        return self.linear in QUANTISED

    def type_of(self, layer: Layer) -> ir.DataType:
        """The type that a layer is to have."""
        return self.linear if layer.kind == "linear" else self.other

    def next_above(self, dtype: ir.DataType) -> ir.DataType:
        """The type that a layer gets which loses too much in ``dtype``."""
        return self.other if dtype in QUANTISED else FLOAT


#: By name, in the order in which a bundle lists them.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision(FP32, FLOAT, FLOAT),
        Precision("fp16", ir.DataType.FLOAT16, ir.DataType.FLOAT16),
        Precision("bf16", ir.DataType.BFLOAT16, ir.DataType.BFLOAT16),
        Precision("int8", ir.DataType.INT8, ir.DataType.FLOAT16),
        Precision("fp8", ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT16),
    )
}
