"""Holding a repository to Triton's own definition of one, and to the bundle's graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fgclip_rt.arrays import Array
from fgclip_rt.bundle import Bundle, sha256
from fgclip_rt.engine_files import RECORD, EngineRecord, axes
from fgclip_rt.errors import BundleError, reason
from fgclip_rt.manifest import Axis, GraphFile
from fgclip_rt.packages import require
from fgclip_rt.space import fingerprint

from .configs import front_inputs, front_outputs
from .graph_models import GraphModel, tensors, warm_up
from .repository import CONFIG, ONNX, PLAN
from .settings import BUNDLE, MODEL

#: onnxruntime's names of types, by Triton's.
_ONNX_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(int32)": "TYPE_INT32", "tensor(float)": "TYPE_FP32"}


def check_repository(repository: Path) -> None:
    """Parse every configuration of a repository by Triton's own definition, and hold it to the graph that it runs.

    Each ONNX graph is opened, with its weights; of each plan the digest and the profiles are compared.

    Raises:
        MissingDependencyError: Triton's client, which has the definition, is not installed.
        BundleError: Triton would refuse a configuration, it does not fit its graph, or a file is missing or altered.
    """
    require("triton", ["tritonclient", "google.protobuf", "grpc"], "--check needs {}, which is not installed")
    front = _parse(repository, MODEL)
    parameters = {key: value.string_value for key, value in front.parameters.items()}
    names = {"mode", "precision", "manifest_sha256", "space_sha256", "threads", "device", "models"}
    _hold(repository, MODEL, "parameters", set(parameters), names)
    try:
        models = msgspec.json.decode(parameters["models"], type=list[GraphModel])
    except msgspec.DecodeError as error:
        raise _misfit(repository, MODEL, f"models that cannot be read ({error})") from None
    bundle = Bundle.open(repository / MODEL / "1" / BUNDLE, graphs=not models)
    bundle.check_precision(parameters["precision"])
    _hold(repository, MODEL, "manifest_sha256", parameters["manifest_sha256"], bundle.manifest_sha256)
    if not models:
        # Without the probe it cannot be computed, and the manifest's digest stands for it.
        space = fingerprint(bundle, parameters["precision"])
        _hold(repository, MODEL, "space_sha256", parameters["space_sha256"], space)
    _hold(repository, MODEL, "backend", front.backend, "python")
    regions = len(front.input) == len(front_inputs(regions=True))
    _hold(repository, MODEL, "inputs", _described(front.input), _named(front_inputs(regions=regions)))
    outputs = front_outputs(bundle.manifest, regions=regions)
    _hold(repository, MODEL, "outputs", _described(front.output), _named(outputs))
    for model in models:
        _check_graph(repository, model, bundle.manifest.graphs[model.graph][parameters["precision"]], bundle)


def _check_graph(repository: Path, model: GraphModel, file: GraphFile, bundle: Bundle) -> None:
    config = _parse(repository, model.name)
    _hold(repository, model.name, "backend", config.backend, model.backend)
    _hold(repository, model.name, "max_batch_size", config.max_batch_size, model.max_batch_size)
    _hold(repository, model.name, "inputs", _described(config.input), _named(tensors(model, file.inputs)))
    _hold(repository, model.name, "outputs", _described(config.output), _named(tensors(model, file.outputs)))
    _check_warm_up(repository, model, config, warm_up(model, file)[1])
    if model.backend == "onnxruntime":
        _check_onnx(repository, model, config, bundle.manifest.files[file.file].sha256)
    else:
        _check_plan(repository, model, config, file, bundle)


def _check_warm_up(repository: Path, model: GraphModel, config: Any, arrays: Mapping[str, Array]) -> None:
    """Make sure that the requests that warm a model up give each of its inputs, from files of the right size."""
    given = {each.name for each in config.input}
    for sample in config.model_warmup:
        _hold(repository, model.name, "inputs of its warm-up", set(sample.inputs), given)
    for name, array in arrays.items():
        path = repository / model.name / "warmup" / name
        size = path.stat().st_size if path.is_file() else None
        _hold(repository, model.name, f"bytes in {path.name} of its warm-up", size, array.nbytes)


def _check_onnx(repository: Path, model: GraphModel, config: Any, digest: str) -> None:
    import onnxruntime as ort

    path = repository / model.name / "1" / ONNX / ONNX
    if not path.is_file() or sha256(path) != digest:
        raise BundleError(f"{path} is not the bundle's graph; write the repository anew.", code="bundle_altered")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no base in common
        raise BundleError(
            f"{path} cannot be opened ({reason(error)}); write the repository anew.", code="bundle_altered"
        ) from None
    for given, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        graph = {each.name: (_ONNX_TYPES.get(each.type), each.shape) for each in found}
        _hold(repository, model.name, "tensors", {each.name for each in given}, set(graph))
        for each in given:
            kind, shape = graph[each.name]
            _hold(repository, model.name, f"the type of {each.name}", _type(each), kind)
            if not _fits(_shape(each, model), shape):
                raise _misfit(
                    repository, model.name, f"{each.name} of shape {_shape(each, model)}, and its graph {shape}"
                )


def _check_plan(repository: Path, model: GraphModel, config: Any, file: GraphFile, bundle: Bundle) -> None:
    version = repository / model.name / "1"
    try:
        record = msgspec.json.decode((version / RECORD).read_bytes(), type=EngineRecord)
        digest = sha256(version / PLAN)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(
            f"{version} has no plan with its record ({reason(error)}); write the repository anew.",
            code="bundle_altered",
        ) from None
    if digest != record.files[record.plan].sha256 or record.key.files[file.file] != _digest(bundle, file):
        raise BundleError(
            f"{version} has another plan than it records; write the repository anew.", code="bundle_altered"
        )
    ranges = axes(record.key.profiles, file.inputs)
    if model.max_batch_size > ranges[Axis.BATCH][2]:
        raise _misfit(
            repository, model.name, f"batches of {model.max_batch_size}, and its plan {ranges[Axis.BATCH][2]}"
        )
    for each in config.input:
        profile = record.key.profiles[each.name]
        shape = _shape(each, model)
        sizes = zip(shape[1:], profile.min[1:], profile.max[1:], strict=True)
        if not all(size == -1 or least <= size <= most for size, least, most in sizes):
            raise _misfit(repository, model.name, f"{each.name} of shape {shape}, and its plan {list(profile.max)}")


def _digest(bundle: Bundle, file: GraphFile) -> str:
    return bundle.manifest.files[file.file].sha256


def _parse(repository: Path, name: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = repository / name / CONFIG
    config: Any = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise BundleError(f"{path} is no configuration of Triton's ({error}); write the repository anew.") from None
    _hold(repository, name, "name", config.name, name)
    return config


def _described(found: Sequence[Any]) -> list[tuple[str, str, list[int], bool]]:
    """Tensors of a parsed configuration: names, types, shapes, and whether a request may leave them out."""
    return [(each.name, _type(each), list(each.dims), getattr(each, "optional", False)) for each in found]


def _named(written: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[int], bool]]:
    """Tensors of a configuration that we write, as :func:`_described`."""
    return [(each["name"], each["data_type"], each["dims"], each.get("optional", False)) for each in written]


def _type(tensor: Any) -> str:
    from tritonclient.grpc import model_config_pb2

    name: str = model_config_pb2.DataType.Name(tensor.data_type)
    return name


def _shape(tensor: Any, model: GraphModel) -> list[int]:
    """The shape that a graph is given, with -1 for what varies."""
    dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
    return [-1, *dims] if model.max_batch_size else dims


def _fits(shape: Sequence[int], graph: Sequence[int | str]) -> bool:
    """Whether a graph takes or gives this shape: an axis that varies in the graph may have one size in the model."""
    pairs = zip(shape, graph, strict=False)
    return len(shape) == len(graph) and all(isinstance(axis, str) or size == axis for size, axis in pairs)


def _hold(repository: Path, name: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise _misfit(repository, name, f"{what} {found} instead of {expected}")


def _misfit(repository: Path, name: str, what: str) -> BundleError:
    return BundleError(f"{repository / name / CONFIG} has {what}; write the repository anew.", code="bundle_invalid")
