"""``fgclip-rt embed``: images and texts to a file of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from ..ahead import map_ahead
from ..errors import ArgumentError, ImageError
from ..images import load_image
from ..vectors import Rows, check_format, write_rows
from . import options
from .console import open_model, printable, progress_bars, say, say_json, set_max_image_pixels, warn
from .inputs import find_images, read_texts, warn_truncated


def counted(lines: list[str], begin: Callable[[str, int], Callable[[], None]]) -> Iterator[str]:
    """The lines, with a progress bar that follows them."""
    done = begin("texts", len(lines))
    for line in lines:
        yield line
        done()


def run(
    bundle: options.Bundle,
    images: Annotated[list[Path] | None, typer.Argument(help="Image files, or folders of them.")] = None,
    output: Annotated[Path, typer.Option(help="File to write: .npy, .npz or .parquet.")] = ...,  # type: ignore[assignment]
    texts: Annotated[Path | None, typer.Option(help="File of texts, one a line, UTF-8.")] = None,
    walk_type: Annotated[str, typer.Option(help="Kind of text: short, box or long.")] = "short",
    max_num_patches: options.MaxNumPatches = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per run.  [default: by their patches]")] = None,
    normalize: Annotated[bool, typer.Option(help="Scale vectors to length one.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")] = False,
    exif_transpose: options.ExifTranspose = False,
    max_image_pixels: options.MaxImagePixels = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    backend: options.Backend = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write the vectors of images and texts to a file that also says which row is which input.

    An image that cannot be read is reported and left out, unless --strict is given. A .npy file holds the vectors
    only, and OUTPUT.json beside it says which row is which.
    """
    check_format(output, overwrite)
    if not images and texts is None:
        raise ArgumentError("there is nothing to embed; give image files, folders, or --texts FILE.")
    set_max_image_pixels(max_image_pixels)
    files = find_images(images or [])
    lines = read_texts(texts) if texts is not None else []
    model = open_model(bundle, device, precision, threads, backend)
    model.tokenizer.walk_type(walk_type)
    truncated = warn_truncated(model, lines, walk_type)

    kept: list[Path] = []
    skipped: list[tuple[Path, str]] = []

    def read(path: Path) -> Image.Image | ImageError:
        try:
            return load_image(path, exif_transpose=exif_transpose)
        except ImageError as error:
            return error

    def readable(done: Callable[[], None]) -> Iterator[Image.Image]:
        for path, image in zip(files, map_ahead(read, files), strict=True):
            if not isinstance(image, ImageError):
                kept.append(path)
                yield image
            elif strict:
                raise image
            else:
                skipped.append((path, str(image)))
                warn(f"fgclip-rt: skipped: {image}")
            done()

    with progress_bars() as begin:
        opened = readable(begin("images", len(files))) if files else iter(())
        image_vectors = model.embed_images(opened, max_num_patches, batch_size, normalize)
        text_vectors = model.embed_texts(counted(lines, begin) if lines else [], walk_type, normalize)
    if files and not kept:
        raise ImageError(f"none of the {len(files)} images could be read, so {output} was not written.")

    rows = Rows(
        kinds=["image"] * len(kept) + ["text"] * len(lines),
        inputs=[printable(str(path)) for path in kept] + lines,
        vectors=np.concatenate([image_vectors, text_vectors]),
    )
    write_rows(rows, output)
    if json:
        say_json(
            {
                "output": str(output),
                "shape": list(rows.vectors.shape),
                "rows": rows.index(),
                "skipped": [{"input": str(path), "error": error} for path, error in skipped],
                "truncated_texts": truncated,
            }
        )
        return
    say(
        f"{output}: float32 {list(rows.vectors.shape)}, {len(kept)} of images and {len(lines)} of texts"
        + (f"; images skipped: {len(skipped)}" if skipped else "")
        + (f"; texts truncated: {len(truncated)}" if truncated else "")
    )
