"""A ``triton_python_backend_utils`` whose calls of other models run a repository's ONNX graphs in onnxruntime.

It stands in for a server with the ONNX Runtime backend, as far as a model in Python sees one: it knows the models by
their folders, and refuses what their configurations do not allow.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

_DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32}


def parse(text: str) -> dict[str, list[Any]]:
    """A message in protobuf's text format: the values of each field, in their order."""
    return _message(iter(re.findall(r'"(?:\\.|[^"\\])*"|[\w.-]+|[{}\[\]]', text)))


def _message(words: Iterator[str]) -> dict[str, list[Any]]:
    fields: dict[str, list[Any]] = defaultdict(list)
    for name in words:
        if name == "}":
            break
        value = next(words)
        if value == "[":
            fields[name] += map(_scalar, iter(lambda: next(words), "]"))
        else:
            fields[name].append(_message(words) if value == "{" else _scalar(value))
    return fields


def _scalar(word: str) -> Any:
    return json.loads(word) if word[0] in '"-0123456789' or word in ("true", "false") else word


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        assert array.flags.c_contiguous
        self.name, self._array = name, array

    def as_numpy(self) -> Any:
        return self._array


class Error(str):
    INVALID_ARG = 3

    def __new__(cls, message: str, code: int = 0) -> Error:
        error = super().__new__(cls, message)
        error.code = code  # type: ignore[attr-defined]
        return error

    def message(self) -> str:
        return str(self)


class Response:
    def __init__(self, tensors: Sequence[Tensor] = (), error: Error | None = None) -> None:
        self.tensors, self._error = {tensor.name: tensor for tensor in tensors}, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Error | None:
        return self._error


class Request:
    """A request as the front model is handed it."""

    def __init__(self, tensors: dict[str, Any], **parameters: Any) -> None:
        self.tensors = {name: Tensor(name, array) for name, array in tensors.items()}
        self._parameters = json.dumps(parameters)

    def parameters(self) -> str:
        return self._parameters


class Server:
    """Runs the models of a repository.

    Attributes:
        calls: name of the model and number of items of each call, in the order of their ends.
    """

    def __init__(self, repository: Path) -> None:
        self.calls: list[tuple[str, int]] = []
        self._repository = repository
        self._sessions: dict[str, ort.InferenceSession] = {}

    def config(self, name: str) -> dict[str, list[Any]]:
        """The configuration of a model."""
        return parse((self._repository / name / "config.pbtxt").read_text())

    def arguments(self, name: str) -> dict[str, str]:
        """The arguments that a model in Python is initialised with."""
        parameters = {
            entry["key"][0]: {"string_value": entry["value"][0]["string_value"][0]}
            for entry in self.config(name)["parameters"]
        }
        return {
            "model_config": json.dumps({"parameters": parameters}), "model_repository": str(self._repository / name),
            "model_version": "1", "model_instance_kind": "CPU", "model_instance_device_id": "0",
        }  # fmt: skip

    def module(self) -> ModuleType:
        server, module = self, ModuleType("triton_python_backend_utils")

        class InferenceRequest:
            def __init__(self, *, model_name: str, requested_output_names: list[str], inputs: list[Tensor],
                         preferred_memory: Any) -> None:  # fmt: skip
                assert preferred_memory == (0, 0)
                self._asked = model_name, requested_output_names, inputs

            def exec(self) -> Response:
                return server.run(*self._asked)

        module.__dict__.update(
            Tensor=Tensor, TritonError=Error, InferenceRequest=InferenceRequest, TRITONSERVER_MEMORY_CPU=0,
            InferenceResponse=lambda output_tensors=(), error=None: Response(output_tensors, error),
            PreferredMemory=lambda kind, number: (kind, number),
            get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
            get_output_tensor_by_name=lambda response, name: response.tensors.get(name),
        )  # fmt: skip
        return module

    def run(self, name: str, outputs: list[str], inputs: list[Tensor]) -> Response:
        """Run a model by its configuration, as Triton's core and its ONNX Runtime backend do."""
        if not (self._repository / name).is_dir():
            return Response(error=Error(f"unknown model {name}"))
        config = self.config(name)
        (most,) = config["max_batch_size"]
        given = {tensor.name: tensor.as_numpy() for tensor in inputs}
        assert set(given) == {each["name"][0] for each in config["input"]}
        feed = {}
        for each in config["input"]:
            key = each["name"][0]
            array = given[key]
            shape = array.shape[1:] if most else array.shape
            dims = each["dims"]
            fits = len(shape) == len(dims) and all(size in (-1, has) for size, has in zip(dims, shape, strict=True))
            if not fits or array.dtype != _DTYPES[each["data_type"][0]]:
                return Response(error=Error(f"unexpected shape or type for input '{key}' for model '{name}'"))
            feed[key] = array.reshape(len(array), *each["reshape"][0]["shape"]) if each["reshape"] else array
        size = len(next(iter(given.values())))
        if most and size > most:
            return Response(error=Error(f"batch-size must be <= {most} for '{name}'"))
        if name not in self._sessions:
            path = self._repository / name / "1/model.onnx/model.onnx"
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self._sessions[name] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        arrays = self._sessions[name].run(outputs, feed)
        self.calls.append((name, size))
        return Response([Tensor(output, array) for output, array in zip(outputs, arrays, strict=True)])
