"""Builds the C library once for the tests of this folder, and opens the bundles that they share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import pytest

from fgclip_rt import shipped
from fgclip_rt.native.library import Library

if TYPE_CHECKING:
    from conftest import Once

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"

#: Folder of a library that is built already, with its .so and .a.
BUILT = os.environ.get("FGCLIP_RT_NATIVE")


@pytest.fixture(scope="session")
def build(once: Once) -> Path:
    """The folder with ``libfgclip_rt.so`` and ``libfgclip_rt.a``."""
    if BUILT is not None:
        return Path(BUILT).resolve()
    for tool in ("cargo", "cc", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so the C library cannot be built")

    def make(_: Path) -> None:
        subprocess.run(["make", "-C", NATIVE], check=True)

    once("native", make)
    return NATIVE / "build"


@pytest.fixture(scope="session")
def onnxruntime_path() -> Path:
    """The libonnxruntime of the Python package, so that both languages run the same kernels."""
    (path,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    return path


@pytest.fixture(scope="session")
def library(build: Path, onnxruntime_path: Path) -> Library:
    os.environ["FGCLIP_RT_ONNXRUNTIME"] = str(onnxruntime_path)
    return Library(build / "libfgclip_rt.so")


@pytest.fixture(scope="session")
def shipped_path() -> Path:
    """The bundle that comes with the package, which needs neither an export nor torch."""
    return shipped.locate("fg-clip2-pocket")


@pytest.fixture(scope="session")
def bundle_of(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Gives the shipped bundle, or an exported one of some family, by its name."""
    fixtures = {
        "shipped": "shipped_path",
        "pocket": "pocket_path",
        "fgclip2": "bundle_path",
        "fgclip2-masked": "masked_bundle_path",
    }

    def bundle(name: str) -> Path:
        if name in fixtures:
            return Path(request.getfixturevalue(fixtures[name]))
        return Path(request.getfixturevalue("square_path")(name))

    return bundle
