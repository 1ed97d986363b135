"""A pocket model whose runs tests can hold up."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgclip_rt.bundle import Bundle
from fgclip_rt.model import Model, load
from gate import Gate


@pytest.fixture
def gate(pocket_path: Path) -> Gate:
    return Gate(load(pocket_path).backend, size=4)


@pytest.fixture
def gated(pocket_path: Path, gate: Gate) -> Model:
    return Model(Bundle.open(pocket_path), gate)
