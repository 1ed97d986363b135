"""Bundles to TensorRT engines, and a backend that runs them.

Needs one of the libraries: ``pip install 'fgclip-rt[tensorrt-rtx]'`` or ``'fgclip-rt[tensorrt]'``.
"""

from .libraries import CURRENT, LIBRARIES
from .pipeline import Built, build
from .profiles import DEFAULT_BATCH, DEFAULT_BOXES, Shapes

__all__ = ["CURRENT", "DEFAULT_BATCH", "DEFAULT_BOXES", "LIBRARIES", "Built", "Shapes", "build"]
