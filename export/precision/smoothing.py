"""Outlier channels moved from activations into weights, exactly: SmoothQuant (https://arxiv.org/abs/2211.10438).

A few channels of a transformer's activations are far larger than the rest. One quantisation step for all of them leaves
the rest few levels. So a channel is divided by a factor at its producer, and the weights that read it are multiplied by
the same factor. In exact arithmetic, this changes no result. The producer can be a LayerNorm, or the value projection
of an attention, which mixes rows and not channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fgclip_rt.arrays import FloatArray

from .layers import SMOOTHED, Layer, array, find_layers
from .lower import input_scale, quantised_weight, rounded

#: Shares of the outliers' size that go into the weights, from none to all; each site takes the best one.
STRENGTHS = (0.25, 0.5, 0.65, 0.8)
#: Output channels of a weight for which the error is computed, at most.
_CHANNELS = 256
#: A rescaling is kept if it brings the error below this share of the error without it.
_GAIN = 0.8


@dataclass(frozen=True)
class Operand:
    """An initializer as one node reads it; other nodes may read the same one.

    Attributes:
        node: the node that reads it.
        index: its index among the node's inputs.
        name: its name once this node has values of its own.
    """

    node: ir.Node
    index: int
    name: str


@dataclass(frozen=True)
class ScalingSite:
    """Channels that can be rescaled.

    Attributes:
        name: name of the module that computes the channels.
        producers: the weights that compute the channels, along the last axis.
        readers: the only layers that read the channels.
    """

    name: str
    producers: tuple[Operand, ...]
    readers: tuple[Layer, ...]


def find_sites(model: ir.Model, sensitive: Sequence[str]) -> list[ScalingSite]:
    """The scaling sites of a float32 graph.

    Args:
        model: a traced graph.
        sensitive: layers that must not be touched, as for :func:`find_layers`.
    """
    layers = find_layers(model, sensitive)
    linear = {layer.node: layer for layer in layers if layer.kind == "linear"}
    sites = []
    for node in model.graph:
        if node.op_type == "LayerNormalization" and (readers := _readers(node, linear)):
            producers = (Operand(node, 1, f"{node.name}.weight"), Operand(node, 2, f"{node.name}.bias"))
            sites.append(ScalingSite(str(node.name), producers, readers))
    for layer in layers:
        if layer.kind == "attention" and (readers := _readers(layer.node, linear)):
            projection = _projection(layer.activations[2], linear)
            if projection:
                sites.append(ScalingSite(layer.name, projection, readers))
    return sites


def choose_factors(site: ScalingSite, inputs: FloatArray, dtype: ir.DataType) -> FloatArray | None:
    """The factors that let a site's readers be quantised best, or None if they gain too little.

    Args:
        site: a scaling site of a float32 graph.
        inputs: rows [n, in] of the readers' input, with the rows of the largest magnitudes.
        dtype: type to quantise to.

    Returns:
        float32 [in].
    """
    largest = np.abs(inputs).max(axis=0)
    weights = [array(reader.weight) for reader in site.readers]
    heaviest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    used = (largest > 0) & (heaviest > 0)
    # Output channels are quantised each by itself, so some of them tell the error of all.
    sampled = [np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // _CHANNELS)]) for weight in weights]
    pairs = [(weight, product) for weight in sampled if (product := inputs @ weight).any()]
    if not pairs:
        return None

    def error(factors: FloatArray) -> float:
        scaled = inputs / factors
        step = input_scale(dtype, float(np.abs(scaled).max()))
        steps = rounded(scaled / step, dtype).astype(np.float32) * step
        total = 0.0
        for weight, product in pairs:
            quantised, scale = quantised_weight(weight * factors[:, None], dtype)
            approximate = steps @ (quantised.astype(np.float32) * scale)
            total += float(np.square(approximate - product).sum() / np.square(product).sum())
        return total

    candidates = []
    for strength in STRENGTHS:
        factors = np.ones_like(largest)
        factors[used] = largest[used] ** strength / heaviest[used] ** (1 - strength)
        factors[used] /= np.exp(np.log(factors[used]).mean())
        candidates.append(factors)
    errors = [error(factors) for factors in candidates]
    best = int(np.argmin(errors))
    return candidates[best] if errors[best] < _GAIN * error(np.ones_like(largest)) else None


def smooth(model: ir.Model, sensitive: Sequence[str], factors: Mapping[str, FloatArray]) -> ir.Model:
    """A copy of a float32 graph with channels rescaled; it computes the same.

    Args:
        model: a traced graph.
        sensitive: layers that must not be touched, as for :func:`find_layers`.
        factors: factors [in] by the name of the site. Sites that are not named stay.

    Returns:
        The copy. Initializers that changed have :data:`SMOOTHED` at the end of their names.
    """
    model = model.clone()
    changed: dict[Operand, FloatArray] = {}

    def values_of(operand: Operand) -> FloatArray:
        return changed[operand] if operand in changed else array(_value(operand))

    for site in find_sites(model, sensitive):
        if site.name in factors:
            factor = factors[site.name]
            for operand in site.producers:
                changed[operand] = values_of(operand) / factor
            for operand in map(_weight, site.readers):
                changed[operand] = values_of(operand) * factor[:, None]
    for operand, values in changed.items():
        tensor = ir.Tensor(np.ascontiguousarray(values), name=operand.name + SMOOTHED)
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        model.graph.register_initializer(value)
        operand.node.replace_input_with(operand.index, value)
    RemoveUnusedNodesPass()(model)
    return model


def _value(operand: Operand) -> ir.Value:
    value = operand.node.inputs[operand.index]
    assert value is not None
    return value


def _weight(layer: Layer) -> Operand:
    return Operand(layer.node, 1, f"{layer.name}.weight")


def _readers(node: ir.Node, linear: Mapping[ir.Node, Layer]) -> tuple[Layer, ...]:
    """The linear layers that read a node's output, through slices too; none if anything else does."""
    users = list(_users(node.outputs[0]))
    readers = [linear[user] for user in users if user is not None and user in linear]
    return tuple(readers) if len(readers) == len(users) else ()


def _users(value: ir.Value) -> Iterator[ir.Node | None]:
    if value.is_graph_output():
        yield None
    for user, _ in value.uses():
        if user.op_type == "Slice":
            yield from _users(user.outputs[0])
        else:
            yield user


def _projection(value: ir.Value, linear: Mapping[ir.Node, Layer]) -> tuple[Operand, ...]:
    """The weight of the linear layer without a bias that made ``value`` for one reader; empty if there is none."""
    producer = value.producer()
    layer = None if producer is None else linear.get(producer)
    return () if layer is None or len(value.uses()) != 1 else (_weight(layer),)
