"""Arguments and options that several commands take, as annotations for typer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArgumentError

Bundle = Annotated[Path, typer.Argument(help="Bundle folder, made by 'fgclip-rt export'.", metavar="BUNDLE")]
Weights = Annotated[
    Path | None,
    typer.Option(help="File of weights (.pt) of a model that is on no hub, such as fineclip-vitb16.  [default: none]"),
]
Config = Annotated[
    Path | None, typer.Option(help="model_config.json of a file of weights given as the model.  [default: none]")
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="CLIP's tokenizer.json for a file of weights.  [default: the one beside it, or the Hub's]"),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str | None, typer.Option(help="One of the bundle's precisions.  [default: its first]")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.  [default: one for each usable core]")]
Backend = Annotated[
    str | None,
    typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx.  [default: engines where they fit, else onnxruntime]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
MaxNumPatches = Annotated[
    int | None,
    typer.Option("--max-num-patches", help="Patches to resize every image to.  [default: by each image's own size]"),
]
MaxImagePixels = Annotated[
    int | None,
    typer.Option("--max-image-pixels", help="Largest image to decode, in pixels.  [default: Pillow's, 89,478,485]"),
]
ExifTranspose = Annotated[
    bool,
    typer.Option("--exif-transpose", help="Turn images upright by their EXIF orientation; the reference does not."),
]


def check_goes_with_checkpoint(checkpoint: str | None, *files: Path | None) -> None:
    """Refuse ``--weights``, ``--config`` and ``--tokenizer`` that go with no ``--checkpoint``."""
    if checkpoint is None and any(files):
        raise ArgumentError("--weights, --config and --tokenizer go with a checkpoint; name it with --checkpoint.")
