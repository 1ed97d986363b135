"""Images of every source are prepared alike, in order, turned as the reference does, and within a bound on memory."""

from __future__ import annotations

import io
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgclip_rt import ahead, reading
from fgclip_rt.batching import Failure, Item
from fgclip_rt.manifest import SquareSpec
from fgclip_rt.pixel_budget import PixelBudget
from fgclip_rt.preparation import Patches, SquarePreparation
from fgclip_rt.reading import ImageReader
from helpers import picture

RGB = picture(48, 64)


def reader(exif_transpose: bool = False) -> ImageReader:
    return ImageReader(SquarePreparation(SquareSpec(8, 3, "bicubic", 24, exif_transpose)))


def photo(orientation: int = 6, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def prepared(entries: Iterator[Item[Patches] | Failure]) -> list[Patches]:
    return [entry.value for entry in entries if isinstance(entry, Item)]


STORED = reader().preparation(Image.fromarray(RGB)).pixels
TURNED = reader().preparation(Image.fromarray(np.rot90(RGB, k=-1).copy())).pixels


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_files_are_turned_as_the_reference_does_and_pillow_images_when_asked(
    reference: bool, asked: bool | None, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(photo())
    files = [path, str(path), photo(), bytearray(photo()), io.BytesIO(photo())]
    images: list[Any] = [*files, Image.open(path)]
    expected = [reference if asked is None else asked] * len(files) + [bool(asked)]
    ready = prepared(reader(reference).prepare_ahead(images, exif_transpose=asked))
    for patches, turned in zip(ready, expected, strict=True):
        np.testing.assert_array_equal(patches.pixels, TURNED if turned else STORED)
        assert patches.orientation == (1 if turned else 6)
        assert patches.image_size == ((64, 48) if turned else (48, 64))


def test_pillow_turns_tiffs_so_that_nothing_is_left_to_apply() -> None:
    [patches] = prepared(reader().prepare_ahead(photo(kind="TIFF")))
    np.testing.assert_array_equal(patches.pixels, TURNED)
    assert patches.orientation == 1


def test_memory_may_be_overwritten_and_files_closed_after_they_were_passed() -> None:
    def sources() -> Iterator[Any]:
        image, array, data, file = Image.fromarray(RGB), RGB.copy(), bytearray(photo()), io.BytesIO(photo())
        yield image
        image.paste(0, (0, 0, 64, 48))
        yield array
        array[:] = 0
        yield data
        data[:] = bytes(len(data))
        yield file
        file.close()

    for patches in prepared(reader().prepare_ahead(sources())):
        np.testing.assert_array_equal(patches.pixels, STORED)


def test_large_images_in_memory_are_prepared_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LARGE", RGB.shape[0] * RGB.shape[1] - 1)
    image = Image.fromarray(RGB)
    monkeypatch.setattr(image, "copy", None)
    patches = prepared(reader().prepare_ahead([image, RGB, photo()]))
    assert [each.orientation for each in patches] == [1, 1, 6]
    for each in patches:
        np.testing.assert_array_equal(each.pixels, STORED)


def test_failures_keep_their_place() -> None:
    entries = list(reader().prepare_ahead([RGB, b"no image", io.StringIO("text"), RGB], skip=True))
    assert [isinstance(entry, Failure) for entry in entries] == [False, True, True, False]
    assert [entry.index for entry in entries] == [0, 1, 2, 3]
    assert "image 2" in str(entries[2].error)  # type: ignore[union-attr]


def test_a_failure_keeps_no_decoded_image() -> None:
    sources = [photo()[:-30], photo()[:300], Image.open(io.BytesIO(photo()[:300]))]
    failures = list(reader().prepare_ahead(sources, skip=True))
    for failure in failures:
        assert isinstance(failure, Failure)
        assert (failure.error.__traceback__, failure.error.__context__) == (None, None)


class Counting(SquarePreparation):
    """Counts the pixels that are decoded and not yet resized."""

    def __init__(self, spec: SquareSpec) -> None:
        super().__init__(spec)
        self.lock = threading.Lock()
        self.held: list[int] = []
        self.most = 0

    def __call__(self, image: Image.Image, max_num_patches: int | None = None) -> Patches:
        pixels = image.width * image.height
        with self.lock:
            self.held.append(pixels)
            assert len(self.held) == 1 or sum(self.held) <= 20_000
            self.most = max(self.most, len(self.held))
        threading.Event().wait(0.02)
        with self.lock:
            self.held.remove(pixels)
        return super().__call__(image, max_num_patches)


def test_pixels_in_flight_are_bounded_over_all_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "DECODING", PixelBudget(20_000))
    monkeypatch.setattr(ahead, "preparing_threads", lambda: 4)
    files = []
    for index, (width, height) in enumerate([(100, 100), (200, 100), (300, 200), (50, 50), (50, 50), (100, 100)] * 3):
        files.append(tmp_path / f"{index}.png")
        Image.new("RGB", (width, height)).save(files[-1])
    preparation = Counting(SquareSpec(8, 3, "bicubic", 24, False))
    calls = [threading.Thread(target=lambda: list(ImageReader(preparation).prepare_ahead(files))) for _ in range(2)]
    for call in calls:
        call.start()
    for call in calls:
        call.join(60)
        assert not call.is_alive()
    assert preparation.most > 1, "small images are decoded side by side"
    assert reading.DECODING.held == 0


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_rgb_file_is_not_copied(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    convert = Image.Image.convert

    def counted(image: Image.Image, *args: Any, **kwargs: Any) -> Image.Image:
        converted.append(image.mode)
        return convert(image, *args, **kwargs)

    buffer = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(buffer, "JPEG")
    monkeypatch.setattr(Image.Image, "convert", counted)
    reader().prepare(buffer.getvalue())
    assert converted == ([] if mode == "RGB" else ["L"])


@pytest.mark.parametrize("large", [False, True])
def test_the_memory_of_a_large_image_is_given_back_once_it_is_gone(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[weakref.ref[Image.Image]] = []
    given_back: list[bool] = []

    class Remembering(SquarePreparation):
        def __call__(self, image: Image.Image, max_num_patches: int | None = None) -> Patches:
            decoded.append(weakref.ref(image))
            return super().__call__(image, max_num_patches)

    monkeypatch.setattr(reading, "_LARGE", RGB.shape[0] * RGB.shape[1] - large)
    monkeypatch.setattr(reading, "release_free_memory", lambda: given_back.append(decoded[0]() is None))
    ImageReader(Remembering(SquareSpec(8, 3, "bicubic", 24, False))).prepare(photo())
    assert given_back == [True] * large
