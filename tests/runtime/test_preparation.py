"""Images become squares of one size, cut up exactly, and manifests say so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image

from fgclip_rt import interface
from fgclip_rt.bundle import decode_manifest
from fgclip_rt.errors import ArgumentError, BundleError, ImageError
from fgclip_rt.manifest import (
    FORMAT,
    FORMAT_VERSION,
    FileInfo,
    GraphFile,
    ImageSpec,
    Limits,
    Manifest,
    ModelInfo,
    NaflexSpec,
    Parity,
    Score,
    SquareSpec,
    TextSpec,
    WalkTypeSpec,
)
from fgclip_rt.preparation import NaflexPreparation, Patches, SquarePreparation, preparation
from helpers import Json, assert_one_sentence, picture
from slow_resize import FILTERS, Bytes, resize, resize_horizontally, resize_vertically

Resample = Literal["bilinear", "bicubic"]

SMALL = SquareSpec(patch_size=8, channels=3, resample="bicubic", image_size=24, exif_transpose=False)
PREPARATION = SquarePreparation(SMALL)
NAFLEX = NaflexSpec(16, 3, "bilinear", (128, 256), 1024, False)

resamples = st.sampled_from(sorted(FILTERS))


@st.composite
def specs(draw: st.DrawFn) -> SquareSpec:
    patch_size, side = draw(st.integers(1, 16)), draw(st.integers(1, 6))
    return SquareSpec(patch_size, 3, draw(resamples), side * patch_size, draw(st.booleans()))


@st.composite
def images(draw: st.DrawFn) -> Image.Image:
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    return Image.fromarray(picture(height, width, seed=draw(st.integers(0, 9))))


@st.composite
def noise_images(draw: st.DrawFn) -> Bytes:
    """Noise uint8 [H, W, 3] of every shape, also far taller or wider than 100:1."""
    short, long = draw(st.integers(1, 5)), draw(st.integers(1, 900))
    sides = st.tuples(st.integers(1, 70), st.integers(1, 70))
    return noise(*draw(sides | st.just((short, long)) | st.just((long, short))))


def noise(height: int, width: int) -> Bytes:
    """Values that do not depend on NumPy's version; uint8 [height, width, 3]."""
    values = hashlib.shake_128(f"{height}×{width}".encode()).digest(height * width * 3)
    return np.frombuffer(values, np.uint8).reshape(height, width, 3)


def together(patches: Patches, spec: ImageSpec) -> np.ndarray[Any, Any]:
    """The image that patches were cut from, one by one."""
    size, (rows, columns) = spec.patch_size, patches.grid
    image = np.zeros((rows * size, columns * size, spec.channels), np.uint8)
    for index, patch in enumerate(patches.pixels):
        y, x = index // columns * size, index % columns * size
        image[y : y + size, x : x + size] = patch.reshape(size, size, spec.channels)
    return image


# Resizing

#: (height, width) of noise, its preparation, and the SHA-256 of its patches: tall and wide, shrinking and growing.
RECORDED: list[tuple[tuple[int, int], ImageSpec, str]] = [
    (
        (400, 300),
        SquareSpec(16, 3, "bilinear", 224, False),
        "c395d7634d8f21d7784a0d116bb65158eef89507471c2139e16d36c97797fc56",
    ),
    (
        (400, 300),
        SquareSpec(14, 3, "bicubic", 224, False),
        "9ad987a8c4a97a2bb77f1855aa9179c8bc319766cba1027be1e55eb16e36b5ae",
    ),
    (
        (300, 400),
        SquareSpec(16, 3, "bicubic", 224, False),
        "444ff939dde6063273507b683633786a208f32fb093f6f667443497849411227",
    ),
    (
        (31, 17),
        SquareSpec(14, 3, "bicubic", 42, False),
        "2bd65ca43fde009bfb81afc2b4586fb4c8f761d75a88b4525e655d58010019d7",
    ),
    (
        (2000, 15),
        SquareSpec(8, 3, "bicubic", 24, False),
        "76a28fd2e1c5bbecb6029150260a57e3d8833c77d557ba18298415938ead4d94",
    ),
    (
        (640, 200),
        NaflexSpec(16, 3, "bilinear", (128, 256), 1024, False),
        "d4ace027388ec0f8956ec94ce0e2188a3bf98311427dccf227570f1a567c695c",
    ),
    (
        (200, 640),
        NaflexSpec(16, 3, "bilinear", (128, 256), 1024, False),
        "ab4b7b9e1b6867cf2f02381fa917565758c99a57371d645dcc6d3ddc59cd4f74",
    ),
    (
        (31, 17),
        NaflexSpec(16, 3, "bilinear", (64,), 64, False),
        "1a9b358c3c7700f689ae0f94c0b35162dcf05e622a6fea517877dd90ceab040c",
    ),
    (
        (2000, 15),
        NaflexSpec(16, 3, "bilinear", (32,), 32, False),
        "e7828f4c10f8d1287e2e4896d4ff1b57649622bee0ca13b3b8a470ed63a13172",
    ),
]


@given(noise_images(), specs())
def test_a_squares_patches_are_those_of_the_specifications_arithmetic(pixels: Bytes, spec: SquareSpec) -> None:
    patches = SquarePreparation(spec)(Image.fromarray(pixels))
    expected = resize(pixels, spec.image_size, spec.image_size, spec.resample)
    np.testing.assert_array_equal(together(patches, spec), expected)


@given(noise_images(), st.integers(1, 9), st.integers(1, 60))
def test_a_grids_patches_are_those_of_the_specifications_arithmetic(
    pixels: Bytes, patch_size: int, bucket: int
) -> None:
    spec = NaflexSpec(patch_size, 3, "bilinear", (bucket,), bucket, False)
    patches = NaflexPreparation(spec)(Image.fromarray(pixels))
    rows, columns = patches.grid
    expected = resize(pixels, rows * patch_size, columns * patch_size, "bilinear")
    np.testing.assert_array_equal(together(patches, spec), expected)


@pytest.mark.parametrize(("size", "spec"), [case[:2] for case in RECORDED])
def test_the_horizontal_pass_comes_first(size: tuple[int, int], spec: ImageSpec) -> None:
    """Pillow alone passes this up to 12.1; 12.2 fails for 2000×15 pixels, 13.0 for 400×300 and 640×200 as well."""
    pixels = noise(*size)
    patches = preparation(spec)(Image.fromarray(pixels))
    height, width = (side * spec.patch_size for side in patches.grid)
    image = together(patches, spec)
    np.testing.assert_array_equal(image, resize(pixels, height, width, spec.resample))
    vertical_first = resize_horizontally(resize_vertically(pixels, height, spec.resample), width, spec.resample)
    assert (image != vertical_first).any(), "the order must matter for this to mean anything"


@pytest.mark.parametrize(("size", "spec", "digest"), RECORDED)
def test_patches_are_the_recorded_ones(size: tuple[int, int], spec: ImageSpec, digest: str) -> None:
    """Recorded digests compare environments of different versions, of which only one is at hand."""
    assert hashlib.sha256(preparation(spec)(Image.fromarray(noise(*size))).pixels).hexdigest() == digest


def test_a_strip_that_would_fill_the_memory_is_refused() -> None:
    image = Image.new("RGB", (1, 2**27 // 24 + 1))
    with pytest.raises(ImageError) as info:
        PREPARATION(image)
    assert_one_sentence(info.value, "1×5,592,406 pixels", "134,217,744 pixels on the way", "134,217,728", "crop it")


# Squares


@given(images(), specs())
def test_every_image_gives_as_many_patches_of_bytes(image: Image.Image, spec: SquareSpec) -> None:
    patches = SquarePreparation(spec)(image)
    side = spec.image_size // spec.patch_size
    assert patches.grid == (side, side)
    assert patches.bucket == side * side == spec.max_num_patches
    assert patches.pixels.shape == (side * side, spec.patch_size**2 * 3)
    assert patches.pixels.dtype == np.uint8
    assert patches.pixels.flags.c_contiguous
    assert patches.image_size == (image.height, image.width)


@given(st.integers(1, 10**9), st.integers(1, 10**9), specs())
def test_the_bucket_depends_on_no_size(width: int, height: int, spec: SquareSpec) -> None:
    assert SquarePreparation(spec).bucket(width, height) == spec.max_num_patches


@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 300), st.booleans(), specs())
def test_the_aspect_ratio_does_not_matter(long: int, first: int, second: int, turned: bool, spec: SquareSpec) -> None:
    """A row of pixels, repeated to any height, is the same square, and so is a column of any width."""
    row = picture(1, long)
    strips = [row.repeat(times, axis=0) for times in (first, second)]
    images = [Image.fromarray(strip.swapaxes(0, 1) if turned else strip) for strip in strips]
    squares = [SquarePreparation(spec)(image) for image in images]
    assert squares[0].grid == squares[1].grid
    np.testing.assert_array_equal(squares[0].pixels, squares[1].pixels)


@pytest.mark.parametrize("resample", sorted(FILTERS))
def test_the_corners_of_an_image_are_the_corners_of_the_square(resample: Resample) -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    spec = SquareSpec(16, 3, resample, 32, False)
    for height, width in ((32, 32), (8, 200), (200, 8)):
        image = Image.fromarray(colours.repeat(height // 2, axis=0).repeat(width // 2, axis=1))
        square = together(SquarePreparation(spec)(image), spec)
        np.testing.assert_array_equal(square[[0, 0, -1, -1], [0, -1, 0, -1]], colours.reshape(4, 3))


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (2, 1), (8, 8), (224, 224)])
def test_any_size_will_do(width: int, height: int, resample: Resample) -> None:
    spec = SquareSpec(8, 3, resample, 24, False)
    image = Image.fromarray(picture(height, width))
    patches = SquarePreparation(spec)(image)
    assert (patches.pixels.shape, patches.image_size) == ((9, 192), (height, width))
    np.testing.assert_array_equal(together(patches, spec), resize(np.asarray(image), 24, 24, resample))


def test_one_pixel_fills_the_square() -> None:
    patches = PREPARATION(Image.new("RGB", (1, 1), (1, 2, 3)))
    np.testing.assert_array_equal(patches.pixels.reshape(-1, 3), np.tile(np.array([1, 2, 3], np.uint8), (576, 1)))


def test_an_image_of_the_models_size_stays_as_it_is() -> None:
    pixels = picture(24, 24)
    np.testing.assert_array_equal(together(PREPARATION(Image.fromarray(pixels)), SMALL), pixels)


def test_the_filters_differ() -> None:
    image = Image.fromarray(picture(50, 60))
    bicubic, bilinear = (
        SquarePreparation(SquareSpec(8, 3, resample, 24, False))(image).pixels for resample in ("bicubic", "bilinear")
    )
    assert (bicubic != bilinear).any()


def test_patches_are_a_copy() -> None:
    pixels = picture(24, 24)
    image = Image.fromarray(pixels)
    patches = PREPARATION(image)
    patches.pixels[:] = 0
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("asked", [None, 9, np.int64(9)])
def test_the_models_own_number_of_patches_may_be_asked_for(asked: int | None) -> None:
    image = Image.fromarray(picture(10, 90))
    np.testing.assert_array_equal(PREPARATION(image, asked).pixels, PREPARATION(image).pixels)


@pytest.mark.parametrize("asked", [0, 1, 8, 10, -9, 16_384, 10**30, 9.5, "9", "many", (9,), True])
def test_another_number_of_patches_is_refused_with_the_models_size(asked: Any) -> None:
    with pytest.raises(ArgumentError) as info:
        PREPARATION(Image.fromarray(picture(10, 90)), asked)
    assert_one_sentence(info.value, f"max_num_patches is {asked!r}", "24×24 pixels", "9 patches", "leave it out")


@pytest.mark.parametrize("asked", [None, 9, 64])
@given(width=st.integers(1, 400), height=st.integers(1, 400), spec=specs())
def test_grids_are_known_without_pixels(asked: int | None, width: int, height: int, spec: SquareSpec) -> None:
    for prepare in (NaflexPreparation(NAFLEX), SquarePreparation(spec)):
        wanted = asked if asked in (None, *prepare.spec.lengths) else None
        patches = prepare(Image.new("RGB", (width, height)), wanted)
        assert prepare.grid(width, height, wanted) == (patches.bucket, patches.grid)


def test_grids_of_no_model_are_refused() -> None:
    for prepare in (NaflexPreparation(NAFLEX), PREPARATION):
        with pytest.raises(ArgumentError, match="max_num_patches is 0"):
            prepare.grid(10, 90, 0)


# Specifications


@pytest.mark.parametrize("asked", [0, 1, 8, 9, 10, 1024, 1025])
def test_lengths_are_those_that_can_be_asked_for(asked: int) -> None:
    image = Image.fromarray(picture(10, 90))
    for prepare in (NaflexPreparation(NAFLEX), PREPARATION):
        if asked in prepare.spec.lengths:
            assert prepare(image, asked).bucket == asked
        else:
            with pytest.raises(ArgumentError):
                prepare(image, asked)


@given(specs())
def test_a_square_has_one_bucket(spec: SquareSpec) -> None:
    assert spec.buckets == (spec.max_num_patches,)
    assert spec.max_num_patches * spec.patch_size**2 == spec.image_size**2


def test_specifications_say_what_they_are() -> None:
    assert str(SquareSpec(16, 3, "bicubic", 224, False)) == "square, 224×224 px, bicubic, 196 patches of 16 px"
    assert str(SquareSpec(14, 3, "bilinear", 336, False)) == "square, 336×336 px, bilinear, 576 patches of 14 px"
    assert str(NAFLEX) == "naflex, patches of 16 px, buckets 128, 256, up to 1,024"
    assert str(replace(NAFLEX, exif_transpose=True)).endswith("up to 1,024, files turned upright")
    assert str(replace(SMALL, exif_transpose=True)).endswith("9 patches of 8 px, files turned upright")


def test_each_specification_has_its_preparation() -> None:
    assert isinstance(preparation(SMALL), SquarePreparation)
    assert isinstance(preparation(NAFLEX), NaflexPreparation)


# Manifests


def manifest(image: ImageSpec) -> Manifest:
    """The manifest of a bundle of the graphs that every model has."""
    without_graphs = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        model=ModelInfo("small", "fgclip1", None, None, "random", None),
        producer={"fgclip-rt": "0.0.0"},
        embedding_size=4,
        score=Score("softmax", 4.6, 0.0),
        image=image,
        text=TextSpec("tokenizer.json", False, 0, False, {"short": WalkTypeSpec(0, 77)}),
        box_shares=None,
        graphs={},
        lowering={},
        parity=Parity("probe.safetensors", None, {"fp32": Limits(2e-5, 0.999, 1.0)}, {"fp32": ()}),
        files={name: FileInfo(1, "0" * 64) for name in ("tokenizer.json", "graph.onnx", "probe.safetensors")},
    )
    graphs = {}
    for graph in interface.REQUIRED:
        inputs, outputs = interface.tensors(without_graphs, graph)
        graphs[graph] = {"fp32": GraphFile("graph.onnx", tuple(inputs.values()), tuple(outputs.values()))}
    return msgspec.structs.replace(without_graphs, graphs=graphs)


@given(specs())
def test_a_manifest_of_a_square_survives_a_round_trip(spec: SquareSpec) -> None:
    text = manifest(spec).to_json().encode()
    decoded = decode_manifest(text, "manifest.json")
    assert decoded == manifest(spec)
    assert decoded.image == spec
    assert decoded.to_json().encode() == text


def test_the_kind_stands_in_the_manifest() -> None:
    square = {"kind": "square", "patch_size": 8, "channels": 3, "resample": "bicubic", "image_size": 24}
    square |= {"exif_transpose": False}
    assert manifest(SMALL).to_builtins()["image"] == square
    assert manifest(NAFLEX).to_builtins()["image"]["kind"] == "naflex"
    for spec in (SMALL, NAFLEX):
        assert decode_manifest(manifest(spec).to_json().encode(), "manifest.json").image == spec


def updated(**values: Any) -> Callable[[Json], object]:
    return lambda image: image.update(values)


def without(key: str) -> Callable[[Json], object]:
    return lambda image: image.pop(key)


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (updated(image_size=25), ["images of 25 pixels", "patches of 8"]),
        (updated(patch_size=9), ["images of 24 pixels", "patches of 9"]),
        (updated(patch_size=48), ["images of 24 pixels", "patches of 48"]),
        (updated(kind="cube"), ["'cube'", "$.image"]),
        (updated(kind=None), ["kind", "$.image"]),
        (updated(kind=7), ["kind", "$.image"]),
        (updated(kind="naflex"), ["'bicubic'", "$.image.resample"]),
        (updated(kind="naflex", resample="bilinear"), ["image_size", "$.image"]),
        (without("kind"), ["kind", "$.image"]),
        (updated(buckets=[9]), ["buckets", "$.image"]),
        (updated(max_num_patches=9), ["max_num_patches", "$.image"]),
        (updated(image_size=0), ["image_size", ">= 1"]),
        (updated(image_size="24"), ["image_size", "`int`"]),
        (updated(image_size=24.5), ["image_size", "`int`"]),
        (updated(image_size=[24, 24]), ["image_size", "`int`"]),
        (without("image_size"), ["image_size", "$.image"]),
        (without("exif_transpose"), ["exif_transpose", "$.image"]),
        (updated(exif_transpose=1), ["exif_transpose", "`bool`"]),
        (without("patch_size"), ["patch_size", "$.image"]),
        (updated(resample="lanczos"), ["'lanczos'", "resample"]),
        (updated(resample=3), ["resample"]),
        (updated(channels=0), ["channels", ">= 1"]),
    ],
)
def test_a_square_that_is_not_as_specified_is_refused(edit: Callable[[Json], object], parts: list[str]) -> None:
    document = manifest(SMALL).to_builtins()
    edit(document["image"])
    refused(document, *parts)


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (updated(image_size=24), ["image_size", "$.image"]),
        (updated(kind="square"), ["$.image"]),
        (updated(resample="bicubic"), ["'bicubic'", "resample"]),
        (without("buckets"), ["buckets", "$.image"]),
        (without("exif_transpose"), ["exif_transpose", "$.image"]),
    ],
)
def test_a_grid_takes_nothing_of_a_square(edit: Callable[[Json], object], parts: list[str]) -> None:
    document = manifest(NAFLEX).to_builtins()
    edit(document["image"])
    refused(document, *parts)


def refused(document: Json, *parts: str) -> None:
    text = msgspec.json.encode(document)
    with pytest.raises(BundleError) as info:
        decode_manifest(text, "manifest.json")
    assert_one_sentence(info.value, "manifest.json", *parts)
