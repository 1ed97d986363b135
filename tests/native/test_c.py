"""The tests that are written in C: compiled pedantically, run, and silent on standard error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from native.conftest import NATIVE
from native.test_refusals import alter, copied

Compile = Callable[..., Path]

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")

pytestmark = pytest.mark.usefixtures("library")


@pytest.fixture(scope="module")
def program(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles one of ``native/tests`` with the shared or the static library."""
    folder = tmp_path_factory.mktemp("c")

    def compiled(name: str, static: bool = False, *options: str) -> Path:
        path = folder / "-".join([name, "static" if static else "shared", *options]).replace("=", "-").replace(",", "-")
        if not path.exists():
            linked = [build / "libfgclip_rt.a"] if static else [f"-L{build}", "-lfgclip_rt", f"-Wl,-rpath,{build}"]
            subprocess.run(
                [
                    *("cc", "-std=c99", "-O1", "-g", *STRICT, *options),
                    *(f"-I{NATIVE / 'include'}", NATIVE / "tests" / f"{name}.c", "-o", path),
                    *(*linked, "-lgcc_s", "-lpthread", "-lm", "-ldl"),
                ],
                check=True,
            )
        return path

    return compiled


def run(*arguments: object, timeout: float = 300) -> str:
    """What a program prints on standard output; it must succeed and print nothing on standard error."""
    result = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=timeout, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    return result.stdout


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_bad_arguments_are_refused(program: Compile, shipped_path: Path, static: bool) -> None:
    assert run(program("arguments", static), shipped_path) == ""


@pytest.fixture
def broken(shipped_path: Path, tmp_path: Path) -> Path:
    """A folder with a bundle for each status of bundles, by its name."""

    def bundle(name: str) -> Path:
        return copied(shipped_path, tmp_path / name)

    def with_version(name: str, version: int) -> None:
        manifest = bundle(name) / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": version}))

    (tmp_path / "bundle_unreadable/manifest.json").mkdir(parents=True)
    (bundle("bundle_incomplete") / "text.fp16.onnx").unlink()
    alter(bundle("bundle_altered") / "tokenizer.json")
    with_version("bundle_newer", 3)
    with_version("bundle_older", 1)
    (bundle("bundle_invalid") / "manifest.json").write_text("[]")
    bundle("bundle_replaced")
    return tmp_path


def test_every_status_is_reached(
    program: Compile,
    shipped_path: Path,
    square_path: Callable[[str], Path],
    broken: Path,
    onnxruntime_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faulty = broken / "faulty.so"
    source = NATIVE / "tests/faulty.c"
    subprocess.run(["cc", "-std=c99", *STRICT, "-fPIC", "-shared", source, "-o", faulty, "-ldl"], check=True)
    # A GPU is found before it fails.
    driver = broken / "libcuda.so.1"
    source = NATIVE / "tests/driver.c"
    subprocess.run(["cc", "-std=c99", *STRICT, "-fPIC", "-shared", source, "-o", driver], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(broken))
    monkeypatch.setenv("FGCLIP_RT_TEST_REAL", str(onnxruntime_path))
    monkeypatch.setenv("FGCLIP_RT_ONNXRUNTIME", str(faulty))
    reached = run(program("statuses"), shipped_path, square_path("fineclip"), broken).split()
    header = (NATIVE / "include/fgclip_rt.h").read_text()
    statuses = re.findall(r"#define FGCLIP_([A-Z_]+) \d{3}\b", header)
    assert sorted(reached) == sorted(name.lower() for name in statuses)


@pytest.mark.parametrize("name", ["fork", "cancel", "busy"])
def test_processes_and_threads(program: Compile, shipped_path: Path, name: str) -> None:
    assert run(program("processes"), name, shipped_path) == ""


def test_an_exit_while_a_thread_runs(program: Compile, shipped_path: Path) -> None:
    """Ten at a time, so that the cores are busy and an exit strikes at any place."""
    delays = [1, 3, 10, 30, 100] * 2
    for _ in range(4):
        started = [subprocess.Popen([program("processes"), "exit", shipped_path, str(delay)]) for delay in delays]
        assert [process.wait(timeout=60) for process in started] == [0] * len(delays)


def test_the_library_can_be_closed_and_opened_again(program: Compile, shipped_path: Path, build: Path) -> None:
    # Linked to the static library, so that the shared one is opened here for the first time.
    assert run(program("processes", True), "dlclose", shipped_path, build / "libfgclip_rt.so") == ""


def test_a_damaged_graph_prints_nothing(program: Compile, shipped_path: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(shipped_path, bundle)
    graph = bundle / "text.fp16.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    assert run(program("processes"), "log", bundle) == ""


def test_onnxruntime_reports_to_nobody(
    program: Compile, shipped_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its telemetry would leave a database in the home folder."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run(program("threads"), shipped_path, 1, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_threads_share_a_model(program: Compile, shipped_path: Path, calls: int) -> None:
    begin, end = map(int, run(program("threads"), shipped_path, 8, calls, timeout=3600).split())
    assert end < begin * 1.1 + 4096


@pytest.mark.parametrize("arguments", [("arguments",), ("threads", 4, 100)], ids=lambda arguments: arguments[0])
def test_sanitizers_find_nothing(program: Compile, shipped_path: Path, arguments: tuple[object, ...]) -> None:
    """Reads and writes outside the callers' memory, memory that is lost, and undefined behaviour in the C programs."""
    name, *counts = arguments
    run(program(name, False, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), shipped_path, *counts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--tool=drd"], (8, 8)),
        (["--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"], (2, 10)),
    ],
    ids=["drd", "memcheck"],
)
def test_valgrind_finds_nothing(
    program: Compile, shipped_path: Path, options: list[str], arguments: tuple[object, ...]
) -> None:
    """Races between threads, and uses of memory that is not there, in our code and the C parts of the tokenizer."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    suppressions = f"--suppressions={NATIVE / 'tests/valgrind.supp'}"
    arguments = (program("threads"), shipped_path, *arguments)
    run("valgrind", "--quiet", "--error-exitcode=9", suppressions, *options, *arguments, timeout=3600)
