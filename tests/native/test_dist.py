"""The tarballs: a program is built from each in an empty folder, and runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fgclip_rt.pocket.scenes import draw, make_scene
from native.conftest import BUILT, NATIVE
from native.test_examples import POCKET, TEXTS
from native.test_install import need, run

(VERSION,) = re.findall(r'^version = "(.*)"', (NATIVE / "Cargo.toml").read_text(), re.MULTILINE)


def pack(kind: str, folder: Path) -> Path:
    """Make a tarball in a folder, and unpack it beside."""
    run("make", "-C", NATIVE, f"{kind}-dist", f"DIST={folder / 'packed'}")
    (packed,) = (folder / "packed").iterdir()
    with tarfile.open(packed) as archive:
        archive.extractall(folder / "empty", filter="data")
    (unpacked,) = (folder / "empty").iterdir()
    assert packed.name == f"{unpacked.name}.tar.gz"
    return unpacked


def assert_consumable(prefix: Path, folder: Path, onnxruntime: Path) -> None:
    """Build an example from an installed tree, and run it."""
    examples = folder / "consumer"
    shutil.copytree(prefix / "share/fgclip_rt/examples", examples)
    draw(make_scene(21)).save(folder / "scene.ppm")
    found = {"PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig"}
    run("make", "-C", examples / "pkgconfig", "embed", "embed-static", environment=found)
    environment = {"FGCLIP_RT_ONNXRUNTIME": str(onnxruntime), "LD_LIBRARY_PATH": ""}
    for program in ("embed", "embed-static"):
        lines = run(
            examples / "pkgconfig" / program, POCKET, folder / "scene.ppm", *TEXTS[:2], environment=environment
        ).splitlines()
        right, wrong = (float(line.split()[0]) for line in lines[-2:])
        assert right > 0.9 > 0.1 > wrong


def test_a_program_is_built_from_the_binary_tarball(build: Path, tmp_path: Path, onnxruntime_path: Path) -> None:
    need("pkg-config")
    assert build.is_dir()
    if BUILT is not None:
        pytest.skip("the library was built elsewhere")
    prefix = pack("binary", tmp_path)
    assert re.fullmatch(rf"fgclip_rt-{re.escape(VERSION)}-\w+(-\w+)?-linux-\w+", prefix.name)
    assert (prefix / "share/licenses/fgclip_rt/THIRD-PARTY.txt").is_file()
    assert_consumable(prefix, tmp_path, onnxruntime_path)


@pytest.mark.slow
def test_a_program_is_built_from_the_source_tarball(build: Path, tmp_path: Path, onnxruntime_path: Path) -> None:
    """Without a network, and without the crates that this machine has already."""
    need("pkg-config")
    assert build.is_dir()
    source = pack("source", tmp_path)
    assert source.name == f"fgclip_rt-{VERSION}-source"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CARGO_")},
        "CARGO_NET_OFFLINE": "true",
        "CARGO_HOME": str(tmp_path / "cargo"),
    }
    subprocess.run(
        ["make", "-C", source, "install", f"PREFIX={tmp_path / 'prefix'}"],
        check=True,
        env=environment,
        timeout=1800,
    )
    assert not (tmp_path / "cargo/registry/cache").exists()
    assert_consumable(tmp_path / "prefix", tmp_path, onnxruntime_path)
