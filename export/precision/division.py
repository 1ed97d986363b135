"""A graph in two: the part that an input cannot change, and the rest.

The first runs once for all values of that input. With layers of the last blocks to choose from, that is most of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def divide(model: ir.Model, name: str) -> tuple[ir.Model | None, ir.Model]:
    """Divide a graph whose values have types.

    Args:
        model: the graph.
        name: one of its inputs, of which at least one result depends.

    Returns:
        The part that does not depend on the input, or None if there is none; and the rest, which has all inputs of the
        graph, those results of the first part that it reads, and only the results that depend on the input.
    """
    graph = model.graph
    dependent = {value for value in graph.inputs if value.name == name}
    border: dict[ir.Value, None] = {}
    for node in graph:
        read = list(_read(node))
        if dependent.isdisjoint(read):
            continue
        dependent |= set(node.outputs)
        border |= dict.fromkeys(value for value in read if value not in dependent and value.producer() is not None)
    before = None
    if border:
        before = _part(model, [value for value in graph.inputs if value.name != name], list(border))
    return before, _part(model, [*graph.inputs, *border], [value for value in graph.outputs if value in dependent])


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """The values of a graph that a node reads, by its branches too."""
    for inner in (node, *(inner for part in _branches(node) for inner in ir.traversal.RecursiveGraphIterator(part))):
        yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)


def _branches(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _part(model: ir.Model, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    return ir.Model(ir.convenience.extract(model.graph, inputs, outputs), ir_version=model.ir_version)
