"""Exact search: cosines with every row of an index, and the largest of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, FloatArray
from ..machine import usable_cores

#: Rows whose cosines are computed at once, of which a core's cache holds the products' inputs.
_BLOCK = 1024

#: One product of float16 rows with float32 queries; onnxruntime converts rows six times as fast as NumPy does.
_GRAPH = Path(__file__).parent / "cosines.onnx"


def cosines(rows: Array, queries: FloatArray, among: Array | None = None) -> FloatArray:
    """Cosines float32 [k, m] of rows with queries, all of length one.

    Args:
        rows: float16 [n, D], in memory or mapped.
        queries: float32 [m, D].
        among: int64 [k], the rows to take; None takes all.
    """
    session = _session()
    count = len(rows) if among is None else len(among)
    found = np.empty((count, len(queries)), np.float32)
    columns = np.ascontiguousarray(queries.T, np.float32)
    for begin in range(0, count, _BLOCK):
        part = slice(begin, begin + _BLOCK)
        block = rows[part] if among is None else rows[among[part]]
        (found[part],) = session.run(None, {"rows": np.ascontiguousarray(block), "queries": columns})
    return found


def largest(values: FloatArray, count: int) -> Array:
    """Indices int64 [k] of the ``count`` largest of ``values`` [n], largest first; of equal ones the first come first.

    k is less than ``count`` if there are fewer values.
    """
    count = min(count, len(values))
    if count == 0:
        return np.zeros(0, np.int64)
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    found = np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])
    ordered: Array = found[np.lexsort((found, -values[found]))]
    return ordered


@cache
def _session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    # A search is over in milliseconds and the next may be hours away.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(_GRAPH), options, providers=["CPUExecutionProvider"])
