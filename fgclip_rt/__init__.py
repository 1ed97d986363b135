"""FG-CLIP without PyTorch: images, regions and texts to vectors, from an exported bundle.

>>> import fgclip_rt
>>> model = fgclip_rt.load("bundle")
>>> model.embed_images(["a.jpg"]) @ model.embed_texts(["a cat"]).T

The names of ``__all__`` are the public interface, with the public attributes of their classes and the codes of
:data:`fgclip_rt.errors.CODES`. Everything else may change from one version to the next.
"""

import importlib
import os
import typing

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
    IndexFileError,
    MaskError,
    MissingDependencyError,
    NativeError,
    OutputError,
    ParityError,
    ServingError,
    ShardError,
    SpecialTokenWarning,
    TextError,
)

if typing.TYPE_CHECKING:
    from .boxes import BoxUnitsWarning
    from .bundle import Bundle
    from .image_files import allow_image_format
    from .images import load_image
    from .model import Model, RandomWeightsWarning, load
    from .names import spell_path, unspell_path

__version__ = "0.1.0"

# From 1.29 on, importing onnxruntime starts threads that report its use to Microsoft. A forked child lacks them, and
# waits for them for ever as it ends.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "ArgumentError",
    "BenchmarkError",
    "BoxError",
    "BoxUnitsWarning",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "DeviceError",
    "EngineError",
    "FgclipError",
    "ImageError",
    "IndexFileError",
    "MaskError",
    "MissingDependencyError",
    "Model",
    "NativeError",
    "OutputError",
    "ParityError",
    "RandomWeightsWarning",
    "ServingError",
    "ShardError",
    "SpecialTokenWarning",
    "TextError",
    "__version__",
    "allow_image_format",
    "load",
    "load_image",
    "spell_path",
    "unspell_path",
]

#: Imported when they are first used: the command line is there, and can be interrupted, before numpy is.
_HOMES = {
    "BoxUnitsWarning": ".boxes",
    "Bundle": ".bundle",
    "Model": ".model",
    "RandomWeightsWarning": ".model",
    "allow_image_format": ".image_files",
    "load": ".model",
    "load_image": ".images",
    "spell_path": ".names",
    "unspell_path": ".names",
}


# A checker reads the imports above instead, and so finds a misspelt name.
if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> typing.Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
