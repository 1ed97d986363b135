"""FG-CLIP without PyTorch: images, regions and texts to vectors, from an exported bundle.

>>> import fgclip_rt
>>> model = fgclip_rt.load("bundle")
>>> model.embed_images(["a.jpg"]) @ model.embed_texts(["a cat"]).T
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import FgclipError

if TYPE_CHECKING:
    from .images import load_image
    from .model import Model, RandomWeightsWarning, load

__version__ = "0.1.0"

__all__ = ["FgclipError", "Model", "RandomWeightsWarning", "__version__", "load", "load_image"]

#: Imported when they are first used: the command line is there, and can be interrupted, before numpy is.
_HOMES = {"Model": ".model", "RandomWeightsWarning": ".model", "load": ".model", "load_image": ".images"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
