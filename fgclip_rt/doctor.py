"""What this machine can run, and why not for the rest."""

from __future__ import annotations


def nvidia_gpus() -> list[str]:
    return []
