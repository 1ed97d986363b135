"""FG-CLIP without PyTorch: images, regions and texts to vectors, from an exported bundle.

>>> import fgclip_rt
>>> model = fgclip_rt.load("bundle")
>>> model.embed_images(["a.jpg"]) @ model.embed_texts(["a cat"]).T

The names of ``__all__`` are the public interface, with the public attributes of their classes and the codes of
:data:`fgclip_rt.errors.CODES`. Everything else may change from one version to the next.
"""

from .bundle import Bundle
from .errors import (
    ArgumentError,
    BenchmarkError,
    BoxError,
    BundleError,
    CheckpointError,
    DeviceError,
    EngineError,
    FgclipError,
    ImageError,
    MaskError,
    MissingDependencyError,
    OutputError,
    ParityError,
    TextError,
)
from .images import load_image
from .model import Model, load

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BenchmarkError",
    "BoxError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "DeviceError",
    "EngineError",
    "FgclipError",
    "ImageError",
    "MaskError",
    "MissingDependencyError",
    "Model",
    "OutputError",
    "ParityError",
    "TextError",
    "__version__",
    "load",
    "load_image",
]
