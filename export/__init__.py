"""Checkpoints to bundles. Needs PyTorch and ONNX: ``pip install 'fgclip-rt[export]'``."""

from fgclip_rt.progress import BeginStage

from .checkpoints.locate import LocalFiles
from .checkpoints.registry import MODELS, ModelSpec, find_model
from .pipeline import Source, checkpoint_source, export, random_source, verify_against
from .precision.calibration import CalibrationInputs
from .precision.precisions import PRECISIONS

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
