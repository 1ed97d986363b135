"""The installed tree: programs are built from it with pkg-config and CMake, with both libraries, after it was moved."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fgclip_rt.native.library import Library
from native.conftest import BUILT, NATIVE

MAIN = """
#include <fgclip_rt.h>
#include <stdio.h>

int main(int argc, char **argv) {
    fgclip_model *model;
    fgclip_error error = FGCLIP_ERROR_INIT;
    uint32_t dim;
    if (argc != 2 || fgclip_model_open(argv[1], NULL, &model, &error) || fgclip_model_dim(model, &dim, &error)) {
        puts(error.message);
        return 1;
    }
    printf("%u\\n", (unsigned)dim);
    fgclip_model_close(model);
    return 0;
}
"""

CMAKE = """
cmake_minimum_required(VERSION 3.13)
project(consumer C)
find_package(fgclip_rt 0.1 CONFIG REQUIRED)
foreach(kind fgclip_rt static)
  add_executable(with_${kind} main.c)
  target_link_libraries(with_${kind} PRIVATE fgclip_rt::${kind})
endforeach()
"""


@pytest.fixture(scope="module")
def tree(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of an installed tree, moved after it was installed."""
    assert build.is_dir()
    if BUILT is not None:
        pytest.skip("the library was built elsewhere")
    folder = tmp_path_factory.mktemp("install")
    subprocess.run(
        ["make", "-C", NATIVE, "install", "PREFIX=/opt/fgclip", f"DESTDIR={folder}"],
        check=True,
        capture_output=True,
    )
    shutil.move(folder / "opt/fgclip", folder / "moved")
    return folder / "moved"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "main.c").write_text(MAIN)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    return tmp_path


def check(program: Path, bundle: Path, library: Library, tree: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tree / "lib")}
    result = subprocess.run([program, bundle], capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{library.open(bundle).dim}\n", "")


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_pkg_config(source: Path, tree: Path, library: Library, pocket_path: Path, static: bool) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    options = ["--static"] if static else []
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", *options, "fgclip_rt"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PKG_CONFIG_PATH": str(tree / "lib/pkgconfig")},
    ).stdout.split()
    if static:
        flags = ["-l:libfgclip_rt.a" if flag == "-lfgclip_rt" else flag for flag in flags]
    subprocess.run(["cc", source / "main.c", "-o", source / "program", *flags], check=True)
    check(source / "program", pocket_path, library, tree)


def test_cmake(source: Path, tree: Path, library: Library, pocket_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    built = source / "built"
    subprocess.run(["cmake", "-S", source, "-B", built, f"-DCMAKE_PREFIX_PATH={tree}"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", built], check=True, capture_output=True)
    for kind in ("fgclip_rt", "static"):
        check(built / f"with_{kind}", pocket_path, library, tree)


def test_the_shared_library_has_its_name(tree: Path) -> None:
    shared = tree / "lib/libfgclip_rt.so.1"
    dynamic = subprocess.run(["readelf", "-d", shared], check=True, capture_output=True, text=True).stdout
    assert "Library soname: [libfgclip_rt.so.1]" in dynamic
    assert "NODELETE" in dynamic
    assert "BIND_NOW" in dynamic
    assert (tree / "lib/libfgclip_rt.so").readlink() == Path("libfgclip_rt.so.1")
    assert "onnxruntime" not in dynamic
