"""A backend whose graphs are other models of the same Triton server, which a model in Python calls (BLS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import msgspec
import numpy as np

from fgclip_rt.arrays import Array
from fgclip_rt.backends import Result
from fgclip_rt.errors import ArgumentError, DeviceError
from fgclip_rt.interface import DENSE_FEATURES, PATCHES

from .graph_models import GraphModel

#: Runs a model for some of its outputs: its name, the inputs and the outputs by name.
Call: TypeAlias = Callable[[str, Mapping[str, Array], Sequence[str]], list[Array]]


def call_triton(name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    """Run another model of the server that this process belongs to; a :data:`Call`.

    Raises:
        DeviceError: the model failed, or is not there.
    """
    import triton_python_backend_utils as triton

    request = triton.InferenceRequest(
        model_name=name,
        requested_output_names=list(outputs),
        inputs=[triton.Tensor(key, np.ascontiguousarray(array)) for key, array in inputs.items()],
        preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise DeviceError(f"Triton's model {name} failed ({response.error().message()}); look into the server's log.")
    found = [triton.get_output_tensor_by_name(response, output).as_numpy() for output in outputs]
    # The arrays lie in memory that the server takes back with the response.
    return [np.array(array) for array in found]


class TritonBackend:
    """The graphs of a bundle as models of a Triton server. Safe to use from several threads.

    Attributes:
        precision: the precision that the models run.
        device: where they run, ``cpu`` or ``cuda``.
    """

    def __init__(self, models: Sequence[GraphModel], precision: str, device: str, call: Call = call_triton) -> None:
        """Prepare for calls.

        Args:
            models: the models.
            precision: the precision that they run.
            device: ``cpu`` or ``cuda``.
            call: runs one of them.
        """
        self.precision = precision
        self.device = device
        self._models = sorted(models, key=lambda model: model.length or 0)
        self._call = call
        # Batches of unlike lengths run at the same time, each in its model.
        self._threads = ThreadPoolExecutor(len(models), thread_name_prefix="triton")

    def __str__(self) -> str:
        return f"Triton's models {', '.join(model.name for model in self._models)}"

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """Call the model of ``graph`` whose length fits, and return before its answer is there.

        Raises:
            ArgumentError: there is no such graph, or the images have more patches than any model takes.
        """
        length = _length(graph, inputs)
        model = self._find(graph, length)
        if not model.max_batch_size:
            return _Parts([self._threads.submit(self._call, model.name, dict(inputs), outputs)], outputs, length)
        taken = {name: _as_taken(array, name, model.length or length) for name, array in inputs.items()}
        rows = len(next(iter(taken.values())))
        parts = [
            self._threads.submit(
                self._call,
                model.name,
                {name: array[first : first + model.max_batch_size] for name, array in taken.items()},
                outputs,
            )
            for first in range(0, rows, model.max_batch_size)
        ]
        return _Parts(parts, outputs, length)

    def batch_size(self, graph: str, length: int) -> int:
        """Images or texts of a full batch of the model that takes them."""
        return max(1, self._find(graph, length).max_batch_size)

    def _find(self, graph: str, length: int) -> GraphModel:
        """The model of ``graph`` with the least length that holds this many patches or tokens."""
        models = [model for model in self._models if model.graph == graph]
        found = next((model for model in models if model.length is None or length <= model.length), None)
        if found is None:
            largest = f"{models[-1].length} patches or fewer" if models else "another"
            raise ArgumentError(
                f"this repository has no {graph} graph for {length} patches; ask for {largest}, or write it anew."
            )
        return found


class _Parts(msgspec.Struct, frozen=True):
    """Outputs of batches that are joined, without the rows that padded them to ``length`` patches."""

    parts: Sequence[Future[list[Array]]]
    outputs: Sequence[str]
    length: int

    def result(self) -> list[Array]:
        """The outputs, in their order."""
        joined = [np.concatenate(arrays) for arrays in zip(*(part.result() for part in self.parts), strict=True)]
        return [
            array[:, : self.length] if name == DENSE_FEATURES else array
            for name, array in zip(self.outputs, joined, strict=True)
        ]


def _length(graph: str, inputs: Mapping[str, Any]) -> int:
    """Patches or tokens of each item."""
    length: int = inputs[DENSE_FEATURES if graph == "region" else next(iter(inputs))].shape[1]
    return length


def _as_taken(array: Array, name: str, length: int) -> Array:
    """An input as Triton wants it: images padded to the model's length, and an axis for what has none but the batch."""
    if name == PATCHES and array.shape[1] < length:
        return np.pad(array, ((0, 0), (0, length - array.shape[1]), (0, 0)))
    return array[:, None] if array.ndim == 1 else array
