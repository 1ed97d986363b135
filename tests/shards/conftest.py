"""Shards of each kind, of small images, and jobs of the model that comes with the package."""

from __future__ import annotations

import pytest

import fgclip_rt
from fgclip_rt.model import Model
from sharding import NAME, jpeg


@pytest.fixture(scope="session")
def pocket() -> Model:
    return fgclip_rt.load(NAME)


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    """Files of twelve small images of three buckets, all different."""
    return [jpeg(seed) for seed in range(12)]
