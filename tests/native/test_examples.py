"""The examples and the C++ header: compiled pedantically with sanitizers, run on the package's bundle, and held to the
Python runtime."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import fgclip_rt
from fgclip_rt.model import Model
from fgclip_rt.pocket.scenes import draw, make_scene
from native.conftest import NATIVE, ROOT

EXAMPLES = NATIVE / "examples"
PAGE = ROOT / "docs/native.md"
POCKET = ROOT / "fgclip_rt/bundles/fg-clip2-pocket"
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow"]

#: They end a program that reads what it must not, or leaves memory behind, with a message.
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

TEXTS = ("a big spotted yellow star", "a big striped yellow star", "大大的圆点黄色五角星")

#: Compiles a source and gives the program.
Compile = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Model:
    return fgclip_rt.load(POCKET, device="cpu", threads=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PPM files of drawn scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"{seed}.ppm" for seed in range(21, 27)]
    for seed, path in enumerate(paths, 21):
        draw(make_scene(seed)).save(path)
    return paths


@pytest.fixture(scope="module")
def program(build: Path, onnxruntime_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a source of C or C++, named by its path."""
    os.environ["FGCLIP_RT_ONNXRUNTIME"] = str(onnxruntime_path)
    folder = tmp_path_factory.mktemp("programs")

    def compiled(source: Path, standard: str, *options: str) -> Path:
        path = folder / source.stem
        compiler = "c++" if source.suffix == ".cpp" else "cc"
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
        if not path.exists():
            linked = [f"-L{build}", "-lfgclip_rt", f"-Wl,-rpath,{build}", "-lpthread"]
            subprocess.run(
                [
                    *(compiler, f"-std={standard}", *STRICT, *SANITIZED, f"-I{NATIVE / 'include'}", f"-I{EXAMPLES}"),
                    *(source, "-o", path, *linked, *options),
                ],
                check=True,
            )
        return path

    return compiled


def run(*arguments: object, status: int = 0) -> str:
    """What a program prints; on standard error only if it fails."""
    result = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == status, result.stdout + result.stderr
    assert (result.stderr if status == 0 else result.stdout) == "", result.stdout + result.stderr
    return result.stdout if status == 0 else result.stderr


def assert_rated(lines: Sequence[str], texts: Sequence[str], expected: np.ndarray) -> None:
    """Compare lines of a probability and a text with those of Python."""
    assert [line.split(" ", 1)[1] for line in lines] == list(texts)
    np.testing.assert_allclose([float(line.split()[0]) for line in lines], expected, atol=2e-4)


def test_embed_prints_the_vectors_and_probabilities_of_python(
    program: Compile, scenes: list[Path], model: Model
) -> None:
    lines = run(program(EXAMPLES / "embed.c", "c99"), POCKET, scenes[0], *TEXTS).splitlines()
    image, texts = model.embed_images(str(scenes[0])), model.embed_texts(TEXTS)
    for line, name, vector in zip(lines, ["image", *TEXTS], [*image, *texts], strict=False):
        found = re.fullmatch(r"(.*): (.*) \.\.\. \(160 floats\)", line)
        assert found is not None, line
        assert found[1] == name
        np.testing.assert_allclose([float(number) for number in found[2].split()], vector[:4], atol=2e-4)
    assert_rated(lines[1 + len(TEXTS) :], TEXTS, model.probabilities(image, texts)[0])


def test_examples_say_how_they_are_called(program: Compile) -> None:
    assert "BUNDLE IMAGE.ppm TEXT..." in run(program(EXAMPLES / "embed.c", "c99"), POCKET, "a.ppm", status=2)
    assert "BUNDLE FOLDER TEXT" in run(program(EXAMPLES / "search.cpp", "c++17"), POCKET, status=2)
    for arguments in (["0", "1000", "a.ppm"], ["2", "x", "a.ppm"], ["2", "1000"]):
        usage = run(program(EXAMPLES / "threads.c", "c99"), POCKET, *arguments, status=2)
        assert "BUNDLE WORKERS MILLISECONDS IMAGE.ppm..." in usage


def test_embed_gives_the_sentences_of_the_library(program: Compile, scenes: list[Path]) -> None:
    embed = program(EXAMPLES / "embed.c", "c99")
    missing = run(embed, "nowhere", scenes[0], "a", status=1)
    assert missing == "nowhere does not exist; give a bundle's folder, as 'fgclip-rt export' makes it.\n"
    result = subprocess.run(
        [embed, POCKET, scenes[0], "a", b"\xff"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.returncode, result.stderr) == (1, "text 1 is not UTF-8 from byte 0 on; repair it.\n")


@pytest.mark.parametrize(
    ("header", "pixels", "fault"),
    [
        (b"P6 2 1 255\n", 6, None),
        (b"P6\n# a comment\n2\t#2\n1\r\n255\n", 6, None),
        (b"P6 2 1 255\n", 5, "ends early"),
        (b"P6 2 1 65535\n", 12, "8 bits"),
        (b"P5 2 1 255\n", 6, "8 bits"),
        (b"P6 0 1 255\n", 6, "8 bits"),
        (b"P6 -2 1 255\n", 6, "8 bits"),
        (b"P6 99999999999 1 255\n", 6, "8 bits"),
        (b"P6 2 1", 0, "8 bits"),
        (b"P6 # never ends", 0, "8 bits"),
        (b"P6 1000000 1000000 255\n", 6, "does not fit into memory"),
        (b"", 0, "8 bits"),
    ],
)
def test_ppm_files_are_read_and_refused(
    program: Compile, tmp_path: Path, model: Model, header: bytes, pixels: int, fault: str | None
) -> None:
    embed, path = program(EXAMPLES / "embed.c", "c99"), tmp_path / "image.ppm"
    path.write_bytes(header + bytes(range(10, 10 + pixels)))
    if fault is not None:
        message = run("env", "ASAN_OPTIONS=allocator_may_return_null=1", embed, POCKET, path, "a", status=1)
        assert message.splitlines()[-1].startswith(f"{path} ")
        assert fault in message
        return
    image = np.arange(10, 16, dtype=np.uint8).reshape(1, 2, 3)
    expected = model.probabilities(model.embed_images(image), model.embed_texts(TEXTS))[0]
    assert_rated(run(embed, POCKET, path, *TEXTS).splitlines()[4:], TEXTS, expected)


def test_a_pool_of_threads_embeds_every_image(
    program: Compile, scenes: list[Path], model: Model, tmp_path: Path
) -> None:
    paths = [*scenes, tmp_path / "missing.ppm", *scenes]
    lines = run(program(EXAMPLES / "threads.c", "c99"), POCKET, 3, 60000, *paths).splitlines()
    vectors = model.embed_images(list(map(str, scenes)))
    expected = [
        f"{path}: {vector[0]:.4f} {vector[1]:.4f} ... (160 floats)"
        for path, vector in zip(scenes, vectors, strict=True)
    ]
    missing = f"{paths[len(scenes)]}: {paths[len(scenes)]} cannot be opened; check its path and permissions."
    assert lines == [*expected, missing, *expected]


def test_a_pool_of_threads_cancels_at_a_deadline_and_goes_on(
    program: Compile, scenes: list[Path], tmp_path: Path
) -> None:
    """One worker reads a pipe until long after the deadline, while the second request waits and the third is not yet in
    the queue."""
    late = tmp_path / "late.ppm"
    os.mkfifo(late)
    arguments = [program(EXAMPLES / "threads.c", "c99"), POCKET, "1", "1000", late, scenes[0], scenes[1]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as running:
        with late.open("wb") as pipe:  # opened once the worker reads it
            time.sleep(1.5)
            pipe.write(scenes[0].read_bytes())
        output, _ = running.communicate(timeout=60)
    first, second, third = output.splitlines()
    assert running.returncode == 0
    assert first == f"{late}: the call was cancelled; reset its context before the next call."
    assert second == f"{scenes[0]}: the deadline passed in the queue."
    assert third.endswith(" ... (160 floats)")


@pytest.fixture(scope="module")
def jpeg(program: Compile) -> tuple[Path, Callable[[Path], np.ndarray | str]]:
    """The example, and its pixels of a file, or the fault that it finds."""
    found = subprocess.run(
        ["cc", "-E", "-include", "stdio.h", "-include", "jpeglib.h", "-xc", os.devnull],
        capture_output=True,
        check=False,
    )
    if found.returncode != 0:
        pytest.skip("jpeglib.h is missing: apt install libjpeg-turbo8-dev, or libjpeg62-turbo-dev on Debian")
    example = program(EXAMPLES / "jpeg.c", "c99", "-ljpeg")
    source = example.with_name("pixels.c")
    source.write_text(PIXELS)
    reader = program(source, "c99", "-ljpeg")

    def pixels(path: Path) -> np.ndarray | str:
        result = subprocess.run([reader, path], capture_output=True, check=False)
        if result.returncode == 1:
            return result.stdout.decode()
        assert (result.returncode, result.stderr) == (0, b"")
        width, height = np.frombuffer(result.stdout[:8], np.uint32)
        return np.frombuffer(result.stdout[8:], np.uint8).reshape(height, width, 3)

    return example, pixels


#: Writes the sides and the pixels of a file.
PIXELS = """\
#define main example
#include "jpeg.c"
#undef main

int main(int argc, char **argv) {
    fgclip_image image;
    char fault[512];
    (void)example;
    if (argc != 2 || read_jpeg(argv[1], &image, fault, sizeof fault)) {
        fputs(fault, stdout);
        return 1;
    }
    fwrite(&image.width, sizeof image.width, 1, stdout);
    fwrite(&image.height, sizeof image.height, 1, stdout);
    fwrite(image.data, 3, (size_t)image.width * image.height, stdout);
    free((void *)image.data);
    return 0;
}
"""


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4", "quality": 95}),
        ("RGB", {"subsampling": "4:2:2", "quality": 75}),
        ("RGB", {"subsampling": "4:2:0", "quality": 50}),
        ("RGB", {"subsampling": "4:2:0", "quality": 85, "progressive": True}),
        ("L", {"quality": 80}),
    ],
)
def test_the_pixels_of_a_jpeg_file_are_those_of_pillow(
    jpeg: tuple[Path, Callable[[Path], np.ndarray | str]], tmp_path: Path, mode: str, options: dict[str, object]
) -> None:
    path = tmp_path / "image.jpg"
    for size in ((301, 203), (1, 1), (16, 7)):
        draw(make_scene(3)).resize(size).convert(mode).save(path, **options)
        np.testing.assert_array_equal(jpeg[1](path), np.asarray(Image.open(path).convert("RGB")))


def test_a_jpeg_file_is_turned_upright(
    jpeg: tuple[Path, Callable[[Path], np.ndarray | str]], tmp_path: Path, model: Model
) -> None:
    path, picture = tmp_path / "image.jpg", draw(make_scene(3))
    for endian in ("<", ">"):
        for orientation in range(10):
            exif = Image.Exif()
            exif.endian = endian
            exif[0x010F] = "a maker"
            exif[0x0112] = orientation
            picture.save(path, exif=exif)
            upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            np.testing.assert_array_equal(jpeg[1](path), np.asarray(upright), str(orientation))
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif_of(6))
    expected = model.probabilities(model.embed_images(path, exif_transpose=True), model.embed_texts(TEXTS))[0]
    assert_rated(run(jpeg[0], POCKET, path, *TEXTS).splitlines(), TEXTS, expected)


def test_bad_jpeg_files_are_refused(jpeg: tuple[Path, Callable[[Path], np.ndarray | str]], tmp_path: Path) -> None:
    path, picture = tmp_path / "image.jpg", draw(make_scene(3))
    picture.save(path)
    data = path.read_bytes()
    path.write_bytes(data[:-500])
    assert run(jpeg[0], POCKET, path, "a", status=1) == (
        "the JPEG file cannot be read (Premature end of JPEG file); write it again.\n"
    )
    path.write_bytes(b"GIF89a")
    assert "Not a JPEG file" in str(jpeg[1](path))
    picture.convert("CMYK").save(path)
    assert jpeg[1](path) == "the JPEG file has 4 channels; convert it to RGB."
    frame = data.index(b"\xff\xc0")
    path.write_bytes(data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :])
    assert jpeg[1](path) == "the JPEG file has 65500 × 65500 pixels; make it smaller."
    assert "cannot be opened" in str(jpeg[1](tmp_path / "missing.jpg"))


def test_no_bytes_of_exif_lead_out_of_it(jpeg: tuple[Path, Callable[[Path], np.ndarray | str]], tmp_path: Path) -> None:
    path, chance = tmp_path / "image.jpg", random.Random(0)
    Image.new("RGB", (5, 3)).save(path, exif=exif_of(6), quality=30)
    data = path.read_bytes()
    start, size = data.index(b"Exif"), len(exif_of(6).tobytes())
    for turn in range(40):
        changed = bytearray(data[start : start + size])
        for _ in range(chance.randrange(1, 5)):
            changed[chance.randrange(6, size)] = chance.choice((0, 1, 255, chance.randrange(256)))
        cut = changed[: size if turn % 2 else chance.randrange(size)]
        path.write_bytes(data[: start - 2] + (len(cut) + 2).to_bytes(2, "big") + cut + data[start + size :])
        assert isinstance(jpeg[1](path), np.ndarray)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_search_ranks_a_folder_as_python_does(program: Compile, scenes: list[Path], model: Model) -> None:
    search, folder = program(EXAMPLES / "search.cpp", "c++17"), scenes[0].parent
    (folder / "notes.txt").write_text("no image\n")
    lines = run(search, POCKET, folder, TEXTS[0]).splitlines()
    logits = model.logits(model.embed_images(list(map(str, scenes))), model.embed_texts(TEXTS[:1]))[:, 0]
    assert [line.split()[1] for line in lines] == [scenes[at].name for at in np.argsort(-logits)]
    np.testing.assert_allclose([float(line.split()[0]) for line in lines], np.sort(logits)[::-1], atol=0.011)


def test_search_takes_more_files_than_a_batch_and_an_empty_folder(
    program: Compile, scenes: list[Path], tmp_path: Path
) -> None:
    search = program(EXAMPLES / "search.cpp", "c++17")
    assert run(search, POCKET, tmp_path, "a") == ""
    for number in range(18):
        shutil.copy(scenes[number % 2], tmp_path / f"{number:02}.ppm")
    lines = run(search, POCKET, tmp_path, "a").splitlines()
    assert len({line.split()[0] for line in lines}) == 2
    assert [int(line.split()[1][:2]) % 2 for line in lines] in ([0] * 9 + [1] * 9, [1] * 9 + [0] * 9)


def test_search_says_what_is_wrong(program: Compile, scenes: list[Path], tmp_path: Path) -> None:
    search = program(EXAMPLES / "search.cpp", "c++17")
    message = run(search, "nowhere", tmp_path, "a", status=1)
    assert message.startswith("bundle_missing: nowhere does not exist; ")
    shutil.copy(scenes[0], tmp_path)
    (tmp_path / "z.ppm").write_bytes(b"P6")
    assert run(search, POCKET, tmp_path, "a", status=1) == (
        f"{tmp_path}/z.ppm is no PPM with 8 bits a channel; convert it to one.\n"
    )


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_the_header_of_cpp_compiles_strictly(standard: str, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("c++ is not installed")
    source = tmp_path / "twice.cpp"
    source.write_text("#include <fgclip_rt.hpp>\n#include <fgclip_rt.hpp>\n")
    strict = [*STRICT, "-Wconversion", "-Wold-style-cast", f"-std={standard}", f"-I{NATIVE / 'include'}"]
    subprocess.run(["c++", *strict, "-c", source, "-o", tmp_path / "twice.o"], check=True)


def test_the_header_of_cpp_is_that_of_c(program: Compile) -> None:
    assert run(program(NATIVE / "tests/header.cpp", "c++11"), POCKET) == ""


def test_the_header_of_cpp_is_that_of_c_for_masks(program: Compile, square_path: Callable[[str], Path]) -> None:
    assert run(program(NATIVE / "tests/header.cpp", "c++11"), "masks", square_path("fineclip")) == ""


def test_the_header_of_cpp_has_every_function() -> None:
    declared = set(re.findall(r"\b(fgclip_\w+)\(", (NATIVE / "include/fgclip_rt.h").read_text()))
    used = set(re.findall(r"\bfgclip_\w+", (NATIVE / "include/fgclip_rt.hpp").read_text()))
    assert declared - used == {
        *("fgclip_version", "fgclip_abi_version"),
        # For Python, which prepares images without a model of the library's.
        "fgclip_resize_to_patches",
    }


def test_blocks_of_the_page_are_parts_of_the_examples() -> None:
    """So they are compiled and run here; the page shows each as it stands there, but for its indentation."""

    def plain(text: str) -> str:
        return "\n".join(line.strip() for line in text.strip().splitlines())

    examples = [plain(path.read_text()) for path in EXAMPLES.rglob("*.*")]
    blocks = re.findall(r"^```(?:c|cmake|cpp)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        parts = list(map(plain, block.split("/* ... */\n")))
        assert any(all(part in example for part in parts) for example in examples), block
