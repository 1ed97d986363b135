"""Which packages the extras bring, and which of them are not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

#: The two packages install the same module, so the CPU one has to go first.
CUDA_REMEDY = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"

#: What the ``export`` extra installs, by the names they are imported by.
EXPORT_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "huggingface_hub")

#: What the backends of ``build`` need, by the names they are imported by.
ENGINE_PACKAGES = {
    "tensorrt": ("tensorrt", "cuda", "onnx"),
    "tensorrt-rtx": ("tensorrt_rtx", "cuda", "onnx"),
    "onnxruntime-tensorrt": ("cuda", "onnx"),
}


def missing_packages(packages: Iterable[str]) -> list[str]:
    """Those of ``packages`` that are not installed; nothing is imported."""
    return [package for package in packages if not _installed(package)]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
