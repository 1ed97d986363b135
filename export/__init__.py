"""Checkpoints to bundles. Needs PyTorch and ONNX: ``pip install 'fgclip-rt[export]'``."""

from fgclip_rt.progress import BeginStage

from .calibration import CalibrationInputs
from .checkpoint import LocalFiles
from .pipeline import Source, checkpoint_source, export, random_source, verify_against
from .precisions import PRECISIONS
from .registry import MODELS, ModelSpec, find_model

__all__ = [
    "MODELS",
    "PRECISIONS",
    "BeginStage",
    "CalibrationInputs",
    "LocalFiles",
    "ModelSpec",
    "Source",
    "checkpoint_source",
    "export",
    "find_model",
    "random_source",
    "verify_against",
]
