"""Images that the C library resizes for the Python runtime."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fgclip_rt
from fgclip_rt.errors import ArgumentError, ImageError, NativeError
from fgclip_rt.manifest import NaflexSpec, SquareSpec
from fgclip_rt.native.library import VARIABLE, Library
from fgclip_rt.native.patches import native_patches
from fgclip_rt.preparation import preparation
from helpers import picture, run_command

SQUARE = SquareSpec(patch_size=16, channels=3, resample="bicubic", exif_transpose=False, image_size=224)
NAFLEX = NaflexSpec(
    patch_size=16, channels=3, resample="bilinear", buckets=(128, 256), max_num_patches=1024, exif_transpose=False
)


@pytest.fixture(autouse=True)
def named(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(build / "libfgclip_rt.so"))


# The last one lies in more than one piece of Pillow's memory.
@pytest.mark.parametrize("size", [(1, 1), (40, 90), (300, 200), (16, 16), (1600, 1200), (3, 5000), (2200, 2000)])
@pytest.mark.parametrize("spec", [SQUARE, NAFLEX], ids=["square", "naflex"])
def test_patches_are_those_of_pillow(library: Library, spec: SquareSpec | NaflexSpec, size: tuple[int, int]) -> None:
    width, height = size
    image = Image.fromarray(picture(height, width))
    expected, found = preparation(spec)(image), preparation(spec, native_patches(library))(image)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert (found.grid, found.image_size, found.bucket) == (expected.grid, expected.image_size, expected.bucket)


def test_pillow_keeps_the_tested_images_in_one_piece_and_in_several() -> None:
    Image.new("RGB", (1600, 1200)).__arrow_c_array__()
    with pytest.raises(ValueError, match="not contiguous"):
        Image.new("RGB", (2200, 2000)).__arrow_c_array__()


def test_vectors_are_equal(shipped_path: Path, tmp_path: Path) -> None:
    sizes = [(40, 90), (300, 200), (900, 700), (61, 61)]
    images = [Image.fromarray(picture(height, width, seed)) for seed, (height, width) in enumerate(sizes)]
    images[0].save(tmp_path / "a.jpg", exif=Image.Exif())
    sources = [tmp_path / "a.jpg", *images, np.asarray(images[1])]
    python, native = (
        fgclip_rt.load(shipped_path, device="cpu", threads=1, preparation=name) for name in ("python", "native")
    )
    np.testing.assert_array_equal(native.embed_images(sources), python.embed_images(sources))
    np.testing.assert_array_equal(native.dense(images[2]).features(), python.dense(images[2]).features())


def test_commands_take_it(shipped_path: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(picture(300, 200)).save(image)
    vectors = []
    for name in ("python", "native"):
        output = tmp_path / f"{name}.npy"
        run_command("embed", shipped_path, image, "--output", output, "--preparation", name, "--device", "cpu")
        vectors.append(np.load(output))
    np.testing.assert_array_equal(*vectors)
    again = ("embed", shipped_path, image, "--output", output, "--overwrite")
    message = run_command(*again, "--preparation", "c", status=1).stderr
    assert message == "fgclip-rt: preparation 'c' is unknown; choose python or native.\n"


def test_an_image_that_is_too_tall_is_an_error_of_that_image(library: Library) -> None:
    strip = Image.new("RGB", (1, 700_000))
    for prepare in (preparation(SQUARE), preparation(SQUARE, native_patches(library))):
        with pytest.raises(ImageError, match="1×700,000 pixels is too tall to become 224 wide") as caught:
            prepare(strip)
        assert caught.value.code == "image_too_large"


def test_a_missing_library_is_refused(shipped_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = fgclip_rt.load(shipped_path, device="cpu", threads=1, preparation="native")
    pickled = pickle.dumps(model)
    np.testing.assert_array_equal(
        pickle.loads(pickled).embed_images(picture(50, 60)), model.embed_images(picture(50, 60))
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(NativeError, match=r"absent\.so") as caught:
        fgclip_rt.load(shipped_path, device="cpu", preparation="native")
    assert caught.value.code == "native_missing"
    # A pickled model keeps how it prepares.
    with pytest.raises(NativeError, match=r"absent\.so"):
        pickle.loads(pickled)
    with pytest.raises(ArgumentError, match="preparation 'rust' is unknown; choose python or native"):
        fgclip_rt.load(shipped_path, device="cpu", preparation="rust")


FORKING = """
import os, sys
import numpy as np
import fgclip_rt
model = fgclip_rt.load(sys.argv[1], device="cpu", threads=1, preparation="native")
image = np.arange(30000, dtype=np.uint8).reshape(100, 100, 3)
expected = model.embed_images(image)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(model.embed_images(image), expected) else 7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_prepares_too(shipped_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKING, str(shipped_path)], check=True, timeout=120)
