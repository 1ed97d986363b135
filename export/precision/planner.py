"""From proven float32 graphs to a lower precision that keeps its floor, or is refused.

The layers get the precision's types, and the graphs are written and compared with the reference. If they fall below the
floor, the residual stream goes back to float32. If that does not help, the costliest layers go back to the next higher
type instead. This ends if the floor holds or too many have gone back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from fgclip_rt import parity
from fgclip_rt.arrays import FloatArray
from fgclip_rt.errors import ParityError
from fgclip_rt.manifest import Limits, Lowering, ParityRow
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe
from fgclip_rt.progress import BeginStage, tracked

from ..bundle.assembly import Assembly
from .calibration import CalibrationData
from .emulation import emulate
from .graph_backend import GraphBackend
from .layers import Layer, block_of, find_layers, find_residuals
from .lower import FLOAT, lower
from .observation import ObservingBackend
from .precisions import Precision
from .residual import calm_blocks, spans
from .sensitivity import Sensitivity
from .smoothing import ScalingSite, choose_factors, find_sites, smooth

#: Shares of the failing graphs' layers that may go back in all, and in one round.
_MOST, _AT_ONCE = 1 / 4, 1 / 16

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
    """

    graphs: Mapping[str, ir.Model]
    layers: Mapping[str, Sequence[Layer]]
    residuals: Mapping[str, Sequence[Layer]]
    ranges: Mapping[str, float]
    smoothed: int

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
        costs: loss from each layer alone in its present type, by graph and layer, as far as it was measured.
    """

    precision: Precision
    source: _Float32Graphs
    types: dict[str, ir.DataType]
    narrow: Sequence[str]
    set_aside: Sequence[str] = ()
    moved: dict[str, ir.DataType] = field(default_factory=dict)
    costs: dict[tuple[str, str], float] = field(default_factory=dict)

    def all_types(self) -> dict[str, ir.DataType]:
        """Types of the layers and of the sums with the residual stream, by name."""
        sums = [residual.name for residual in self.source.sums if block_of(residual) in self.narrow]
        return self.types | dict.fromkeys(sums, self.precision.residual)


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
        self._eight_bits: _Float32Graphs | None = None

    def add(self, precision: Precision, limits: Limits) -> None:
        """Add a precision that keeps ``limits``.

        Raises:
            ParityError: the precision falls below them even with the most layers that may go back, and is removed.
        """
        if not precision.is_quantised:
            source = self._float32
        else:
            source = self._eight_bits = self._eight_bits or self._prepare_eight_bits()
        layers = [layer for of_graph in source.layers.values() for layer in of_graph]
        narrow = [] if precision.residual == FLOAT else calm_blocks(source.sums, self._peaks)
        plan = _Plan(precision, source, {layer.name: precision.type_of(layer) for layer in layers}, narrow)
        while True:
            rows = self._try(plan, limits)
            failed = [row for row in rows if not row.passed]
            if not failed:
                self._assembly.set_measured(precision.name, rows)
                return
            if not self._step_back(plan, failed):
                self._assembly.remove(precision.name)
                raise ParityError(_refusal(plan, rows, limits), {precision.name: rows}, code="precision_refused")

    def _plain(self, graphs: Mapping[str, ir.Model]) -> _Float32Graphs:
        """Graphs as they are, with no ranges."""
        layers = {name: find_layers(model, self._sensitive[name]) for name, model in graphs.items()}
        residuals = {name: find_residuals(model, self._sensitive[name]) for name, model in graphs.items()}
        return _Float32Graphs(graphs, layers, residuals, ranges={}, smoothed=0)

    @cached_property
    def _float32(self) -> _Float32Graphs:
        return self._plain(self._graphs)

    @cached_property
    def _calibrated(self) -> tuple[dict[str, FloatArray], dict[str, float]]:
        """The rows and the peaks of the calibration inputs in the float32 graphs, by layer and by sum."""
        backend = self._observe(self._float32, "calibrate, pass 1")
        return backend.rows(), backend.peaks()

    @cached_property
    def _peaks(self) -> dict[str, float]:
        """The largest magnitude in each sum with the residual stream, on the probe and the calibration inputs."""
        bundle = self._assembly.write_manifest()
        backend = ObservingBackend(bundle, self._graphs, self._float32.residuals)
        model, probe = Model(bundle, backend), self._inputs.probe
        run = model.dense_features if model.graphs.has("dense") else model.embed_images
        for image in tracked(self._begin, "measure residual stream", probe.images):
            run(image.rgb)
        for walk_type, texts in probe.walk_types.items():
            model.embed_texts(texts.texts, walk_type)
        seen = [backend.peaks()] if self._inputs.calibration is None else [backend.peaks(), self._calibrated[1]]
        return {sum_.name: float(np.max([peaks[sum_.name] for peaks in seen])) for sum_ in self._float32.sums}

    def _prepare_eight_bits(self) -> _Float32Graphs:
        """Smooth outlier channels and find the ranges of activations: two passes over the calibration inputs.

        All 8-bit precisions share the result. The smoothed weights lie in a scratch file from then on.
        """
        plain = self._float32
        rows, _ = self._calibrated
        sites = self._common_sites(plain)
        factors: dict[str, FloatArray] = {}
        for site in sites.values():
            # Readers of one value saw the same rows; a slice of it is another value.
            inputs = {reader.activations[0]: rows[reader.name] for reader in site.readers}
            best = choose_factors(site, np.concatenate(list(inputs.values())), ir.DataType.INT8)
            if best is not None:
                factors[site.name] = best
        graphs = {name: smooth(graph, self._sensitive[name], factors) for name, graph in self._graphs.items()}
        self._assembly.write_scratch(graphs)
        smoothed = self._plain(graphs)
        ranges = self._observe(smoothed, "calibrate, pass 2", find_ranges=True).ranges()
        readers = {reader.name for name in factors for reader in sites[name].readers}
        return _Float32Graphs(graphs, smoothed.layers, smoothed.residuals, ranges, len(readers))

    def _common_sites(self, source: _Float32Graphs) -> dict[str, ScalingSite]:
        """Scaling sites, by name, that every graph with the same weights has; otherwise the weights would differ."""
        by_graph = {
            name: {site.name: site for site in find_sites(graph, self._sensitive[name])}
            for name, graph in source.graphs.items()
        }
        layers = {name: {layer.name for layer in of_graph} for name, of_graph in source.layers.items()}
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

    def _observe(self, source: _Float32Graphs, stage: str, *, find_ranges: bool = False) -> ObservingBackend:
        """Run float32 graphs on the calibration inputs."""
        data = self._inputs.calibration
        assert data is not None  # or the export would have been refused
        bundle = self._assembly.write_manifest()
        watched = {name: [*layers, *source.residuals[name]] for name, layers in source.layers.items()}
        backend = ObservingBackend(bundle, source.graphs, watched, find_ranges=find_ranges)
        data.run(Model(bundle, backend), self._begin, stage)
        return backend

    def _try(self, plan: _Plan, limits: Limits) -> tuple[ParityRow, ...]:
        """Write the plan's graphs and compare what was written, rounded as on a GPU, with the reference."""
        name = plan.precision.name
        graphs = tracked(self._begin, f"convert to {name}", list(plan.source.graphs))
        types = plan.all_types()
        lowered = {graph: lower(plan.source.graphs[graph], types, plan.source.ranges) for graph in graphs}
        self._assembly.write(name, lowered, limits, self._lowering(plan))
        bundle = self._assembly.write_manifest()
        files = {graph: entries[name].file for graph, entries in bundle.manifest.graphs.items()}
        emulated = {graph: emulate(ir.load(bundle.file(file))) for graph, file in files.items()}
        model = Model(bundle, GraphBackend(bundle, name, emulated))
        recorded, held_out = self._inputs.probe, self._inputs.held_out
        rows = parity.check(model, recorded, limits, self._begin, f"check {name} parity")
        # Held-out inputs take longest, so they run only for a plan that the probe accepts.
        if held_out is None or not all(row.passed for row in rows):
            return rows
        stage = f"check {name} held out"
        return (*rows, *parity.check_held_out(model, held_out, limits, self._begin, stage))

    def _step_back(self, plan: _Plan, failed: Sequence[ParityRow]) -> bool:
        """Have a plan that failed lose less; False if nothing is left to do.

        The residual stream goes back first, because it passes through every layer. If that does not help, layers are
        the cause: the stream is narrow again while they move, and goes back in the end if they are not enough.
        """
        if plan.narrow and not plan.moved:
            plan.narrow, plan.set_aside = [], plan.narrow
            return True
        if plan.set_aside:
            plan.narrow, plan.set_aside = plan.set_aside, []
        if self._move_back(plan, failed):
            return True
        if plan.narrow and plan.moved:
            plan.narrow = []
            return True
        return False

    def _move_back(self, plan: _Plan, failed: Sequence[ParityRow]) -> bool:
        """Give the costliest layers of graphs that failed their next higher types; False if too many went already."""
        graphs = sorted({graph for row in failed for graph in _DEPENDS_ON.get(row.graph, (row.graph,))})
        layers = {layer.name for graph in graphs for layer in plan.source.layers.get(graph, ())}
        left = math.floor(_MOST * len(layers)) - len(plan.moved.keys() & layers)
        costs = self._costs(plan, graphs)
        ranked = sorted(costs, key=lambda name: (-costs[name], name))
        overflowing = [name for name in ranked if math.isinf(costs[name])]
        # An overflow hides all other losses, so layers that overflow go first. One that overflows again in its next
        # type moves on, and counts once.
        untouched = [name for name in ranked if name not in plan.moved]
        suspects = overflowing or untouched[: math.ceil(_AT_ONCE * len(layers))]
        fresh = [name for name in suspects if name in untouched][: max(0, left)]
        chosen = [name for name in overflowing if name in plan.moved] + fresh
        for name in chosen:
            plan.types[name] = plan.moved[name] = plan.precision.next_above(plan.types[name])
        plan.costs = {key: cost for key, cost in plan.costs.items() if key[1] not in chosen}
        return bool(chosen)

    def _costs(self, plan: _Plan, graphs: Sequence[str]) -> dict[str, float]:
        """The loss from each layer that is not in float32, by layer: its largest over some graphs."""
        wanted = [
            (graph, layer.name)
            for graph in graphs
            for layer in plan.source.layers.get(graph, ())
            if plan.types[layer.name] != FLOAT
        ]
        missing = [key for key in wanted if key not in plan.costs]
        sensitivity = Sensitivity(self._assembly.write_manifest(), plan.source.graphs, self._inputs.probe)
        for graph, layer in tracked(self._begin, f"find {plan.precision.name}'s losses", missing):
            plan.costs[graph, layer] = sensitivity.cost(graph, layer, plan.types[layer], plan.source.ranges)
        costs: dict[str, float] = {}
        for graph, layer in wanted:
            costs[layer] = max(plan.costs[graph, layer], costs.get(layer, 0.0))
        return costs

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
