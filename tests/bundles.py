"""Makes the bundles that tests share; needs torch.

``python tests/bundles.py FOLDER`` makes all of them at once, for an environment without torch. Tests there take them
from the folder that the variable FGCLIP_RT_TEST_BUNDLES names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from exporting import SQUARE_CHECKPOINTS
from fgclip_rt import export
from fgclip_rt.export import CalibrationInputs
from helpers import GOLDEN_NAMES, GOLDENS, SQUARE_NAMES, picture, run_program


def make_golden(name: str, folder: Path) -> None:
    """Exports a golden checkpoint that takes images of any shape to ``folder/bundle``."""
    export.export(export.checkpoint_source(str(GOLDENS / name / "checkpoint")), folder / "bundle")


def make_square(name: str, folder: Path) -> None:
    """Exports a golden checkpoint that takes square images to ``folder/name``, in three precisions."""
    checkpoint, files = SQUARE_CHECKPOINTS[name]
    pictures = [Image.fromarray(picture(40 + 3 * seed, 90 - seed, seed)) for seed in range(16)]
    texts = [
        f"{count} {thing}" for count in ("a photo of one", "two", "nine") for thing in ("cat", "DOG!", "blue", "猫")
    ]
    inputs = CalibrationInputs(pictures, [*texts, "", "a", "naïve café", "end of it"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgclip_rt.export.bundle.probe.IMAGE_SIZES", ((150, 200), (20, 1500), (1, 1)))
        source = export.checkpoint_source(checkpoint, files=files)
        export.export(source, folder / name, ("fp32", "fp16", "int8"), inputs=inputs)


def make_pocket(folder: Path) -> None:
    """Exports the pocket model as a user does to ``folder/made``, and writes the answer to ``folder/result.json``."""
    precisions = [part for precision in ("fp32", "fp16", "int8") for part in ("--precision", precision)]
    (folder / "made").mkdir()
    result = run_program("export", "--model", "fg-clip2-pocket", *precisions, "--json", cwd=folder / "made")
    (folder / "result.json").write_text(json.dumps({**vars(result), "args": []}))


#: Functions that fill an empty folder, by the bundle's name.
MAKERS: dict[str, Callable[[Path], None]] = {
    **{name: partial(make_golden, name) for name in GOLDEN_NAMES},
    **{name: partial(make_square, name) for name in SQUARE_NAMES},
    "pocket": make_pocket,
}


def main(folder: Path) -> None:
    for name, make in MAKERS.items():
        (folder / name).mkdir(parents=True)
        make(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
