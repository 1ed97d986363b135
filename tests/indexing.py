"""The index of a folder, made by the model that comes with the package."""

from __future__ import annotations

from pathlib import Path

from fgclip_rt.index import Updated, update
from fgclip_rt.model import Model

NAME = "fg-clip2-pocket"


def damage(path: Path, how: str) -> None:
    """Damages a file of an index: it is ``gone``, ``cut``, or begins with ``noise``."""
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 3] if how == "cut" else b"\x07" * 100 + data[100:])


def bring_up_to_date(model: Model, photos: Path, output: Path, *, anew: bool = False) -> Updated:
    return update(model, photos, output, bundle=NAME, anew=anew)
