"""A bundle behind a queue: for servers, ours or a user's own.

>>> from fgclip_rt.serving import Batcher, ImageItem, TextItem
>>> with Batcher(fgclip_rt.load("bundle")) as batcher:
...     photo, caption = batcher.submit([ImageItem("a.jpg"), TextItem("a cat")])
...     photo.result().vector @ caption.result().vector
"""

from fgclip_rt.model import EmbeddedText

from .batcher import Batcher
from .items import DenseItem, EmbeddedImage, ImageItem, TextItem

__all__ = ["Batcher", "DenseItem", "EmbeddedImage", "EmbeddedText", "ImageItem", "TextItem"]
