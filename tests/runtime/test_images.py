"""Images of every kind are read alike, cut up exactly, and refused in one sentence when they cannot be read."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from fgclip_rt.errors import ArgumentError, ImageError
from fgclip_rt.images import load_image
from fgclip_rt.manifest import NaflexSpec
from fgclip_rt.model import Model
from fgclip_rt.preparation import NaflexPreparation
from helpers import assert_one_sentence, picture
from slow_resize import resize

RGB = picture(48, 64)
PREPARATION = NaflexPreparation(NaflexSpec(16, 3, "bilinear", (128, 256, 576, 784, 1024), 16_384, False))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_every_kind_of_source_gives_the_same(kind: str, tmp_path: Path) -> None:
    data = encode(Image.fromarray(RGB), kind)
    path = tmp_path / "image"
    path.write_bytes(data)
    for source in (str(path), path, data, Image.open(path), Image.fromarray(RGB), RGB, np.asfortranarray(RGB)):
        np.testing.assert_array_equal(pixels(load_image(source)), RGB)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(pixels(load_image(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "kind"), [("1", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("CMYK", "JPEG")])
def test_modes_survive_a_file(mode: str, kind: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    data = encode(image, kind)
    np.testing.assert_array_equal(pixels(load_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_alpha_is_dropped() -> None:
    alpha = np.arange(RGB[..., 0].size).reshape(RGB.shape[:2]) % 256
    image = Image.fromarray(np.dstack([RGB, alpha.astype(np.uint8)]))
    np.testing.assert_array_equal(pixels(load_image(encode(image, "PNG"))), RGB)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparency_of_a_palette_changes_no_colour(transparency: int | bytes | None) -> None:
    image = Image.fromarray(RGB).quantize(256)
    options = {} if transparency is None else {"transparency": transparency}
    data = encode(image, "PNG", **options)
    assert ("transparency" in Image.open(io.BytesIO(data)).info) == bool(options)
    np.testing.assert_array_equal(pixels(load_image(data)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_an_image_of_32_bit_values_is_refused(dtype: type) -> None:
    image = Image.fromarray(np.full((4, 4), 200, dtype))
    for source in (image, encode(image, "TIFF")):
        with pytest.raises(ImageError) as info:
            load_image(source)
        assert_one_sentence(info.value, "the image", "32-bit", "8 bits", code="image_unsupported")


def test_a_16_bit_pgm_keeps_its_upper_8_bits() -> None:
    data = b"P5 2 1 65535 " + np.array([0x0102, 0xFF00], ">u2").tobytes()
    np.testing.assert_array_equal(pixels(load_image(data))[0, :, 0], [0x01, 0xFF])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_images_keep_their_upper_8_bits(kind: str) -> None:
    values = np.array([[0, 255, 256, 257], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], np.uint16)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    image = Image.fromarray(values)
    for source in (image, encode(image, kind)):
        np.testing.assert_array_equal(pixels(load_image(source)), expected)


def on_its_side(kind: str) -> bytes:
    """A file whose EXIF data asks for a turn of 90° clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(RGB), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_counts_only_when_asked(kind: str) -> None:
    data = on_its_side(kind)
    stored = pixels(load_image(data))
    assert stored.shape == RGB.shape
    np.testing.assert_array_equal(pixels(load_image(data, exif_transpose=True)), np.rot90(stored, k=-1))


@pytest.mark.parametrize("exif_transpose", [False, True])
def test_a_tiff_is_turned_once_because_pillow_does(exif_transpose: bool) -> None:
    image = load_image(on_its_side("TIFF"), exif_transpose=exif_transpose)
    np.testing.assert_array_equal(pixels(image), np.rot90(RGB, k=-1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(kind: str, share: float, tmp_path: Path) -> None:
    data = encode(Image.fromarray(picture(200, 300)), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError) as info:
        load_image(path)
    assert_one_sentence(info.value, str(path), code="image_damaged")


@pytest.mark.parametrize(
    ("make", "reason", "code"),
    [
        (lambda path: path.touch(), "is empty", "image_damaged"),
        (lambda path: path.write_text("a cat\n" * 20), "not an image", "image_unsupported"),
        (lambda path: path.write_bytes(bytes(range(256))), "not an image", "image_unsupported"),
        (lambda path: path.mkdir(), "cannot be read", "image_unreadable"),
        (lambda path: path, "No such file", "image_unreadable"),
    ],
    ids=["empty", "text", "bytes", "directory", "missing"],
)
def test_what_is_no_image_is_refused_by_its_path(
    make: Callable[[Path], object], reason: str, code: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.jpg"
    make(path)
    for source in (path, str(path)):
        with pytest.raises(ImageError) as info:
            load_image(source)
        assert_one_sentence(info.value, str(path), reason, code=code)


@pytest.mark.parametrize(
    ("source", "reason", "code"),
    [
        (b"", "is empty", "image_damaged"),
        (b"no image at all", "not an image", "image_unsupported"),
        (encode(Image.fromarray(RGB), "PNG")[:200], "is damaged", "image_damaged"),
        (RGB / 255, "float64", "image_unsupported"),
        (RGB.astype(np.int64), "int64", "image_unsupported"),
        (RGB[..., 0], "[48, 64]", "image_unsupported"),
        (np.dstack([RGB, RGB[..., 0]]), "[48, 64, 4]", "image_unsupported"),
        (RGB[:0], "[0, 64, 3]", "image_unsupported"),
        (RGB[:, :0], "[48, 0, 3]", "image_unsupported"),
        (None, "NoneType", "image_unsupported"),
        (7, "int", "image_unsupported"),
    ],
)
def test_what_is_no_image_is_refused_by_its_index(model: Model, source: Any, reason: str, code: str) -> None:
    with pytest.raises(ImageError) as info:
        model.embed_images([RGB, RGB, source])
    assert_one_sentence(info.value, "image 2", reason, code=code)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "TGA", "DDS", "JPEG2000", "AVIF"]
)
def test_damaged_files_are_read_or_refused_and_nothing_else(kind: str) -> None:
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    intact = encode(Image.fromarray(RGB), kind)
    generator = random.Random(kind)
    refused = 0
    for _ in range(400):
        data = bytearray(intact)
        for _ in range(generator.choice([1, 2, 8])):
            # Headers are short, and most faults arise in them.
            data[generator.randrange(generator.choice([min(200, len(data)), len(data)]))] = generator.randrange(256)
        try:
            assert load_image(bytes(data)).mode == "RGB"
        except ImageError as error:
            assert_one_sentence(error, "the image")
            refused += 1
    assert refused > 0


def test_an_image_whose_file_was_closed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(Image.fromarray(RGB), "PNG"))
    with Image.open(path) as image:
        pass
    with pytest.raises(ImageError) as info:
        load_image(image)
    assert_one_sentence(info.value, "the image")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [101, 201], ids=["just over", "over twice"])
@pytest.mark.parametrize("source", ["path", "bytes", "Pillow image"])
def test_images_over_pillows_limit_are_refused_until_it_is_raised(
    source: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (width, 10))
    path = tmp_path / "bomb.png"
    image.save(path)
    sources = {"path": path, "bytes": path.read_bytes(), "Pillow image": image}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError) as info:
        load_image(sources[source], name=str(path))
    assert_one_sentence(info.value, str(path), "1,000", "MAX_IMAGE_PIXELS", code="image_too_large")
    for limit in (10 * width, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_image(sources[source]).size == (width, 10)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (16, 3000)])
def test_extreme_sizes_embed(model: Model, size: tuple[int, int]) -> None:
    [vector] = model.embed_images(picture(*size))
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


SIDES = st.integers(1, 700)


def released_bucket(width: int, height: int) -> int:
    """FG-CLIP 2's ``determine_max_value``."""
    patches = (width // 16) * (height // 16)
    if patches > 784:
        return 1024
    if patches > 576:
        return 784
    if patches > 256:
        return 576
    return 256 if patches > 128 else 128


@given(width=SIDES, height=SIDES)
@settings(max_examples=500)
def test_buckets_follow_the_released_rule(width: int, height: int) -> None:
    assert PREPARATION.bucket(width, height) == released_bucket(width, height)


@pytest.mark.parametrize("patches", [128, 256, 576, 784, 1024])
def test_a_bucket_holds_exactly_its_number_of_patches(patches: int) -> None:
    assert PREPARATION.bucket(16 * patches + 15, 31) == patches
    following = 1024 if patches == 1024 else PREPARATION.spec.buckets[PREPARATION.spec.buckets.index(patches) + 1]
    assert PREPARATION.bucket(16 * (patches + 1), 16) == following


@given(width=SIDES, height=SIDES, limit=st.none() | st.integers(1, 2000))
@settings(max_examples=60)
def test_patches_reassemble_to_the_resized_image(width: int, height: int, limit: int | None) -> None:
    image = Image.fromarray(picture(height, width))
    patches = PREPARATION(image, limit)
    rows, columns = patches.grid
    assert patches.image_size == (height, width)
    assert patches.bucket == (limit or released_bucket(width, height))
    assert patches.pixels.shape == (rows * columns, 768)
    assert 1 <= rows * columns <= patches.bucket
    whole = patches.pixels.reshape(rows, columns, 16, 16, 3).swapaxes(1, 2).reshape(16 * rows, 16 * columns, 3)
    np.testing.assert_array_equal(whole, resize(np.asarray(image), 16 * rows, 16 * columns, "bilinear"))


@pytest.mark.parametrize("limit", [0, -1, 16_385, 1.5, 256.0, True, "256"])
def test_patch_counts_out_of_range_are_refused(model: Model, limit: Any) -> None:
    for call in (model.embed_images, model.dense_features):
        with pytest.raises(ArgumentError, match="max_num_patches") as info:
            call(RGB, max_num_patches=limit)
        assert_one_sentence(info.value, repr(limit).strip("'"))


@pytest.mark.parametrize("limit", [1, 16_384, np.int64(100)])
def test_patch_counts_in_range_are_taken(limit: int) -> None:
    patches = PREPARATION(Image.fromarray(RGB), limit)
    assert patches.bucket == limit
    assert len(patches.pixels) <= limit
