"""Graphs that are in memory, run in the place of a bundle's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.bundle import Bundle


class GraphBackend(OnnxRuntimeBackend):
    """Runs the given graphs on the CPU, and the bundle's own where none is given."""

    def __init__(self, bundle: Bundle, precision: str, graphs: Mapping[str, ir.Model]) -> None:
        """Prepare to run graphs.

        Args:
            bundle: whose folder holds what the graphs refer to.
            precision: one of the bundle's, for the graphs that are not given.
            graphs: by name.
        """
        super().__init__(bundle, precision, "cpu")
        self._graphs = graphs

    def _create(
        self, graph: str, file: Path, options: ort.SessionOptions, providers: list[Any]
    ) -> ort.InferenceSession:
        if graph not in self._graphs:
            return super()._create(graph, file, options, providers)
        model = self._graphs[graph]
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        if any(value.dtype == ir.DataType.FLOAT8E4M3FN for value in model.graph.initializers.values()):
            # onnxruntime fuses such pairs into a product of integers, which then refuses them.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=providers)
