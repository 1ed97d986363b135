"""A graph of a bundle as TensorRT's parser takes it: sizes fixed where an engine fixes them, functions inlined."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx.inliner
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from fgclip_rt.errors import EngineError


def parser_input(path: Path, fixed: Mapping[str, int]) -> bytes:
    """The ONNX file at ``path`` with the axes in ``fixed`` of one size, serialised; its weights stay where they are.

    The attention nodes are replaced by their definition in standard operators. TensorRT-RTX's parser knows the operator
    by name, and refuses the definition's heads, whose keys and values differ in width.

    Args:
        path: of the graph.
        fixed: size by the name of the axis.
    """
    model = onnx.inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in fixed:
                axis.dim_value = fixed[axis.dim_param]
    # What the exporter noted of the values in between holds for the sizes that were free.
    del model.graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised


def weight_files(path: Path) -> list[str]:
    """Names of the files, beside the ONNX file at ``path``, that its weights lie in.

    Raises:
        EngineError: it is no ONNX file.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own kinds
        raise EngineError(f"{path} is no ONNX graph ({error}); export the bundle again.") from None
    return sorted({ExternalDataInfo(tensor).location for tensor in graph.initializer if uses_external_data(tensor)})
