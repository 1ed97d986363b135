"""From proven float32 graphs to a lower precision that keeps its floor, or is refused.

The layers get the precision's types, the graphs are written and compared with the reference, and where they fall below
the floor the layers that suffer most go back to the next higher type, until the floor holds or too many have gone back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgclip_rt import parity
from fgclip_rt.errors import ParityError
from fgclip_rt.manifest import Limits, Lowering, ParityRow
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe

from .assembly import Assembly
from .calibration import CalibrationData
from .emulation import emulate
from .graph_backend import GraphBackend
from .layers import Layer, find_layers
from .lower import FLOAT, lower
from .observation import ObservingBackend
from .precisions import Precision
from .progress import BeginStage
from .sensitivity import Sensitivity
from .smoothing import choose, find_places, smooth

FloatArray = NDArray[np.float32]

#: The share of the layers of the graphs that fail which may go back in all, and in one round.
_MOST, _AT_ONCE = 1 / 4, 1 / 16

#: Which graphs' layers a comparison depends on, where that is not the graph that it is of.
_DEPENDS_ON = {"region": ("dense",), "logits": ("vision", "text")}


@dataclass(frozen=True)
class Inputs:
    """What lower precisions are measured on.

    Attributes:
        probe: the recorded inputs, with the reference's results.
        calibration: inputs to calibrate on, if there are any.
        held_out: those that were held out, with the float32 graphs' results.
        method: how ranges of activations are found.
    """

    probe: Probe
    calibration: CalibrationData | None
    held_out: Probe | None
    method: str


@dataclass
class _Plan:
    """Graphs to lower, and how.

    Attributes:
        graphs: in float32, by name.
        layers: of each graph.
        types: by layer.
        ranges: by quantised layer.
        costs: what each layer costs each graph by itself, once that has been asked for.
        moved: the layers that went back, and their types now.
        smoothed: number of layers with rescaled channels.
    """

    graphs: Mapping[str, ir.Model]
    layers: Mapping[str, Sequence[Layer]]
    types: dict[str, ir.DataType]
    ranges: Mapping[str, float] = field(default_factory=dict)
    costs: dict[tuple[str, str], float] = field(default_factory=dict)
    moved: dict[str, ir.DataType] = field(default_factory=dict)
    smoothed: int = 0


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
        """Prepare.

        Args:
            assembly: a bundle with proven float32 graphs.
            graphs: these, by name, as they were written.
            sensitive: by graph, the layers that always stay in float32.
            inputs: what to measure on.
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
            ParityError: it does not, whatever reasonable number of layers goes back; it is not in the bundle then.
        """
        plan = self._quantised(precision) if precision.is_quantised else self._plan(precision, self._graphs)
        while True:
            rows = self._try(precision, plan, limits)
            failed = [row for row in rows if not row.passed]
            if not failed:
                self._assembly.set_measured(precision.name, rows)
                return
            if not self._move_back(precision, plan, failed):
                self._assembly.remove(precision.name)
                raise ParityError(_refusal(precision, plan, rows, limits), rows)

    def _plan(self, precision: Precision, graphs: Mapping[str, ir.Model]) -> _Plan:
        layers = {name: find_layers(model, self._sensitive[name]) for name, model in graphs.items()}
        types = {layer.name: precision.type_of(layer) for found in layers.values() for layer in found}
        return _Plan(graphs, layers, types)

    def _quantised(self, precision: Precision) -> _Plan:
        """A plan whose outlier channels are smoothed and whose activations' ranges are known."""
        plan = self._plan(precision, self._graphs)
        rows = self._observe(plan, f"calibrate {precision.name}, pass 1").rows()
        places = [place for name in plan.graphs for place in find_places(plan.graphs[name], self._sensitive[name])]
        # Several graphs may hold one place, and layers of the same name must get the same factors in all of them.
        factors: dict[str, FloatArray] = {}
        smoothed: set[str] = set()
        for place in {place.name: place for place in places}.values():
            best = choose(place, rows[place.readers[0].name], precision.linear)
            if best is not None:
                factors[place.name] = best
                smoothed |= {reader.name for reader in place.readers}
        graphs = {name: smooth(graph, self._sensitive[name], factors) for name, graph in self._graphs.items()}
        self._assembly.write_for_now(graphs)

        plan = self._plan(precision, graphs)
        plan.ranges = self._observe(plan, f"calibrate {precision.name}, pass 2", self._inputs.method).ranges()
        plan.smoothed = len(smoothed)
        return plan

    def _observe(self, plan: _Plan, stage: str, method: str | None = None) -> ObservingBackend:
        """Run the plan's graphs, still in float32, on the calibration inputs."""
        data = self._inputs.calibration
        assert data is not None  # or the precision would have been refused
        bundle = self._assembly.bundle()
        backend = ObservingBackend(bundle, plan.graphs, plan.layers, method)
        data.run(Model(bundle, backend), self._begin(stage, data.steps))
        return backend

    def _try(self, precision: Precision, plan: _Plan, limits: Limits) -> tuple[ParityRow, ...]:
        """Write the plan's graphs and compare them, rounded as on a GPU, with the reference."""
        done = self._begin(f"convert to {precision.name}", len(plan.graphs))
        lowered = {}
        for name, graph in plan.graphs.items():
            lowered[name] = lower(graph, plan.types, plan.ranges)
            done()
        self._assembly.write(precision.name, lowered, limits, self._lowering(precision, plan))
        bundle = self._assembly.bundle()
        emulated = {name: emulate(model) for name, model in lowered.items()}
        model = Model(bundle, GraphBackend(bundle, precision.name, emulated))
        recorded, held_out = self._inputs.probe, self._inputs.held_out
        steps = parity.count_rows(recorded)
        if held_out is not None:
            steps += parity.count_held_out_rows(model, held_out)
        done = self._begin(f"check {precision.name} parity", steps)
        rows = parity.check(model, recorded, limits, done)
        return rows if held_out is None else (*rows, *parity.check_held_out(model, held_out, limits, done))

    def _move_back(self, precision: Precision, plan: _Plan, failed: Sequence[ParityRow]) -> bool:
        """Give the costliest layers of graphs that failed their next higher types; False if too many went already."""
        names = sorted(
            {name for row in failed for name in _DEPENDS_ON.get(row.graph, (row.graph,))} & plan.layers.keys()
        )
        layers = {layer.name for name in names for layer in plan.layers[name]}
        left = math.floor(_MOST * len(layers)) - len(plan.moved.keys() & layers)
        if left <= 0:
            return False
        costs = self._costs(precision, plan, names)
        ranked = sorted((name for name in layers if plan.types[name] != FLOAT), key=lambda name: -costs[name])
        overflowing = sum(math.isinf(costs[name]) for name in ranked)
        for name in ranked[: min(left, max(overflowing, math.ceil(_AT_ONCE * len(layers))))]:
            plan.types[name] = plan.moved[name] = precision.next_above(plan.types[name])
            plan.costs = {key: cost for key, cost in plan.costs.items() if key[1] != name}
        return bool(ranked)

    def _costs(self, precision: Precision, plan: _Plan, names: Sequence[str]) -> dict[str, float]:
        """What each layer of some graphs costs in its present type, by layer: the most that it costs one of them."""
        wanted = [
            (name, layer.name)
            for name in names
            for layer in plan.layers[name]
            if plan.types[layer.name] != FLOAT and (name, layer.name) not in plan.costs
        ]
        done = self._begin(f"find {precision.name}'s losses", len(wanted))
        sensitivity = Sensitivity(self._assembly.bundle(), plan.graphs, self._inputs.probe)
        for name, layer in wanted:
            plan.costs[name, layer] = sensitivity.cost(name, layer, plan.types[layer], plan.ranges)
            done()
        costs: dict[str, float] = {}
        for (name, layer), cost in plan.costs.items():
            if name in names:
                costs[layer] = max(cost, costs.get(layer, 0.0))
        return costs

    def _lowering(self, precision: Precision, plan: _Plan) -> Lowering:
        data = self._inputs.calibration if precision.is_quantised else None
        return Lowering(
            linear=_name(precision.linear),
            other=_name(precision.other),
            moved={name: _name(dtype) for name, dtype in plan.moved.items()},
            smoothed=plan.smoothed,
            calibration=None if data is None else data.record(self._inputs.method),
        )


def _name(dtype: ir.DataType) -> str:
    return np.dtype(dtype.numpy()).name


def _refusal(precision: Precision, plan: _Plan, rows: Sequence[ParityRow], limits: Limits) -> str:
    failed = [row for row in rows if not row.passed]
    worst = min(failed, key=lambda row: row.min_cosine)
    where = f"{worst.graph}, {worst.case}"
    return (
        f"{precision.name} was refused because {len(failed)} of {len(rows)} comparisons fall below its floor of "
        f"{limits.min_cosine:g} (the worst, {where}: {worst.min_cosine:.6f}), with {len(plan.moved)} layers in higher "
        "types"
    )
