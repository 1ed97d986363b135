"""FG-CLIP without PyTorch: images, regions and texts to vectors, from an exported bundle.

>>> import fgclip_rt
>>> model = fgclip_rt.load("bundle")
>>> model.embed_images(["a.jpg"]) @ model.embed_texts(["a cat"]).T
"""

from .errors import FgclipError
from .images import load_image
from .model import Model, load

__version__ = "0.1.0"

__all__ = ["FgclipError", "Model", "__version__", "load", "load_image"]
