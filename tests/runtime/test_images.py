"""Images of every kind are read alike, cut up exactly, and refused in one sentence when they cannot be read."""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import BmpImagePlugin, EpsImagePlugin, Image, ImageFile, features
from PIL.PngImagePlugin import PngInfo

import fgclip_rt
from fgclip_rt import image_files
from fgclip_rt.errors import ArgumentError, ImageError
from fgclip_rt.images import as_sources, image_size, load_image, read_image
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


def on_its_side(kind: str, orientation: int = 6, image: Image.Image | None = None, **options: Any) -> bytes:
    """A file whose EXIF data asks for a turn, by default of 90° clockwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image or Image.fromarray(RGB), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_counts_only_when_asked(kind: str) -> None:
    data = on_its_side(kind)
    stored = pixels(load_image(data))
    assert stored.shape == RGB.shape
    np.testing.assert_array_equal(pixels(load_image(data, exif_transpose=True)), np.rot90(stored, k=-1))


@pytest.mark.parametrize("exif_transpose", [False, True])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_tiff_is_turned_once_because_pillow_does(exif_transpose: bool, compression: str) -> None:
    data = on_its_side("TIFF", compression=compression)
    decoded = read_image(data, exif_transpose=exif_transpose)
    np.testing.assert_array_equal(pixels(decoded.rgb), np.rot90(RGB, k=-1))
    assert decoded.orientation == 1


#: What each orientation asks for, by the numbers of EXIF.
UPRIGHT: dict[int, Callable[[Any], Any]] = {
    1: lambda rgb: rgb,
    2: np.fliplr,
    3: lambda rgb: np.rot90(rgb, 2),
    4: np.flipud,
    5: lambda rgb: rgb.swapaxes(0, 1),
    6: lambda rgb: np.rot90(rgb, -1),
    7: lambda rgb: np.rot90(rgb, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_turns_every_kind_of_file_alike(orientation: int) -> None:
    expected = UPRIGHT[orientation](RGB)
    for kind in ("PNG", "TIFF"):
        image = load_image(on_its_side(kind, orientation), exif_transpose=True)
        np.testing.assert_array_equal(pixels(image), expected)
    stored = pixels(load_image(encode(Image.fromarray(RGB), "JPEG")))
    turned = load_image(on_its_side("JPEG", orientation), exif_transpose=True)
    np.testing.assert_array_equal(pixels(turned), UPRIGHT[orientation](stored))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def png_with_texts(texts: dict[str, str], **options: Any) -> bytes:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text, zip=True)
    return encode(Image.fromarray(RGB), "PNG", pnginfo=info, **options)


def raw_profile(data: bytes) -> str:
    """EXIF data as ImageMagick writes it into a text of a PNG file."""
    return f"\nexif\n{len(data):8}\n{data.hex()}\n"


def exif_bytes() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(RGB), "JPEG", xmp=XMP),
        png_with_texts({"XML:com.adobe.xmp": XMP.decode()}),
        png_with_texts({"Raw profile type exif": raw_profile(exif_bytes())}),
        # The large text is left out, and the orientation is not.
        png_with_texts({"Comment": "a" * 2_000_000, "Raw profile type exif": raw_profile(exif_bytes())}),
    ],
    ids=["XMP in JPEG", "XMP in PNG", "raw profile", "raw profile beside a large text"],
)
def test_an_orientation_is_found_wherever_pillow_finds_it(data: bytes) -> None:
    stored, turned = (read_image(data, exif_transpose=flag) for flag in (False, True))
    assert (stored.orientation, turned.orientation) == (6, 1)
    np.testing.assert_array_equal(pixels(turned.rgb), np.rot90(pixels(stored.rgb), k=-1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_was_turned_is_not_turned_again(kind: str) -> None:
    once = load_image(on_its_side(kind), exif_transpose=True)
    np.testing.assert_array_equal(pixels(load_image(once, exif_transpose=True)), pixels(once))
    assert read_image(once, exif_transpose=False).orientation == 1


def test_an_image_that_was_not_turned_still_can_be() -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) << 8
    for data in (on_its_side("PNG"), on_its_side("PNG", image=Image.fromarray(values))):
        stored = load_image(data)
        np.testing.assert_array_equal(pixels(load_image(stored, exif_transpose=True)), np.rot90(pixels(stored), k=-1))


def test_damaged_exif_data_does_not_lose_the_picture() -> None:
    data = encode(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0 no TIFF header")
    for exif_transpose in (False, True):
        decoded = read_image(data, exif_transpose=exif_transpose)
        np.testing.assert_array_equal(pixels(decoded.rgb), RGB)
        assert decoded.orientation == 1


@pytest.mark.parametrize("exif_transpose", [False, True])
def test_16_bit_files_are_read_turned_or_not(exif_transpose: bool) -> None:
    values = np.array([[0x0102, 0x7FFF, 0xFF00]], np.uint16)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    pgm = b"P5 3 1 65535 " + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(load_image(pgm, exif_transpose=exif_transpose)), expected)
    png = on_its_side("PNG", image=Image.fromarray(values))
    turned = np.rot90(expected, k=-1) if exif_transpose else expected
    np.testing.assert_array_equal(pixels(load_image(png, exif_transpose=exif_transpose)), turned)


# Sources in memory


def test_files_in_memory_and_open_files_are_read(tmp_path: Path) -> None:
    data = encode(Image.fromarray(RGB), "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(data)
    spooled = tempfile.SpooledTemporaryFile()  # noqa: SIM115 (closed below)
    spooled.write(data)  # and not at its beginning any more
    with path.open("rb") as file, spooled:
        for source in (bytearray(data), memoryview(data), io.BytesIO(data), file, spooled, Stream(data), Upload(data)):
            for _ in range(2 if not isinstance(source, Stream) else 1):
                np.testing.assert_array_equal(pixels(load_image(source)), RGB)
        assert not file.closed


class Stream:
    """A file object that cannot seek, such as the body of an HTTP response."""

    def __init__(self, data: bytes) -> None:
        self.file_of_bytes = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.file_of_bytes.read(size)


class Upload:
    """An upload as starlette passes it on: it reads asynchronously, and its file does not."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


class AsyncOnly:
    async def read(self) -> bytes:
        return b""


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"1")
    file.close()
    return file


@pytest.mark.parametrize(
    ("source", "parts", "code"),
    [
        (io.BytesIO(), ["is empty"], "image_damaged"),
        (bytearray(), ["is empty"], "image_damaged"),
        (io.StringIO("a cat"), ["str instead of bytes", "binary mode"], "image_unsupported"),
        (closed_file(), ["closed file"], "image_unreadable"),
        (AsyncOnly(), ["type AsyncOnly", "open file"], "image_unsupported"),
    ],
)
def test_what_is_no_open_file_of_an_image_is_refused(source: Any, parts: list[str], code: str) -> None:
    with pytest.raises(ImageError) as info:
        load_image(source)
    assert_one_sentence(info.value, "the image", *parts, code=code)


@pytest.mark.parametrize("make", [bytearray, memoryview, io.BytesIO, Stream, Upload])
def test_one_source_is_a_list_of_one(make: Callable[[bytes], Any]) -> None:
    source = make(b"123")
    assert list(as_sources(source)) == [source]
    assert list(as_sources([source, source])) == [source, source]


def test_arrays_of_images_are_several_and_an_array_of_pixels_is_one() -> None:
    assert len(list(as_sources(np.stack([RGB, RGB])))) == 2
    assert list(as_sources(np.array(["a.jpg", "b.jpg"]))) == ["a.jpg", "b.jpg"]
    assert len(list(as_sources(RGB[..., 0]))) == 1


# Metadata


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(RGB), "PNG", icc_profile=bytes(2_000_000)),
        png_with_texts({"Comment": "a" * 2_000_000}),
        png_with_texts({f"Comment {index}": "a" * 1_000_000 for index in range(70)}),
        png_with_texts({"Comment": "é" * 2_000_000}, icc_profile=bytes(2_000_000)),
    ],
    ids=["colour profile", "text", "many texts", "both"],
)
def test_a_png_with_large_metadata_is_decoded_without(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"too large|Too much"):
        Image.open(io.BytesIO(data)).load()
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for source in (data, path):
        np.testing.assert_array_equal(pixels(load_image(source)), RGB)


def test_a_text_behind_the_pixels_is_left_out_too() -> None:
    data = png_with_texts({"Comment": "a" * 2_000_000})
    start = data.index(b"zTXt") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    last = data.index(b"IEND") - 4
    np.testing.assert_array_equal(
        pixels(load_image(data[:start] + data[end:last] + data[start:end] + data[last:])), RGB
    )


def test_large_metadata_hides_no_damage() -> None:
    data = png_with_texts({"Comment": "a" * 2_000_000})
    with pytest.raises(ImageError) as info:
        load_image(data[: data.index(b"IDAT") + 100])
    assert info.value.code == "image_damaged"


# Formats

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (EPS, "EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(26) + EPS, "EPS"),
        (b"\xd7\xcd\xc6\x9a\0\0" + bytes(40), "WMF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"BUFR" + bytes(40), "BUFR"),
    ],
)
def test_a_format_that_is_not_decoded_in_the_process_is_never_opened(
    data: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    monkeypatch.setitem(Image.OPEN, kind, (must_not_open, Image.OPEN[kind][1]))
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(ImageError) as info:
            load_image(source, "photo.jpg")
        assert_one_sentence(info.value, "photo.jpg", f"format {kind}", "allow_image_format", code="image_unsupported")


def must_not_open(*_: Any) -> Any:
    raise AssertionError("the decoder was called")


def test_an_eps_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("gs", "djpeg"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for source in (EPS, Image.open(io.BytesIO(EPS))):
        with pytest.raises(ImageError):
            load_image(source)
    assert not (tmp_path / "started").exists()


def test_every_format_that_is_read_is_decoded_by_pillow_or_a_plugin() -> None:
    Image.init()
    # Two need olefile, two are plugins' and MPO is opened by JPEG's decoder.
    assert image_files._FORMATS - set(Image.OPEN) <= {"FPX", "HEIF", "JXL", "MIC", "MPO"}
    refused = set(Image.OPEN) - image_files._FORMATS
    assert refused - {"HEIF"} == {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


def test_the_list_of_formats_can_be_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoGreys(ImageFile.ImageFile):
        format = "TWOGREYS"

        def _open(self) -> None:
            self._size, self._mode = (2, 1), "L"
            self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 8, ("L", 0, 1))]

    Image.init()
    monkeypatch.setattr(Image, "ID", [*Image.ID, "TWOGREYS"])
    monkeypatch.setattr(image_files, "_FORMATS", set(image_files._FORMATS))
    data = b"TWOGREYS\x07\x09"
    with pytest.raises(ArgumentError) as info:
        fgclip_rt.allow_image_format("TWOGREYS")
    assert_one_sentence(info.value, "'TWOGREYS'", "PNG")
    monkeypatch.setitem(Image.OPEN, "TWOGREYS", (TwoGreys, lambda prefix: prefix.startswith(b"TWOGREYS")))
    with pytest.raises(ImageError, match="format TWOGREYS"):
        load_image(data)
    with pytest.raises(ImageError, match="format TWOGREYS"):
        load_image(TwoGreys(io.BytesIO(data)))
    fgclip_rt.allow_image_format("twogreys")
    for source in (data, TwoGreys(io.BytesIO(data))):
        np.testing.assert_array_equal(pixels(load_image(source))[0, :, 0], [7, 9])


def test_an_image_that_its_owner_decoded_is_taken_whatever_its_format() -> None:
    image = ImageFile.ImageFile.__new__(BmpImagePlugin.BmpImageFile)
    Image.Image.__init__(image)
    image.format, image.tile = "EPS", []
    image.im, image._size, image._mode = Image.fromarray(RGB).im, (64, 48), "RGB"
    np.testing.assert_array_equal(pixels(load_image(image)), RGB)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert pixels(load_image(data))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)


# HEIC


def test_a_heic_photo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError) as info:
        load_image(b"\0\0\0\x18ftypheic" + bytes(40), "photo.heic")
    assert_one_sentence(info.value, "photo.heic", "HEIC", "fgclip-rt[heif]", code="image_unsupported")


def heic(orientation: int = 1) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    pillow_heif.from_pillow(Image.fromarray(RGB)).save(file, quality=100, chroma=444, exif=exif.tobytes())
    return file.getvalue()


def test_a_heic_photo_is_read_where_its_decoder_is_and_registers_nothing() -> None:
    data = heic()
    Image.OPEN.pop("HEIF", None)
    assert np.abs(pixels(load_image(data)).astype(int) - RGB).mean() < 8
    assert "HEIF" not in Image.OPEN


@pytest.mark.parametrize("exif_transpose", [False, True])
def test_a_heic_photo_is_turned_once_by_its_decoder(exif_transpose: bool) -> None:
    decoded = read_image(heic(6), exif_transpose=exif_transpose)
    assert decoded.rgb.size == (48, 64)
    assert decoded.orientation == 1
    assert np.abs(pixels(decoded.rgb).astype(int) - np.rot90(RGB, -1)).mean() < 8


def test_a_damaged_heic_photo_is_refused() -> None:
    data = heic()
    for damaged in (data[:60], data[: len(data) // 2], data[:24] + bytes(200)):
        with pytest.raises(ImageError) as info:
            load_image(damaged)
        assert_one_sentence(info.value, "the image", code="image_damaged")


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


FUZZED = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "TGA", "DDS", "JPEG2000", "AVIF", "HEIF")


def assert_read_or_refused(kind: str, count: int, seed: int) -> None:
    """Damage a file in ``count`` ways. Each gives a picture or an ImageError, and none takes long."""
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    # Some formats have no EXIF data; these ignore it.
    intact = heic(6) if kind == "HEIF" else on_its_side(kind)
    generator = random.Random(f"{kind} {seed}")
    outcomes = Counter[str]()
    for number in range(count):
        data = damaged(intact, generator)
        start = time.monotonic()
        try:
            image = load_image(data, exif_transpose=number % 2 == 0)
            assert image.mode == "RGB"
            outcomes["read"] += 1
        except ImageError as error:
            assert_one_sentence(error, "the image")
            outcomes["refused"] += 1
        assert time.monotonic() - start < 30, (kind, number)
    assert outcomes["refused"] > 0


def damaged(intact: bytes, generator: random.Random) -> bytes:
    """A file with bytes changed, cut out or put in."""
    data = bytearray(intact)
    for _ in range(generator.choice([1, 2, 8])):
        # Headers are short, and most faults arise in them.
        at = generator.randrange(generator.choice([min(200, len(data)), len(data)]))
        length = generator.choice([1, 2, 4, 100])
        match generator.randrange(8):
            case 0:
                del data[at : at + length]
            case 1:
                data[at:at] = generator.randbytes(length)
            case 2:
                data[at : at + 4] = generator.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
            case 3:
                del data[max(at, 1) :]
            case _:
                data[at : at + 1] = generator.randbytes(1)
        if not data:
            return intact[:1]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FUZZED)
def test_damaged_files_are_read_or_refused_and_nothing_else(kind: str) -> None:
    assert_read_or_refused(kind, 300, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", FUZZED)
def test_many_damaged_files_are_read_or_refused_and_nothing_else(kind: str, seed: int) -> None:
    assert_read_or_refused(kind, 3000, seed)


def test_sizes_are_read_from_headers(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    data = encode(Image.fromarray(RGB), "PNG")
    path.write_bytes(data[: data.index(b"IDAT") + 100])
    assert image_size(path) == (64, 48)
    for content in (b"", EPS, b"a cat"):
        path.write_bytes(content)
        with pytest.raises(ImageError) as info:
            image_size(path)
        assert_one_sentence(info.value, str(path))


def test_an_image_whose_file_was_closed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(Image.fromarray(RGB), "PNG"))
    with Image.open(path) as image:
        pass
    with pytest.raises(ImageError) as info:
        load_image(image)
    assert_one_sentence(info.value, "the image")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("source", ["path", "bytes", "Pillow image"])
def test_images_are_read_up_to_twice_the_number_that_pillow_warns_from(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (201, 10))
    path = tmp_path / "bomb.png"
    image.save(path)
    sources = {"path": path, "bytes": path.read_bytes(), "Pillow image": image}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError) as info:
        load_image(sources[source], name=str(path))
    size = "201×10" if source == "Pillow image" else "2,010 pixels"
    assert_one_sentence(info.value, str(path), size, "2,000", "MAX_IMAGE_PIXELS", code="image_too_large")
    for limit in (1005, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_image(sources[source]).size == (201, 10)


def test_a_warning_that_its_owner_made_an_error_refuses_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as info:
            load_image(encode(Image.new("RGB", (101, 10)), "PNG"))
    assert info.value.code == "image_too_large"


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
