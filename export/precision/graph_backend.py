"""Graphs in memory, run instead of a bundle's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnxruntime as ort

from fgclip_rt.arrays import Array
from fgclip_rt.backends import Result
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend, open_session, run_session
from fgclip_rt.bundle import Bundle
from fgclip_rt.machine import usable_cores

from .emulation import emulate


class GraphBackend:
    """Runs the given graphs on the CPU, and the bundle's own graphs under all other names."""

    device = "cpu"

    def __init__(
        self, bundle: Bundle, precision: str, graphs: Mapping[str, ir.Model], *, as_on_a_gpu: bool = False
    ) -> None:
        """Prepare to run graphs.

        Args:
            bundle: the bundle whose folder holds the weights of the graphs.
            precision: one of the bundle's, for graphs that are not given.
            graphs: graphs to run, by name.
            as_on_a_gpu: round as :func:`fgclip_rt.export.precision.emulation.emulate` does. It takes half a second for
                each graph of a base model, so only those that run are changed.
        """
        self.precision = precision
        self._as_on_a_gpu = as_on_a_gpu
        self._bundle = bundle
        self._others = OnnxRuntimeBackend(bundle, precision, "cpu")
        self._graphs = graphs
        self._sessions: dict[str, ort.InferenceSession] = {}

    def __str__(self) -> str:
        return f"{self._others}, with {', '.join(self._graphs)} from memory"

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """As :meth:`fgclip_rt.backends.Backend.submit`; the result is ready when this returns."""
        if graph not in self._graphs:
            return self._others.submit(graph, inputs, outputs)
        if graph not in self._sessions:
            self._sessions[graph] = self._open(self._graphs[graph])
        return run_session(self._sessions[graph], graph, inputs, outputs)

    def batch_size(self, graph: str, length: int) -> int:
        """The batch size of a backend for the bundle's own graphs."""
        return self._others.batch_size(graph, length)

    def _open(self, model: ir.Model) -> ort.InferenceSession:
        # Without fusions of Q/DQ, which refuse float8, weights are dequantised once and not in every run.
        config = {"session.disable_quant_qdq": "1"}
        content = ir.to_proto(emulate(model) if self._as_on_a_gpu else model).SerializeToString()
        return open_session(content, usable_cores(), weights=self._bundle.path, config=config)
