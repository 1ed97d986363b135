"""A bundle in the runtime, as users run it."""

from __future__ import annotations

from pathlib import Path

from fgclip_rt.bundle import Bundle
from fgclip_rt.model import Model, open_model

from .inputs import make_inputs, noise_images
from .task import Case, Contender, Graph, Run, UnableError


class Runtime:
    """The graphs of a bundle, run by the backend that the runtime chooses."""

    def __init__(self, contender: Contender) -> None:
        self._bundle = Bundle.open(Path(contender.bundle), check_hashes=False)
        self._model = open_model(self._bundle, "cpu", contender.precision, contender.threads)

    def prepare(self, case: Case) -> Run:
        if not self._model.graphs.has(case.graph):
            raise UnableError(f"the model has no {case.graph} graph")
        if case.end_to_end:
            return end_to_end(self._model, case)
        run = self._run(case)
        # The smallest run loads the graph, so that its memory counts as that of the session.
        self._run(Case(case.graph, self._shortest(case.graph)))()
        return run

    def _run(self, case: Case) -> Run:
        inputs, graphs = make_inputs(self._bundle, case), self._model.graphs
        return lambda: graphs.run(case.graph, inputs).result()

    def _shortest(self, graph: Graph) -> int:
        manifest = self._bundle.manifest
        if graph == "text":
            return min(spec.length for spec in manifest.text.walk_types.values())
        return manifest.image.lengths[0]


def end_to_end(model: Model, case: Case) -> Run:
    """A run from images in memory to vectors in memory, as a user calls it.

    Raises:
        UnableError: the model takes no images of this length.
    """
    images = noise_images(model.manifest.image, case)
    return lambda: model.embed_images(images, case.length, case.batch)
