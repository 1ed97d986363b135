"""A bundle in the runtime that users have."""

from __future__ import annotations

from pathlib import Path

from fgclip_rt.bundle import Bundle
from fgclip_rt.manifest import SquareSpec
from fgclip_rt.model import open_model

from .inputs import make_inputs
from .task import Case, Contender, Run, UnableError

#: What is asked of each graph.
OUTPUTS = {
    "vision": "image_embeds",
    "dense": "dense_features",
    "text": "text_embeds",
    "region": "region_embeds",
}


class Runtime:
    """The graphs of a bundle, run by the backend that the runtime chooses."""

    def __init__(self, contender: Contender) -> None:
        self._bundle = Bundle.open(Path(contender.bundle), check_hashes=False)
        self._model = open_model(self._bundle, contender.device, contender.precision, contender.threads)

    def prepare(self, case: Case) -> Run:
        if not self._model.has(case.graph):
            raise UnableError(f"the model has no {case.graph} graph")
        taken = self._bundle.manifest.graphs[case.graph][self._model.precision].inputs
        known = make_inputs(self._bundle, case)
        inputs = {spec.name: known[spec.name] for spec in taken}
        backend, outputs = self._model.backend, [OUTPUTS[case.graph]]
        self._load(case.graph)
        return lambda: backend.submit(case.graph, inputs, outputs).result()[0]

    def _load(self, graph: str) -> None:
        """Have the graph loaded, so that its memory counts as that of the session, by the smallest run there is."""
        length = 4
        if graph == "text":
            length = min(spec.length for spec in self._bundle.manifest.text.walk_types.values())
        elif isinstance(self._bundle.manifest.image, SquareSpec):
            length = self._bundle.manifest.image.max_num_patches
        taken = self._bundle.manifest.graphs[graph][self._model.precision].inputs
        known = make_inputs(self._bundle, Case(graph, length))  # type: ignore[arg-type]
        self._model.backend.submit(graph, {spec.name: known[spec.name] for spec in taken}, [OUTPUTS[graph]]).result()
