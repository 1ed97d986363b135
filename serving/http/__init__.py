"""A batcher behind HTTP."""

from .app import Application
from .metrics import Metrics
from .settings import Settings

__all__ = ["Application", "Metrics", "Settings"]
