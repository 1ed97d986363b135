"""One graph to an EP-context model: an ONNX file that onnxruntime's TensorRT provider has compiled already.

A service that uses onnxruntime, in C for instance, opens it like any model, and need not wait for the provider to build
its engine. The format: https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,  # noqa: A004 (its name)
    RuntimeException,
)

from fgclip_rt.backends.external_data import without_links
from fgclip_rt.engine_files import Profile
from fgclip_rt.errors import EngineError

from .libraries import OnnxRuntimeTensorRt
from .network import parser_input
from .task import Task


class EpContextBuilder:
    """Builds by onnxruntime's compile API."""

    def __init__(self, provider: str = OnnxRuntimeTensorRt.provider) -> None:
        """Take the name of the provider that compiles."""
        self._provider = provider

    def build(self, task: Task, report: Callable[[int], None]) -> int | None:
        """As :meth:`Builder.build`. The provider tells nothing while it builds, nor of its layers."""
        graph = Path(task.graph)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # The graph comes from memory, so onnxruntime has to be told where its weights lie.
        model = without_links(parser_input(graph, task.fixed), graph.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.folder))
        options.add_provider(self._provider, provider_options(task.profiles[0]))
        try:
            ort.ModelCompiler(options, model.content).compile_to_file(task.plan)
        except (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            if "Provider configuration is not supported" in reason:
                raise EngineError(
                    f"onnxruntime {ort.__version__} cannot start its TensorRT provider ({reason}); check the driver, "
                    "CUDA and TensorRT 10 with 'fgclip-rt doctor'."
                ) from None
            raise EngineError(
                f"onnxruntime {ort.__version__} refused {graph.name} ({reason}); try another precision."
            ) from None
        check_compiled(Path(task.plan), graph.name)
        report(100)
        return None


def check_compiled(path: Path, graph: str) -> None:
    """Make sure that the provider compiled the whole graph: what it leaves out runs operator by operator.

    Raises:
        EngineError: the model at ``path`` is not one engine.
    """
    nodes = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    if nodes != ["EPContext"]:
        others = sorted({name for name in nodes if name != "EPContext"}) or ["no node"]
        path.unlink()
        raise EngineError(
            f"onnxruntime {ort.__version__} compiled only a part of {graph} (it left {', '.join(others[:3])}); try "
            "another precision, or backend tensorrt."
        )


def provider_options(profiles: Mapping[str, Profile]) -> dict[str, str]:
    """Options of the TensorRT provider. With no precision among them, it makes a strongly typed network.

    Args:
        profiles: by input.
    """
    return {
        f"trt_profile_{kind}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, getattr(profile, kind)))}"
            for name, profile in profiles.items()
            if getattr(profile, kind)
        )
        for kind in ("min", "opt", "max")
    }
