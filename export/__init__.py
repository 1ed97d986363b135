"""Checkpoints to bundles. Needs PyTorch and ONNX: ``pip install 'fgclip-rt[export]'``."""

from .pipeline import ParityFailed, Progress, Source, checkpoint_source, export, random_source, verify_against
from .registry import MODELS, ModelSpec

__all__ = [
    "MODELS",
    "ModelSpec",
    "ParityFailed",
    "Progress",
    "Source",
    "checkpoint_source",
    "export",
    "random_source",
    "verify_against",
]
