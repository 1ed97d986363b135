"""The installed tree, after it was moved: examples are built from it with pkg-config, CMake and cgo, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fgclip_rt.pocket.scenes import draw, make_scene
from native.conftest import BUILT, NATIVE, ROOT
from native.test_examples import POCKET, TEXTS


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


@pytest.fixture(scope="module")
def examples(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed examples, in a folder that may be built in, with a picture."""
    folder = tmp_path_factory.mktemp("consumers") / "examples"
    shutil.copytree(tree / "share/fgclip_rt/examples", folder)
    for name in ("scene.ppm", "scene.png"):
        draw(make_scene(21)).save(folder / name)
    return folder


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*arguments: object, environment: dict[str, str] | None = None) -> str:
    """What a program prints; it must succeed."""
    result = subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def check(folder: Path, picture: Path, onnxruntime: Path) -> None:
    """Run the programs in a folder, which find libfgclip_rt by themselves."""
    environment = {"FGCLIP_RT_ONNXRUNTIME": str(onnxruntime), "LD_LIBRARY_PATH": ""}
    rated = run(folder / "embed", POCKET, picture, *TEXTS, environment=environment)
    assert run(folder / "embed-static", POCKET, picture, *TEXTS, environment=environment) == rated
    assert "libfgclip_rt.so.1 => " in run("ldd", folder / "embed", environment=environment)
    assert "libfgclip_rt" not in run("ldd", folder / "embed-static", environment=environment)
    found = run(folder / "search", POCKET, picture.parent, TEXTS[0], environment=environment)
    assert found.split()[1:] == [picture.name]
    embedded = run(folder / "threads", POCKET, "2", "60000", picture, environment=environment)
    assert embedded.startswith(f"{picture}: ")
    assert embedded.endswith(" ... (160 floats)\n")


def test_pkg_config(examples: Path, tree: Path, onnxruntime_path: Path) -> None:
    need("pkg-config", "c++")
    folder = examples / "pkgconfig"
    run("make", "-C", folder, environment={"PKG_CONFIG_PATH": f"{tree}/lib/pkgconfig"})
    check(folder, examples / "scene.ppm", onnxruntime_path)


def test_cmake(examples: Path, tree: Path, onnxruntime_path: Path) -> None:
    need("cmake", "c++")
    built = examples / "cmake/built"
    run("cmake", "-S", examples / "cmake", "-B", built, f"-DCMAKE_PREFIX_PATH={tree}")
    run("cmake", "--build", built)
    check(built, examples / "scene.ppm", onnxruntime_path)


def test_cmake_refuses_an_older_library(examples: Path, tree: Path) -> None:
    need("cmake")
    lists = examples / "newer/CMakeLists.txt"
    lists.parent.mkdir()
    lists.write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(newer C)\nfind_package(fgclip_rt 99 CONFIG REQUIRED)\n"
    )
    result = subprocess.run(
        ["cmake", "-S", lists.parent, "-B", lists.parent / "built", f"-DCMAKE_PREFIX_PATH={tree}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert 'requested version "99"' in result.stderr


def test_cgo(examples: Path, tree: Path, onnxruntime_path: Path) -> None:
    need("go", "pkg-config")
    environment = {
        "PKG_CONFIG_PATH": f"{tree}/lib/pkgconfig",
        "LD_LIBRARY_PATH": f"{tree}/lib",
        "FGCLIP_RT_ONNXRUNTIME": str(onnxruntime_path),
        "GODEBUG": "cgocheck=1",
    }
    folder = examples / "go"
    assert run("gofmt", "-l", folder) == ""
    run("go", "-C", folder, "vet", environment=environment)
    run("go", "-C", folder, "test", environment={**environment, "BUNDLE": str(POCKET)})
    run("go", "-C", folder, "build", "-o", examples / "gofgclip", environment=environment)
    rated = run(examples / "gofgclip", POCKET, examples / "scene.png", *TEXTS, environment=environment)
    run("make", "-C", examples / "pkgconfig", "embed", environment=environment)
    embedded = run(examples / "pkgconfig/embed", POCKET, examples / "scene.ppm", *TEXTS, environment=environment)
    assert rated.splitlines() == embedded.splitlines()[1 + len(TEXTS) :]


def test_the_commands_of_the_page_run(tree: Path, tmp_path: Path, onnxruntime_path: Path) -> None:
    """All but those that pack, which have tests of their own; /opt/fgclip is another folder."""
    need("pkg-config", "cmake", "c++")
    assert tree.is_dir()
    page = (ROOT / "docs/native.md").read_text()
    commands = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert commands.count("/opt/fgclip") >= 6
    commands = commands.replace("/opt/fgclip", str(tmp_path / "fgclip")).replace("make -C native dist", "true")
    for name, target in (("Makefile", ROOT / "Makefile"), ("native", NATIVE), ("bundle", POCKET)):
        (tmp_path / name).symlink_to(target)
    draw(make_scene(21)).save(tmp_path / "scene.ppm")
    printed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env={
            **os.environ,
            "FGCLIP_RT_ONNXRUNTIME": str(onnxruntime_path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    assert re.search(r"^0\.9\d+ a big spotted yellow star$", printed.stdout, re.MULTILINE)
    assert (tmp_path / "built/search").is_file()


@pytest.mark.parametrize("prefix", ["/", "/usr/"])
def test_the_prefix_may_end_in_a_slash(tree: Path, tmp_path: Path, prefix: str) -> None:
    run("make", "-C", NATIVE, "install", f"PREFIX={prefix}", f"DESTDIR={tmp_path}")
    folder = tmp_path / prefix.strip("/") / "lib"
    for file in ("pkgconfig/fgclip_rt.pc", "cmake/fgclip_rt/fgclip_rt-config.cmake"):
        assert (folder / file).read_bytes() == (tree / "lib" / file).read_bytes()


def test_licences_are_installed(tree: Path) -> None:
    folder = tree / "share/licenses/fgclip_rt"
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "NOTICE").read_bytes() == (ROOT / "NOTICE").read_bytes()
    assert (folder / "THIRD-PARTY.txt").read_bytes() == (NATIVE / "packaging/THIRD-PARTY.txt").read_bytes()


def test_notices_have_the_locked_crates() -> None:
    """Needs no cargo."""
    locked = {
        (package["name"], package["version"])
        for package in tomllib.loads((NATIVE / "Cargo.lock").read_text())["package"]
    }
    listed = re.findall(r"^(\S+) (\S+): .*https://", (NATIVE / "packaging/THIRD-PARTY.txt").read_text(), re.MULTILINE)
    assert len(listed) > 50
    assert {name for name, _ in listed} >= {"tokenizers", "onig_sys", "serde_json"}
    assert set(listed) <= locked, "run 'make -C native third-party'"


def test_notices_are_those_of_the_crates() -> None:
    need("cargo")
    script = NATIVE / "packaging/third_party.py"
    written = run(sys.executable, "-c", f"import runpy; print(runpy.run_path({str(script)!r})['notices'](), end='')")
    assert written == script.with_name("THIRD-PARTY.txt").read_text("utf-8"), "run 'make -C native third-party'"


def test_the_shared_library_has_its_name(tree: Path) -> None:
    shared = tree / "lib/libfgclip_rt.so.1"
    dynamic = subprocess.run(["readelf", "-d", shared], check=True, capture_output=True, text=True).stdout
    assert "Library soname: [libfgclip_rt.so.1]" in dynamic
    assert "NODELETE" in dynamic
    assert "BIND_NOW" in dynamic
    assert (tree / "lib/libfgclip_rt.so").readlink() == Path("libfgclip_rt.so.1")
    assert "onnxruntime" not in dynamic


def test_the_oldest_glibc_is_that_of_the_page(build: Path) -> None:
    shared = build / "libfgclip_rt.so.1"
    versions = subprocess.run(["readelf", "-VW", shared], check=True, capture_output=True, text=True).stdout
    # The loader takes a library that lacks a version which only weak symbols need.
    needed = re.findall(r"Name: GLIBC_([\d.]+) +Flags: none", versions)
    (stated,) = re.findall(r"needs glibc (\d+\.\d+)", (ROOT / "docs/native.md").read_text())
    assert needed
    assert max(map(numbers, needed)) <= numbers(stated)
    # They are in libgcc_s and glibc, which every system has, and nothing else is linked.
    dynamic = subprocess.run(["readelf", "-d", shared], check=True, capture_output=True, text=True).stdout
    linked = set(re.findall(r"\(NEEDED\) .*\[(.*?)\]", dynamic))
    assert linked <= {
        "libgcc_s.so.1",
        "libm.so.6",
        "libc.so.6",
        "ld-linux-x86-64.so.2",
        "libdl.so.2",
        "libpthread.so.0",
    }


def test_no_library_names_a_folder_of_the_machine_that_built_it(tree: Path) -> None:
    """A panic names its source, as ``crates/…``."""
    crates = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    for name in ("libfgclip_rt.so.1", "libfgclip_rt.a"):
        content = (tree / "lib" / name).read_bytes()
        assert b"crates/" in content
        assert str(NATIVE).encode() not in content
        assert crates.encode() not in content


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
