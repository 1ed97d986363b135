"""The pocket model that comes with the package, and folders of scenes that it understands. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from indexing import NAME

import fgclip_rt
from fgclip_rt.model import Model
from fgclip_rt.pocket.scenes import draw, make_scene


@pytest.fixture(scope="session")
def pocket() -> Model:
    return fgclip_rt.load(NAME)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of ten scenes, two of them in a folder of their own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed in range(10):
        draw(make_scene(seed, "test")).save(folder / ("more" if seed > 7 else "") / f"{seed}.png")
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "photos.index"
