"""A model for Triton's Python backend that runs the ONNX graph beside it, as Triton's ONNX Runtime backend would.

The server that tests can have is built without that backend. All else is the server's own: the configuration, the
warm-up, the dynamic batching, and the calls from the model that is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class TritonPythonModel:
    def initialize(self, arguments: dict[str, str]) -> None:
        path = Path(arguments["model_repository"], arguments["model_version"], "model.onnx", "model.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        config = json.loads(arguments["model_config"])
        self._batched = config["max_batch_size"] > 0
        self._inputs = config["input"]

    def execute(self, requests: list[Any]) -> list[Any]:
        import triton_python_backend_utils as triton

        def array(request: Any, described: dict[str, Any]) -> Any:
            found = triton.get_input_tensor_by_name(request, described["name"]).as_numpy()
            return found.reshape(len(found), *described["reshape"]["shape"]) if "reshape" in described else found

        groups = [requests] if self._batched else [[request] for request in requests]
        responses = []
        for group in groups:
            arrays = {each["name"]: [array(request, each) for request in group] for each in self._inputs}
            sizes = [len(part) for part in next(iter(arrays.values()))]
            names = [output.name for output in self._session.get_outputs()]
            found = self._session.run(names, {name: np.concatenate(parts) for name, parts in arrays.items()})
            parts = [np.split(output, np.cumsum(sizes)[:-1]) if self._batched else [output] for output in found]
            for number, request in enumerate(group):
                wanted = request.requested_output_names()
                tensors = [
                    triton.Tensor(name, np.ascontiguousarray(part[number]))
                    for name, part in zip(names, parts, strict=True)
                    if name in wanted
                ]
                responses.append(triton.InferenceResponse(tensors))
        return responses
