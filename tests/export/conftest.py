"""Fixtures of graphs in memory."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from exporting import MODULES


@pytest.fixture(scope="session")
def masked_graphs(masked_bundle_path: Path) -> dict[str, ir.Model]:
    """The graphs of the masked checkpoint, by name; not to be changed."""
    return {name: ir.load(masked_bundle_path / f"{name}.onnx") for name in MODULES.values()}
