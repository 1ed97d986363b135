"""Operators between float16 layers, in float16 too, where nothing reads their results in float32.

A GPU takes longer to cast a tensor, and to read it in float32, than to add a bias or to normalise it. On an H100 the
casts were a third of the base model's time in onnxruntime. The layers' own results are rounded already, so that a bias,
an activation or a norm between two of them adds no range that float16 lacks. bfloat16 has too few digits to be rounded
twice as often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

HALF = ir.DataType.FLOAT16

#: Operators that compute, and operators that only move numbers; with the number of their inputs of the output's type.
_COMPUTING = {"Add": 2, "Mul": 2, "Gelu": 1, "Sigmoid": 1, "LayerNormalization": 3}
_MOVING = {"Concat": None, "Reshape": 1, "Expand": 1, "Unsqueeze": 1, "Transpose": 1, "Slice": 1}
_SIZES = {**_COMPUTING, **_MOVING}


def join(graph: ir.Graph, raised: Mapping[ir.Value, ir.Value], rounded: Callable[[ir.Value], ir.Value]) -> None:
    """Compute in float16 all operators that stand between layers of that type.

    Args:
        graph: a graph whose layers stand between casts already; it is changed.
        raised: the float16 value of each that was cast to float32.
        rounded: gives the float16 initializer of a float32 one.
    """
    for wide, half in raised.items():
        for user, index in wide.uses():
            if user.op_type == "Shape":  # which is the same in any type
                user.replace_input_with(index, half)
    joined = _between(graph, raised)
    lowered: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node in joined]:
        for index, value in _numbers(node):
            if value.producer() in joined:
                continue
            if value.const_value is not None:
                half = rounded(value)
            elif value in raised:
                half = raised[value]
            else:
                half = lowered.get(value) or _cast_after(graph, value)
                lowered[value] = half
            node.replace_input_with(index, half)
        (output,) = node.outputs
        output.type = ir.TensorType(HALF)
        for user, _ in output.uses():
            if _is_cast(user):
                ir.convenience.replace_all_uses_with(user.outputs[0], output)


def _between(graph: ir.Graph, raised: Mapping[ir.Value, ir.Value]) -> set[ir.Node]:
    """The operators whose results only float16 layers read, and, if they compute, whose inputs these wrote."""
    joined = {node for node in graph if node.domain == "" and node.op_type in _SIZES}
    while True:
        left = {node for node in joined if not (_is_read_in_half(node, joined) and _is_fed(node, raised, joined))}
        if not left:
            return joined
        joined -= left


def _is_read_in_half(node: ir.Node, joined: set[ir.Node]) -> bool:
    output = node.outputs[0]
    return not output.is_graph_output() and all(
        user.op_type == "Shape" or _is_cast(user) or (user in joined and index in dict(_numbers(user)))
        for user, index in output.uses()
    )


def _is_fed(node: ir.Node, raised: Mapping[ir.Value, ir.Value], joined: set[ir.Node]) -> bool:
    numbers = [value for _, value in _numbers(node)]
    halves = [value.const_value is not None or value in raised or value.producer() in joined for value in numbers]
    if node.op_type == "Mul" and not any(value.const_value is not None for value in numbers):
        # A product of two results may leave float16's range; that with a sigmoid cannot.
        return all(halves) and any(_is_sigmoid(value.producer()) for value in numbers)
    # A cast commutes with what only moves numbers.
    return all(halves) if node.op_type in _COMPUTING else any(halves)


def _numbers(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The inputs of a node that have its output's type, by their place."""
    for index, value in enumerate(node.inputs[: _SIZES[node.op_type]]):
        if value is not None:
            yield index, value


def _is_sigmoid(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Sigmoid"


def _is_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() == HALF


def _cast_after(graph: ir.Graph, value: ir.Value) -> ir.Value:
    cast = ir.node("Cast", [value], attributes={"to": HALF})
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, cast)
    return cast.outputs[0]
