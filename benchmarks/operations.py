"""Number of multiplications and additions of a graph, counted in onnxruntime's profile of a run."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import BenchmarkError
from fgclip_rt.graphs import feed

from .inputs import make_inputs
from .task import Case, Graph

#: Operators that are one matrix product.
_PRODUCTS = {"MatMul", "FusedMatMul", "Gemm"}

#: Lengths that a graph is run with. Other lengths are interpolated, because the number grows with the length's square.
_LENGTHS = (64, 128, 192)


class OperationCounter:
    """Counts operations of a bundle's graphs, each length of a graph once.

    Operations are those of the matrix products, two for each multiplication and its addition. They are counted in the
    float32 graph, or in the bundle's first precision if it has no float32. Products of integers are not counted.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._counts: dict[tuple[Graph, int], int] = {}

    def count(self, case: Case) -> int:
        """Operations of ``case``.

        Raises:
            BenchmarkError: the disk is too full for onnxruntime's profile.
        """
        # A model that does not take these lengths is run with the case's own.
        free = case.graph != "text" and all(length in self._bundle.manifest.image.lengths for length in _LENGTHS)
        if not free or case.length in _LENGTHS:
            return case.batch * self._count_each(case.graph, [case.length])[0]
        # Lagrange's interpolation polynomial through the three counts.
        total = 0.0
        for length, count in zip(_LENGTHS, self._count_each(case.graph, _LENGTHS), strict=True):
            others = [other for other in _LENGTHS if other != length]
            total += count * math.prod((case.length - other) / (length - other) for other in others)
        return case.batch * round(total)

    def _count_each(self, graph: Graph, lengths: Sequence[int]) -> list[int]:
        missing = [length for length in lengths if (graph, length) not in self._counts]
        if missing:
            counts = _count(self._bundle, graph, missing)
            self._counts |= {(graph, length): count for length, count in counts.items()}
        return [self._counts[graph, length] for length in lengths]


def _count(bundle: Bundle, graph: Graph, lengths: Sequence[int]) -> dict[int, int]:
    """Operations for a batch of one, by length."""
    files = bundle.manifest.graphs[graph]
    precision = "fp32" if "fp32" in files else next(iter(files))
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            str(bundle.file(files[precision].file)), options, providers=["CPUExecutionProvider"]
        )
        for length in lengths:
            session.run(None, feed(make_inputs(bundle, Case(graph, length)), files[precision]))
        try:
            events = json.loads(Path(session.end_profiling()).read_text())
        except ValueError:
            # onnxruntime raises no error if it cannot write its profile.
            raise BenchmarkError(
                f"onnxruntime's list of operations is cut off; free space in {tempfile.gettempdir()}, or let TMPDIR "
                "name a folder on another disk."
            ) from None
    ends = sorted(event["ts"] + event["dur"] for event in events if event["name"] == "model_run")
    counts = dict.fromkeys(lengths, 0)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            run = next(index for index, end in enumerate(ends) if event["ts"] <= end)
            counts[lengths[run]] += _operations(event["args"])
    return counts


def _operations(node: Mapping[str, Any]) -> int:
    """Operations of one node, from the shapes of its inputs and outputs. A packed input is not listed there."""
    inputs, outputs = _shapes(node["input_type_shape"]), _shapes(node["output_type_shape"])
    if node["op_name"] in _PRODUCTS:
        return 2 * math.prod(outputs[0]) * inputs[0][-1]
    if node["op_name"] == "MultiHeadAttention":
        query, key, value = inputs[:3]
        return 2 * query[0] * query[1] * key[1] * (query[2] + value[2])
    return 0


def _shapes(entries: Any) -> list[list[int]]:
    return [shape for entry in entries for shape in entry.values()]
