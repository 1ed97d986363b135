"""Makes the bundle that comes with the package from the checkpoint that does: ``python -m tools.pocket.bundle``.

It has float16 graphs and a short probe, so that it takes 8 MB at most.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fgclip_rt import export
from fgclip_rt.export.bundle import probe

NAME = "fg-clip2-pocket"
FOLDER = Path(__file__).parents[2] / "fgclip_rt/bundles" / NAME

#: An image of each of the two smallest buckets, a wide one, and a single pixel. A probe of the larger
#: buckets would take as much space as the weights.
IMAGE_SIZES = ((150, 200), (240, 256), (20, 1500), (1, 1))


def main() -> None:
    """Replace the bundle."""
    probe.IMAGE_SIZES = IMAGE_SIZES
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.parent.mkdir(exist_ok=True)
    export.export(export.checkpoint_source(NAME), FOLDER, ("fp16",))


if __name__ == "__main__":
    main()
