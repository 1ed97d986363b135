"""What several test modules need besides fixtures."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fgclip_rt import parity

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN_NAMES = ("fgclip2", "fgclip2-masked")
WALK_TYPES = ("short", "box", "long")


class Golden:
    """What the released implementation computed on one checkpoint."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checkpoint = GOLDENS / name / "checkpoint"
        index = json.loads((GOLDENS / name / "index.json").read_text(encoding="utf-8"))
        self.images = [GOLDENS / "fgclip2" / "images" / image for image in index["images"]]
        self.buckets: list[int] = index["buckets"]
        self.texts: list[str] = index["texts"]

    @cached_property
    def expected(self) -> dict[str, np.ndarray[Any, Any]]:
        return dict(np.load(GOLDENS / self.name / "expected.npz"))

    @cached_property
    def pixels(self) -> list[np.ndarray[Any, Any]]:
        """The processor's patches, padded to the bucket; both checkpoints share the images."""
        stored = np.load(GOLDENS / "fgclip2" / "pixels.npz")
        return [stored[f"image{i}.pixel_values"] for i in range(len(self.images))]

    @cached_property
    def grids(self) -> list[tuple[int, int]]:
        stored = np.load(GOLDENS / "fgclip2" / "expected.npz")
        return [tuple(stored[f"image{i}.spatial_shape"].tolist()) for i in range(len(self.images))]


def assert_parity(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Hold ``actual`` to the limits of fp32."""
    row = parity.compare(actual, expected, parity.LIMITS["fp32"], "", "")
    assert row.passed, row


def assert_one_sentence(error: object, *parts: str) -> None:
    """The message of ``error`` is one sentence that holds all ``parts``."""
    message = str(error)
    assert message.endswith("."), message
    assert "\n" not in message, message
    assert ". " not in message, message
    for part in parts:
        assert part in message


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth structure with some noise, different for every seed; uint8 [H, W, 3]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width, 0:3][:2]
    waves = np.sin(y * generator.uniform(0.02, 0.3) + x * generator.uniform(0.02, 0.3) + generator.uniform(0, 6, 3))
    return np.clip(128 + 90 * waves + generator.normal(0, 10, waves.shape), 0, 255).astype(np.uint8)
