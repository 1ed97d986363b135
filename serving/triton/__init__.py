"""A model repository for Triton Inference Server, whose Python backend runs fgclip_rt itself."""

from .repository import Repository, check_repository, write_repository

__all__ = ["Repository", "check_repository", "write_repository"]
