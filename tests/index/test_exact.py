"""Cosines with all rows, and the largest of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fgclip_rt.index import exact
from fgclip_rt.scores import l2_normalize


def unit_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return l2_normalize(vectors).astype(np.float16)


# One row, a block less one row, a block, and blocks with a rest.
@pytest.mark.parametrize("count", [1, exact._BLOCK - 1, exact._BLOCK, 2 * exact._BLOCK + 3])
@pytest.mark.parametrize("queries", [1, 3])
def test_cosines_are_those_of_numpy(count: int, queries: int) -> None:
    rows = unit_rows(count, 160)
    wanted = l2_normalize(np.random.default_rng(1).standard_normal((queries, 160), np.float32))
    expected = rows.astype(np.float64) @ wanted.astype(np.float64).T
    assert_allclose(exact.cosines(rows, wanted), expected, atol=1e-6)
    among = np.flatnonzero(np.arange(count) % 3 == 0)
    assert_allclose(exact.cosines(rows, wanted, among), expected[among], atol=1e-6)


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 45))
def test_the_largest_come_first_and_of_equal_ones_the_first(values: list[int], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert exact.largest(np.array(values, np.float32), count).tolist() == expected


def test_the_graph_is_a_cast_and_a_product() -> None:
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["rows"], ["wide"], to=types.FLOAT),
            helper.make_node("MatMul", ["wide", "queries"], ["cosines"]),
        ],
        "cosines",
        [
            helper.make_tensor_value_info("rows", types.FLOAT16, ["n", "d"]),
            helper.make_tensor_value_info("queries", types.FLOAT, ["d", "m"]),
        ],
        [helper.make_tensor_value_info("cosines", types.FLOAT, ["n", "m"])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert made.SerializeToString() == Path(exact.__file__).with_name("cosines.onnx").read_bytes()


def test_no_rows_have_no_cosines() -> None:
    assert_array_equal(exact.cosines(np.zeros((0, 8), np.float16), np.zeros((2, 8), np.float32)), np.zeros((0, 2)))
    assert exact.largest(np.zeros(0, np.float32), 5).tolist() == []
