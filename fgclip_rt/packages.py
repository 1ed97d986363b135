"""The packages that extras install, and which of them are missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from .errors import MissingDependencyError

#: The two packages install the same module, so they have to go first. From 1.30 on the extras name all libraries of
#: CUDA 13 that the provider is linked to, which need a driver of version 580 or later.
CUDA_REMEDY = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu[cuda,cudnn]>=1.30"'

#: Packages of the extra ``export``, by the names that they are imported by.
EXPORT_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "huggingface_hub")

#: Packages that each backend of ``build`` needs, by the names that they are imported by.
ENGINE_PACKAGES = {
    "tensorrt": ("tensorrt", "cuda", "onnx"),
    "tensorrt-rtx": ("tensorrt_rtx", "cuda", "onnx"),
    "onnxruntime-tensorrt": ("cuda", "onnx"),
}


def missing_packages(packages: Iterable[str]) -> list[str]:
    """The names among ``packages`` that are not installed. Imports nothing."""
    return [package for package in packages if not _installed(package)]


def require(
    extra: str,
    packages: Iterable[str] = EXPORT_PACKAGES,
    fault: str = "this command needs {}, which is not installed",
    alternative: str | None = None,
) -> None:
    """Make sure that packages are installed, before importing them fails.

    Args:
        extra: the extra of this package that installs them.
        packages: the names that they are imported by; by default the packages of the extra ``export``.
        fault: the fault as part of a sentence; ``{}`` stands for the missing packages.
        alternative: another remedy besides installing them; None if there is none.

    Raises:
        MissingDependencyError: a package is not installed.
    """
    if missing := missing_packages(packages):
        remedies = [f"run pip install 'fgclip-rt[{extra}]'", *([] if alternative is None else [f"or {alternative}"])]
        raise MissingDependencyError(f"{fault.format(', '.join(missing))}; {', '.join(remedies)}.")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
