"""A batcher behind HTTP."""

from .app import Application
from .observer import Observer
from .settings import Settings

__all__ = ["Application", "Observer", "Settings"]
