"""A model repository for Triton Inference Server. Its graphs run in fgclip_rt, or in backends of Triton's own."""

from .advice import BatchAdvice, read_advice
from .check import check_repository
from .repository import write_repository
from .settings import MODES, Mode, Repository

__all__ = ["MODES", "BatchAdvice", "Mode", "Repository", "check_repository", "read_advice", "write_repository"]
