"""From proven float32 graphs to a lower precision that keeps its floor, or is refused.

The layers get the precision's types, and the graphs are written and compared with the reference. If they fall below the
floor, the residual stream goes back to float32. If that does not help, as few of the costliest layers as suffice go
back to the next higher type instead. Trials find them: a trial judges only the tower whose layers it changes, and ends
at the first comparison that fails. The graphs that are kept are compared as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from fgclip_rt import parity
from fgclip_rt.arrays import FloatArray
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ParityError
from fgclip_rt.manifest import Limits, Lowering, ParityRow
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe
from fgclip_rt.progress import BeginStage, tracked

from ..bundle.assembly import Assembly
from .calibration import CalibrationData
from .graph_backend import GraphBackend
from .layers import Layer, block_of, find_layers, find_residuals
from .lower import FLOAT, Known, lower
from .observation import Observations, ObservingBackend
from .precisions import Precision
from .residual import calm_blocks, spans
from .search import smallest_set
from .sensitivity import Loss, Sensitivity
from .smoothing import ScalingSite, choose_factors, find_sites, smooth
from .trials import Trials

#: Share of a tower's layers that may go back.
_MOST = 1 / 4

#: Graphs that share layers or read each other's results. A change of a layer affects its tower's graphs and the logits.
_TOWERS: tuple[tuple[str, ...], ...] = (("vision", *parity.PARTS), ("text",))
_WHOLE = (*(graph for tower in _TOWERS for graph in tower), "logits")

#: By graph of a comparison: the graphs whose layers it depends on, unless that is the graph itself.
_DEPENDS_ON = {"region": ("dense",), "mask": ("dense",), "logits": ("vision", "text")}


@dataclass(frozen=True)
class Inputs:
    """Inputs that lower precisions are calibrated and measured on.

    Attributes:
        probe: the recorded inputs, with the reference's results.
        calibration: inputs to calibrate on; None if there are none.
        held_out: inputs that were held out, with the float32 graphs' results; None if there are none.
    """

    probe: Probe
    calibration: CalibrationData | None
    held_out: Probe | None


@dataclass(frozen=True)
class _Float32Graphs:
    """Float32 graphs that a precision is made from.

    Attributes:
        graphs: the graphs, by name.
        layers: layers whose type can be chosen, by graph.
        residuals: sums with the residual stream, by graph.
        ranges: largest magnitude of each linear layer's input, by layer; empty if no layer is quantised.
        smoothed: number of layers with rescaled channels.
        sensitivity: measures the loss from each layer, and keeps it.
    """

    graphs: Mapping[str, ir.Model]
    layers: Mapping[str, Sequence[Layer]]
    residuals: Mapping[str, Sequence[Layer]]
    ranges: Mapping[str, float]
    smoothed: int
    sensitivity: Sensitivity

    @property
    def sums(self) -> list[Layer]:
        """The sums with the residual stream of all graphs; one that graphs share is there for each."""
        return [residual for of_graph in self.residuals.values() for residual in of_graph]


@dataclass
class _Plan:
    """The types of one precision, layer by layer.

    Attributes:
        precision: the precision.
        source: the float32 graphs that it is made from.
        types: type of each layer, by its name.
        narrow: blocks whose residual stream is in the precision's type for it.
        set_aside: blocks that had it, while the plan is tried without.
        moved: types now of the layers that went back, by layer.
    """

    precision: Precision
    source: _Float32Graphs
    types: dict[str, ir.DataType]
    narrow: Sequence[str]
    set_aside: Sequence[str] = ()
    moved: dict[str, ir.DataType] = field(default_factory=dict)

    @property
    def may_widen(self) -> bool:
        """Whether the residual stream goes back to float32 next, before any layer does."""
        return bool(self.narrow) and not self.moved

    def move(self, types: Mapping[str, ir.DataType]) -> None:
        """Give layers that go back their types."""
        self.types |= types
        self.moved |= types

    def all_types(self) -> dict[str, ir.DataType]:
        """Types of the layers and of the sums with the residual stream, by name."""
        sums = [residual.name for residual in self.source.sums if block_of(residual) in self.narrow]
        return self.types | dict.fromkeys(sums, self.precision.residual)


class _Candidate(NamedTuple):
    """A layer that may go back, and the graph in which its loss is measured."""

    layer: str
    graph: str


class Planner:
    """Adds lower precisions to a bundle that holds float32."""

    def __init__(
        self,
        assembly: Assembly,
        graphs: Mapping[str, ir.Model],
        sensitive: Mapping[str, Sequence[str]],
        inputs: Inputs,
        begin: BeginStage,
    ) -> None:
        """Prepare to add precisions.

        Args:
            assembly: a bundle with proven float32 graphs.
            graphs: the float32 graphs by name, as they were written.
            sensitive: names of the layers that always stay in float32, by graph.
            inputs: inputs to calibrate and measure on.
            begin: is told how far the work is.
        """
        self._assembly = assembly
        self._graphs = graphs
        self._sensitive = sensitive
        self._inputs = inputs
        self._begin = begin

    def add(self, precision: Precision, limits: Limits) -> None:
        """Add a precision that keeps ``limits``.

        Raises:
            ParityError: the precision falls below them even with the most layers that may go back, and is removed.
        """
        source = self._eight_bits if precision.is_quantised else self._float32
        layers = [layer for of_graph in source.layers.values() for layer in of_graph]
        narrow = [] if precision.residual == FLOAT else calm_blocks(source.sums, self._peaks)
        plan = _Plan(precision, source, {layer.name: precision.type_of(layer) for layer in layers}, narrow)
        while True:
            rows = self._try(plan, limits)
            failed = [row for row in rows if not row.passed]
            if not failed:
                self._assembly.set_measured(precision.name, rows)
                return
            if not self._step_back(plan, failed, limits):
                self._assembly.remove(precision.name)
                raise ParityError(_refusal(plan, rows, limits), {precision.name: rows}, code="precision_refused")

    def _source(
        self, graphs: Mapping[str, ir.Model], ranges: Mapping[str, float] = MappingProxyType({}), smoothed: int = 0
    ) -> _Float32Graphs:
        """Graphs to make precisions from, which keep the losses that are measured in them."""
        sensitivity = Sensitivity(self._assembly.write_manifest(), graphs, self._inputs.probe, ranges)
        return _Float32Graphs(graphs, self._layers(graphs), self._residuals(graphs), ranges, smoothed, sensitivity)

    def _layers(self, graphs: Mapping[str, ir.Model]) -> dict[str, list[Layer]]:
        return {name: find_layers(model, self._sensitive[name]) for name, model in graphs.items()}

    def _residuals(self, graphs: Mapping[str, ir.Model]) -> dict[str, list[Layer]]:
        return {name: find_residuals(model, self._sensitive[name]) for name, model in graphs.items()}

    @cached_property
    def _float32(self) -> _Float32Graphs:
        """The graphs as they are, for 16-bit precisions."""
        return self._source(self._graphs)

    @cached_property
    def _calibrated(self) -> Observations:
        """The calibration inputs in the float32 graphs."""
        data = self._inputs.calibration
        assert data is not None  # or the export would have been refused
        layers, residuals = self._layers(self._graphs), self._residuals(self._graphs)
        watched = {name: [*layers[name], *residuals[name]] for name in self._graphs}
        rescaled = [reader.name for site in self._sites.values() for reader in site.readers]
        bundle = self._assembly.write_manifest()
        backend = ObservingBackend(bundle, self._graphs, watched, rescaled)
        data.run(Model(bundle, backend), self._begin, "calibrate")
        return backend.observations

    @cached_property
    def _peaks(self) -> dict[str, float]:
        """The largest magnitude in each sum with the residual stream, on the calibration inputs, or on the probe."""
        if self._inputs.calibration is not None:
            return self._calibrated.peaks()
        bundle = self._assembly.write_manifest()
        backend = ObservingBackend(bundle, self._graphs, self._float32.residuals)
        model, probe = Model(bundle, backend), self._inputs.probe
        run = model.dense_features if model.graphs.has("dense") else model.embed_images
        for image in tracked(self._begin, "measure residual stream", probe.images):
            run(image.rgb)
        for walk_type, texts in probe.walk_types.items():
            model.embed_texts(texts.texts, walk_type)
        return backend.observations.peaks()

    @cached_property
    def _eight_bits(self) -> _Float32Graphs:
        """The graphs for 8-bit precisions: outlier channels smoothed, and the ranges of activations found.

        A smoothed graph computes the same, so that its ranges are known without a run. The smoothed weights lie in a
        scratch file from then on.
        """
        rows = self._calibrated.rows()
        by_site: dict[str, FloatArray] = {}
        for site in self._sites.values():
            # Readers of one value saw the same rows; a slice of it is another value.
            inputs = {reader.activations[0]: rows[reader.name] for reader in site.readers}
            best = choose_factors(site, np.concatenate(list(inputs.values())), ir.DataType.INT8)
            if best is not None:
                by_site[site.name] = best
        graphs = {name: smooth(graph, self._sensitive[name], by_site) for name, graph in self._graphs.items()}
        self._assembly.write_scratch("smoothed", graphs)
        by_layer = {reader.name: factors for name, factors in by_site.items() for reader in self._sites[name].readers}
        return self._source(graphs, self._calibrated.ranges(by_layer), len(by_layer))

    @cached_property
    def _sites(self) -> dict[str, ScalingSite]:
        """Scaling sites, by name, that every graph with the same weights has; otherwise the weights would differ."""
        by_graph = {
            name: {site.name: site for site in find_sites(graph, self._sensitive[name])}
            for name, graph in self._graphs.items()
        }
        layers = {name: {layer.name for layer in of_graph} for name, of_graph in self._layers(self._graphs).items()}
        return {
            site.name: site
            for sites in by_graph.values()
            for site in sites.values()
            if all(
                site.name in by_graph[name]
                for name, of_graph in layers.items()
                if not of_graph.isdisjoint(reader.name for reader in site.readers)
            )
        }

    def _try(self, plan: _Plan, limits: Limits) -> tuple[ParityRow, ...]:
        """Write the plan's graphs and compare what was written, rounded as on a GPU, with the reference."""
        name = plan.precision.name
        graphs = tracked(self._begin, f"convert to {name}", list(plan.source.graphs))
        types, ranges = plan.all_types(), plan.source.ranges
        known: Known = {}
        lowered = {graph: lower(plan.source.graphs[graph], types, ranges, known) for graph in graphs}
        self._assembly.write(name, lowered, limits, self._lowering(plan))
        bundle = self._assembly.write_manifest()
        model = as_on_a_gpu(bundle, name)
        recorded, held_out = self._inputs.probe, self._inputs.held_out
        rows = parity.check(model, recorded, limits, self._begin, f"check {name} parity")
        if all(row.passed for row in rows) and plan.precision.linear == ir.DataType.INT8:
            rows = self._below_on_cpu(bundle, name, limits) or rows
        # Held-out inputs take longest, so they run only for a plan that the probe accepts.
        if held_out is None or not all(row.passed for row in rows):
            return rows
        stage = f"check {name} held out"
        return (*rows, *parity.check_held_out(model, held_out, limits, self._begin, stage))

    def _below_on_cpu(self, bundle: Bundle, name: str, limits: Limits) -> tuple[ParityRow, ...]:
        """The comparisons that fail if a CPU runs the graphs as they were written, which rounds no product.

        A text whose tokens are nearly alike can cross a border of INT8 at many places at once, and only in one of the
        two roundings. Logits are left out: a scale of 100 takes those of few texts below, though every vector passes.
        """
        model = Model(bundle, OnnxRuntimeBackend(bundle, name, "cpu"))
        rows = parity.check(model, self._inputs.probe, limits, self._begin, f"check {name} on the CPU")
        return tuple(row for row in rows if not row.passed and row.graph != "logits")

    def _step_back(self, plan: _Plan, failed: Sequence[ParityRow], limits: Limits) -> bool:
        """Have a plan that failed lose less; False if nothing is left to do.

        The residual stream goes back first, because it passes through every layer. If that does not help, layers are
        the cause: the stream is narrow again while they move, and goes back in the end if they are not enough.
        """
        if plan.may_widen and self._passes_wide(plan, failed, limits):
            plan.narrow, plan.set_aside = [], plan.narrow
            return True
        if plan.set_aside:
            plan.narrow, plan.set_aside = plan.set_aside, []
        if self._move_back(plan, failed, limits):
            return True
        if plan.narrow and plan.moved:
            plan.narrow = []
            return True
        return False

    def _passes_wide(self, plan: _Plan, failed: Sequence[ParityRow], limits: Limits) -> bool:
        """Whether the worst failures pass with the residual stream in float32."""
        tower = [graph for tower in _towers_of({row.graph for row in failed}) for graph in tower]
        trials = self._trials(replace(plan, narrow=[]), tower, [])
        return self._passes(trials, tower, failed, limits, [])

    def _move_back(self, plan: _Plan, failed: Sequence[ParityRow], limits: Limits) -> bool:
        """Give layers of each tower that failed higher types; False if too many went already.

        They are as few of the costliest as make the tower pass. If as many as may go do not suffice, all of these go.
        """
        moved = False
        for tower in _towers_of({row.graph for row in failed}):
            rows = [row for row in failed if row.graph in tower]
            candidates = self._candidates(plan, tower, rows)
            if not candidates:
                break
            trials = self._trials(plan, tower, candidates)
            chosen = smallest_set(list(trials.higher), partial(self._passes, trials, tower, rows, limits))
            plan.move({layer: trials.higher[layer] for layer in (trials.higher if chosen is None else chosen)})
            moved = True
            if chosen is None:
                break
        return moved

    def _candidates(self, plan: _Plan, tower: Sequence[str], failed: Sequence[ParityRow]) -> list[_Candidate]:
        """Layers of a tower that may go back, the costliest first.

        The loss from a layer is measured in one of the graphs that failed, the worst first. An overflow costs
        infinitely much and hides all other losses, so layers that overflow come before all others.
        """
        measured_in: dict[str, str] = {}
        for row in sorted(failed, key=lambda row: row.min_cosine):
            for graph in _DEPENDS_ON.get(row.graph, (row.graph,)):
                for layer in plan.source.layers.get(graph, ()):
                    if plan.types[layer.name] != FLOAT and layer.name not in plan.moved:
                        # A loss in another graph of the tower ranks a layer as well, and takes no run again.
                        known = plan.source.sensitivity.measured_in(layer.name, plan.types[layer.name])
                        measured_in.setdefault(layer.name, known or graph)
        losses = [Loss(graph, layer, plan.types[layer]) for layer, graph in measured_in.items()]
        found = plan.source.sensitivity.costs(losses, self._begin, f"find {plan.precision.name}'s losses")
        costs = dict(zip(measured_in, found, strict=True))
        layers = {layer.name for graph in tower for layer in plan.source.layers.get(graph, ())}
        left = max(0, math.floor(_MOST * len(layers)) - len(plan.moved.keys() & layers))
        ranked = sorted(costs, key=lambda name: (-costs[name], name))
        return [_Candidate(name, measured_in[name]) for name in ranked[:left]]

    def _trials(self, plan: _Plan, tower: Collection[str], candidates: Sequence[_Candidate]) -> Trials:
        """Trials of a tower with candidates in the next higher types, or in float32 where they overflow in these."""
        sensitivity = plan.source.sensitivity
        graphs = {name: graph for name, graph in plan.source.graphs.items() if name in tower}
        higher = {layer: plan.precision.next_above(plan.types[layer]) for layer, _ in candidates}
        trials = Trials(self._assembly, graphs, plan.all_types(), higher, plan.source.ranges)
        losses = [Loss(graph, layer, higher[layer]) for layer, graph in candidates if higher[layer] != FLOAT]
        # Only if all of them together overflow is each run by itself.
        if not losses or sensitivity.is_finite(trials.backend(list(higher)), graphs):
            return trials
        costs = dict(zip(losses, sensitivity.costs(losses), strict=True))
        higher |= {loss.layer: FLOAT for loss, cost in costs.items() if math.isinf(cost)}
        return Trials(self._assembly, graphs, plan.all_types(), higher, plan.source.ranges)

    def _passes(
        self,
        trials: Trials,
        tower: Collection[str],
        failed: Sequence[ParityRow],
        limits: Limits,
        chosen: Sequence[str],
    ) -> bool:
        """Whether a tower passes with some layers in higher types.

        Args:
            trials: makes the models.
            tower: the graphs that must pass.
            failed: comparisons that failed. The worst are made again before those of held-out inputs. The others pass
                if these do, as a rule.
            limits: the limits to keep.
            chosen: the layers.
        """
        layers = f"{len(chosen)} layers in higher types"
        done = self._begin(f"try {layers if chosen else 'the residual stream in float32'}", 1)
        model, worst = trials.model(chosen), parity.worst_cases(failed)
        steps = [step for step in parity.probe_steps(model, self._inputs.probe, limits) if step.case in worst]
        if self._inputs.held_out is not None:
            steps += parity.held_out_steps(model, self._inputs.held_out, limits)
        passed = parity.passes(steps, tower, worst)
        done()
        return passed

    def _lowering(self, plan: _Plan) -> Lowering:
        precision, data = plan.precision, self._inputs.calibration
        return Lowering(
            linear=_name(precision.linear),
            other=_name(precision.other),
            moved={name: _name(dtype) for name, dtype in plan.moved.items()},
            residual=spans(list(dict.fromkeys(map(block_of, plan.source.sums))), plan.narrow),
            smoothed=plan.source.smoothed,
            calibration=data.record() if data is not None and precision.is_quantised else None,
        )


def as_on_a_gpu(bundle: Bundle, precision: str) -> Model:
    """The model of a precision that was written, rounded as on a GPU."""
    files = {graph: entries[precision].file for graph, entries in bundle.manifest.graphs.items()}
    graphs = {graph: ir.load(bundle.file(file)) for graph, file in files.items()}
    return Model(bundle, GraphBackend(bundle, precision, graphs, as_on_a_gpu=True))


def _towers_of(graphs: Collection[str]) -> list[tuple[str, ...]]:
    """The towers that hold some of the graphs.

    Logits depend on both towers, so they count once the towers themselves pass.
    """
    return [tower for tower in _TOWERS if not set(tower).isdisjoint(graphs)] or [_WHOLE]


def _name(dtype: ir.DataType) -> str:
    return np.dtype(dtype.numpy()).name


def _refusal(plan: _Plan, rows: Sequence[ParityRow], limits: Limits) -> str:
    """The reason for refusing a precision, as a clause."""
    failed = [row for row in rows if not row.passed]
    worst = min(failed, key=lambda row: row.min_cosine)
    measured = f"a cosine of {worst.min_cosine:.7f}" if worst.min_cosine > -1 else "numbers that are not finite"
    moved = f"even with {', '.join(sorted(plan.moved))} in higher types" if plan.moved else "with no layer to move"
    return (
        f"{plan.precision.name} was refused: {len(failed)} of {len(rows)} comparisons fall below its floor of "
        f"{limits.min_cosine!r}, the worst ({worst.graph}, {worst.case}) with {measured}, {moved}"
    )
