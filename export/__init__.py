"""Checkpoints to bundles. Needs PyTorch and ONNX: ``pip install 'fgclip-rt[export]'``."""

from .pipeline import BeginStage, Source, checkpoint_source, export, random_source, verify_against
from .registry import MODELS, ModelSpec, find_model

__all__ = [
    "MODELS",
    "BeginStage",
    "ModelSpec",
    "Source",
    "checkpoint_source",
    "export",
    "find_model",
    "random_source",
    "verify_against",
]
