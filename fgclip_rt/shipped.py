"""Bundles that come with the package, which are named instead of a folder."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDER = Path(__file__).parent / "bundles"


def names() -> list[str]:
    """Names of the bundles."""
    return sorted(path.name for path in _FOLDER.iterdir())


def locate(bundle: str | os.PathLike[str]) -> Path:
    """The folder that a caller means: what is there under this path, or the bundle of this name."""
    path = Path(bundle)
    shipped = _FOLDER / path.name
    # A link that leads nowhere is there too: whoever made it means something else.
    return shipped if len(path.parts) == 1 and not os.path.lexists(path) and shipped.is_dir() else path


def is_shipped(folder: Path) -> bool:
    """Whether a folder is that of a bundle which comes with the package, and so is not to be written to."""
    return folder.resolve().parent == _FOLDER.resolve()
