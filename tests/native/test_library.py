"""Finding and opening the C library from Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fgclip_rt.errors import NativeError
from fgclip_rt.native import library as module
from fgclip_rt.native.library import VARIABLE, find_library


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody names a library, and there is none beside the package."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "package")
    monkeypatch.setattr(module, "_BUILD", tmp_path / "build")


def compiled(path: Path, source: str) -> Path:
    """A shared library from C."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=source, text=True, check=True)
    return path


def test_one_that_is_named_is_taken(build: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_library(build / "libfgclip_rt.so").version == "0.1.0"
    monkeypatch.setenv(VARIABLE, str(build / "libfgclip_rt.so"))
    assert find_library().version == "0.1.0"
    # A plain name is a file of this folder, and not one of the loader's.
    monkeypatch.chdir(build)
    assert find_library(Path("libfgclip_rt.so")).version == "0.1.0"
    # The argument comes before the variable, and what is named is taken or nothing is.
    with pytest.raises(NativeError, match=r"absent\.so: cannot open"):
        find_library(tmp_path / "absent.so")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other.so"))
    with pytest.raises(NativeError, match=r"other\.so: cannot open") as caught:
        find_library()
    assert str(build) not in str(caught.value)


@pytest.mark.parametrize("folder", ["package", "build"])
def test_one_beside_the_package_is_found(build: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    place = tmp_path / folder / "libfgclip_rt.so.1"
    shutil.copy(build / "libfgclip_rt.so.1", place)
    assert find_library().c._name == str(place)


def test_the_error_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The loader knows the library by its name once it is open in this process.
    monkeypatch.setattr(module, "_NAME", "libabsent.so.1")
    with pytest.raises(NativeError) as caught:
        find_library()
    assert caught.value.code == "native_missing"
    message = str(caught.value)
    for place in (tmp_path / "package/libabsent.so.1", tmp_path / "build/libabsent.so.1", "; libabsent.so.1"):
        assert f"{place}: cannot open shared object file" in message
    assert "; build it with 'make native', and name its file in FGCLIP_RT_LIBRARY." in message


def test_another_version_and_another_library_are_refused(tmp_path: Path) -> None:
    later = compiled(tmp_path / "later.so", "unsigned fgclip_abi_version(void) { return 2; }")
    with pytest.raises(
        NativeError, match=r"later.so: it has ABI version 2, and this package calls version 1\);"
    ) as old:
        find_library(later)
    assert old.value.code == "native_missing"
    with pytest.raises(NativeError, match=r"other.so: it is another library\);"):
        find_library(compiled(tmp_path / "other.so", "int x;"))


def test_an_error_tells_its_status_and_place(build: Path, tmp_path: Path) -> None:
    library = find_library(build / "libfgclip_rt.so")
    with pytest.raises(NativeError, match="does not exist") as caught:
        library.open(tmp_path / "absent")
    error = caught.value
    assert (error.code, error.status, error.index, error.needed) == ("bundle_missing", 600, -1, 0)
