"""``make bench-native``: the C library beside this package, on the same bundle, inputs and threads, in turns."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnxruntime
from PIL import Image

from fgclip_rt.errors import BenchmarkError
from fgclip_rt.machine import this_machine, vector_extensions, versions
from fgclip_rt.native.library import find_library, rgb_image
from fgclip_rt.preparation import pillow_patches, target_grid
from fgclip_rt.turns import take_turns, timed

from . import readme
from .native_figures import RESULTS, Figures, Pair
from .start import start_in_turns
from .suite import make_bundle

_SIDES = ((1600, 1200), (4000, 3000))
_PATCHES = (256, 1024)
_PATCH = 16

#: Images of the rate from pixels to vectors, as the web and phones have them. The last one starts, in 256 patches.
_PHOTOS = ((640, 480), (480, 640), (500, 375), (1024, 768), (320, 240), (800, 600), (427, 640), (256, 256))

#: The Python side, which does in each mode what ``native.c`` does.
_PYTHON = """
import sys
import fgclip_rt
from PIL import Image
mode, bundle, *rest = sys.argv[1:]
model = fgclip_rt.load(bundle, device="cpu")
if mode == "start":
    model.embed_images(Image.open(rest[0]))
elif mode == "rate":
    from time import perf_counter
    import numpy as np
    images = [np.asarray(Image.open(path)) for path in rest[1:]]
    images = [images[index % len(images)] for index in range(int(rest[0]))]
    model.embed_images(images[:len(rest) - 1])
    start = perf_counter()
    model.embed_images(images)
    print(perf_counter() - start)
else:
    from fgclip_rt.benchmarks.memory import resident_memory
    image = Image.open(rest[0])
    model.embed_images(image)
    model.dense(image).features()
    model.embed_texts("a cat")
    print(resident_memory())
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results and page."""
    parser = argparse.ArgumentParser(prog="make bench-native", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of README.md and results/")
    parser.add_argument("--library", type=Path, default=Path("native/build/libfgclip_rt.so"))
    parser.add_argument("--bundles", type=Path, help="folder from which bundles are taken, and in which they are kept")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as temporary:
        bundles = options.bundles or Path(temporary)
        pocket, base = (make_bundle(bundles, name, ("fp32",)) for name in ("fg-clip2-pocket", "fg-clip2-base"))
        figures = measure(options.library, pocket, base, Path(temporary), options.rounds, options.images)
    path = options.folder / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    readme.write(options.folder)


def measure(library: Path, pocket: Path, base: Path, folder: Path, rounds: int, images: int) -> Figures:
    """Measure all figures.

    Args:
        library: the C library.
        pocket: a small bundle, for starts and rates.
        base: a bundle of real size, for memory.
        folder: a folder for the program and its inputs.
        rounds: number of turns of each side.
        images: number of images of the rate.
    """
    program = _compiled(library.resolve(), folder)
    sides = {"C": [str(program)], "Python": [sys.executable, "-P", "-c", _PYTHON]}
    photos = [str(_photo(folder, *size)) for size in _PHOTOS]
    # The C library opens the libonnxruntime of Python's package, so that both run the same kernels.
    os.environ["FGCLIP_RT_ONNXRUNTIME"] = str(_onnxruntime())

    def printed(mode: str, bundle: Path, *rest: object) -> dict[str, Callable[[], float]]:
        return {
            name: partial(_printed, [*command, mode, str(bundle), *map(str, rest)]) for name, command in sides.items()
        }

    _say("starts")
    commands = {name: [*command, "start", str(pocket), photos[-1]] for name, command in sides.items()}
    starts = start_in_turns(commands, rounds)
    pairs = list(_resizes(library, rounds))
    _say(f"{images} images")
    rate = take_turns(printed("rate", pocket, images, *photos), max(1, rounds // 5))
    pairs.append(_pair(f"{images:,} images in memory to vectors, fg-clip2-pocket", "s", 1.0, rate))
    _say("memory")
    memory = take_turns(printed("memory", base, photos[-1]), max(1, rounds // 5))
    pairs.append(_pair("resident memory with vision, dense and text, fg-clip2-base", "bytes", 0.75, memory))
    machine = this_machine()
    return Figures(
        format="fgclip-rt-bench-native",
        format_version=1,
        machine={
            "cpu": machine.cpu,
            "cores": str(machine.cores),
            "flags": vector_extensions(machine.flags),
        },
        versions=versions("onnxruntime", "numpy", "pillow") | {"libfgclip_rt": find_library(library).version},
        pairs=tuple(pairs),
        starts=starts,
        library=library.stat().st_size,
    )


def _resizes(library: Path, rounds: int) -> Iterator[Pair]:
    """Resize and patches of an image in memory; the bytes are compared first."""
    opened = find_library(library)
    draw = np.random.default_rng(0)
    for width, height in _SIDES:
        pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
        image, described = Image.fromarray(pixels), rgb_image(pixels)
        for patches in _PATCHES:
            name = f"{width:,}×{height:,} pixels to {patches:,} patches"
            _say(name)
            grid = target_grid(height, width, _PATCH, patches)
            native = partial(opened.resize_to_patches, described, grid, _PATCH, "bilinear")
            python = partial(pillow_patches, image, grid, _PATCH, "bilinear")
            if not np.array_equal(native(), python()):
                raise BenchmarkError(f"the patches of {width}×{height} pixels differ; run the tests of the C library.")
            turns = {"C": partial(timed, native, 3), "Python": partial(timed, python, 3)}
            yield _pair(name, "s", 0.35, take_turns(turns, rounds, warm_up=1))


def _pair(name: str, unit: Literal["s", "bytes"], target: float, measured: dict[str, list[float]]) -> Pair:
    return Pair(name, unit, target, tuple(measured["C"]), tuple(measured["Python"]))


def _compiled(library: Path, folder: Path) -> Path:
    """``native.c`` as a program that runs the library."""
    source = Path(__file__).resolve().with_suffix(".c")
    program, include = folder / "native", source.parents[2] / "native/include"
    command = ["cc", "-std=c99", "-D_POSIX_C_SOURCE=199309L", "-O2", f"-I{include}", str(source)]
    subprocess.run([*command, "-o", str(program), str(library), f"-Wl,-rpath,{library.parent}"], check=True)
    return program


def _photo(folder: Path, width: int, height: int) -> Path:
    """A smooth picture as a PPM file."""
    path = folder / f"{width}x{height}.ppm"
    small = np.random.default_rng(width + height).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def _onnxruntime() -> Path:
    """The libonnxruntime of Python's package."""
    (path,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    return path


def _printed(command: Sequence[str]) -> float:
    """The number that a program prints."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise BenchmarkError(f"{command[0]} failed ({answer.stderr.strip()}); mend it, and measure again.")
    return float(answer.stdout)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
