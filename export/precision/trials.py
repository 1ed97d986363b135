"""Models of one plan with more and more of its layers in higher types, rounded as on a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

import onnx_ir as ir

from fgclip_rt.backends import Backend
from fgclip_rt.manifest import FP32
from fgclip_rt.model import Model

from ..bundle.assembly import Assembly
from .graph_backend import GraphBackend
from .lower import Known, joins, lower
from .switches import Choice, SwitchedBackend, switched


class Trials:
    """Makes a model for each choice of layers.

    Attributes:
        higher: the types of the layers that may be chosen, by name.
    """

    def __init__(
        self,
        assembly: Assembly,
        graphs: Mapping[str, ir.Model],
        types: Mapping[str, ir.DataType],
        higher: Mapping[str, ir.DataType],
        ranges: Mapping[str, float],
    ) -> None:
        """Prepare to make models.

        Args:
            assembly: the bundle with float32; its scratch files of trials are written anew.
            graphs: the float32 graphs that are tried, by name.
            types: the plan's types, as for :func:`fgclip_rt.export.precision.lower.lower`.
            higher: the types of layers that may be chosen, by name.
            ranges: as for ``lower``.
        """
        self._assembly = assembly
        self._bundle = assembly.write_manifest()
        self._graphs = graphs
        self._types = types
        self.higher = higher
        self._ranges = ranges

    def model(self, chosen: Collection[str]) -> Model:
        """A model with some layers in their higher types. Models that were made before cannot be used any more."""
        # A model of its own for each choice, because a model remembers the vectors of texts.
        return Model(self._bundle, self.backend(chosen))

    def backend(self, chosen: Collection[str]) -> Backend:
        """Runs the graphs with some layers in their higher types, as :meth:`model` does."""
        if self.higher and not joins(self._types):
            self._switched.chosen = chosen
            return self._switched
        # Without candidates there is nothing to switch. In 16 bits the type of a layer changes that of its neighbours,
        # so that every choice is a graph of its own.
        types = {**self._types, **{name: self.higher[name] for name in chosen}}
        known: Known = {}
        graphs = {name: lower(graph, types, self._ranges, known) for name, graph in self._graphs.items()}
        self._assembly.write_scratch("trial", graphs)
        return GraphBackend(self._bundle, FP32, graphs, as_on_a_gpu=True)

    @cached_property
    def _switched(self) -> SwitchedBackend:
        choices = {name: Choice(self._types[name], dtype) for name, dtype in self.higher.items()}
        known: Known = {}
        graphs = {
            name: switched(graph, choices, self._ranges, self._types, known) for name, graph in self._graphs.items()
        }
        self._assembly.write_scratch("trial", graphs)
        return SwitchedBackend(self._bundle, graphs, list(choices))
