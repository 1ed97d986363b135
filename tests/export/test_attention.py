"""Attention nodes as the CUDA provider of onnxruntime takes them, and the numbers that they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from fgclip_rt.export.graphs.attention import HIDDEN, multi_head_attention
from fgclip_rt.export.graphs.trace import GraphSource, trace

HEADS, BATCH, QUERIES, KEYS = 3, 2, 4, 7


class KeyBiased(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor) -> Tensor:
        return multi_head_attention(query, key, value, HEADS, key_bias=key_bias)


def random_inputs(width: int) -> dict[str, Tensor]:
    """Queries, keys and values of heads of this width; the second row hides all keys but three."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(BATCH, length, HEADS * width) for length in (QUERIES, KEYS, KEYS))
    hidden = torch.arange(KEYS) >= torch.tensor([[KEYS], [3]])
    return {"query": query, "key": key, "value": value, "key_bias": torch.where(hidden, HIDDEN, 0.0)}


def traced(inputs: dict[str, Tensor]) -> onnx.ModelProto:
    """The attention as a graph whose outputs are also the queries, keys and values that its node reads."""
    dynamic = {name: {0: "batch"} for name in inputs}
    outputs = {"mixed": ("batch", QUERIES, inputs["value"].shape[2])}
    model = ir.to_proto(trace(GraphSource(KeyBiased(), inputs, dynamic, outputs)))
    [node] = [node for node in model.graph.node if node.op_type == "MultiHeadAttention"]
    names = [name for name in node.input if name not in inputs]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return model


def run(inputs: dict[str, Tensor]) -> list[np.ndarray[Any, Any]]:
    session = ort.InferenceSession(traced(inputs).SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


@pytest.mark.parametrize("width", [8, 64, 72])
def test_heads_that_hide_keys_keep_a_multiple_of_eight(width: int) -> None:
    """The CUDA provider's fused kernels take no other: with one more channel it wrote all scores to memory."""
    _, *wide = run(random_inputs(width))
    assert [x.shape[2] for x in wide] == [HEADS * (width + 8)] * 2


@pytest.mark.parametrize("width", [8, 12])
def test_hidden_keys_have_no_weight_and_the_others_their_own(width: int) -> None:
    inputs = random_inputs(width)
    mixed, *_ = run(inputs)
    np.testing.assert_allclose(mixed, KeyBiased()(**inputs).numpy(), atol=1e-6)
    kept = {name: inputs[name][1:, :3] for name in ("key", "value", "key_bias")}
    alone = KeyBiased()(inputs["query"][1:], **kept)
    np.testing.assert_allclose(mixed[1:], alone.numpy(), atol=1e-6)
