"""Models as protobuf messages without their weights, for passes that only look at nodes.

A message holds the bytes of a weight that is in memory, so each pass would copy gigabytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx import ModelProto

#: Bytes of the largest initializer in memory that stays in a message: passes read constants such as shapes.
_SMALL = 1024


def without_weights(model: ir.Model) -> tuple[ModelProto, dict[str, ir.TensorProtocol]]:
    """The message of a model whose initializers lie in a file that does not exist, but for small ones; and these."""
    copy = model.clone()
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        # One in a file is left out too, because a message does not tell the file's folder.
        if tensor.nbytes > _SMALL or isinstance(tensor, ir.ExternalTensor):
            weights[name] = tensor
            value.const_value = ir.ExternalTensor(
                "weights", 0, tensor.nbytes, ir.DataType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    return ir.to_proto(copy), weights


def with_weights(proto: ModelProto, weights: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """The model of a message, with the initializers that it was written without."""
    model = ir.from_proto(proto)
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = weights[name]
    return model
