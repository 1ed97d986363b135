"""A batcher behind HTTP."""

from .app import Application
from .settings import Settings

__all__ = ["Application", "Settings"]
