"""``fgclip-rt verify --native``: the recorded probe through the C library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgclip_rt.native.library import NativeModel
from helpers import edit_manifest, run_command

#: A model of each family, and each precision. Not all pass in int8 on the goldens.
CASES = [
    *(("shipped", "fp16"), ("pocket", "int8"), ("fgclip1", "fp16"), ("fineclip", "fp32")),
    *(("fgclip2", "fp32"), ("fgclip2-masked", "fp32")),
]

pytestmark = pytest.mark.usefixtures("library")


@pytest.fixture
def so(build: Path) -> Path:
    return build / "libfgclip_rt.so"


def report(*arguments: object, status: int = 0) -> Any:
    command = ["verify", *arguments, "--threads", 1, "--device", "cpu", "--json"]
    return json.loads(run_command(*command, status=status).stdout)


def without_logits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two readers must agree about to the last digit: all but the rounding of logits, and what it decides."""
    figures = [{name: value for name, value in row.items() if name not in ("logit_shift", "flips")} for row in rows]
    return [row for row in figures if row["graph"] != "logits"]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_the_figures_are_those_of_python(bundle_of: Callable[[str], Path], so: Path, name: str, precision: str) -> None:
    expected, found = (report(bundle_of(name), "--precision", precision, *more) for more in ([], ["--native", so]))
    assert list(found) == list(expected)
    assert without_logits(found["rows"]) == without_logits(expected["rows"])
    for row, other in zip(found["rows"], expected["rows"], strict=True):
        assert all(row[key] == other[key] for key in ("graph", "case", "passed"))
        if row["logit_shift"] is not None:
            # The golden checkpoint has a text whose best two logits differ by 2e-6, which is their rounding.
            assert abs(row["flips"] - other["flips"]) <= 1
            assert row["logit_shift"] == pytest.approx(other["logit_shift"], abs=2e-5)
    assert found["passed"]
    assert " on libfgclip_rt" not in expected["backend"]
    assert found["backend"].startswith("libfgclip_rt 0.1.0 with onnxruntime 1.")
    assert found["backend"].endswith(" on cpu (as asked)")


def test_the_table_is_that_of_python(shipped_path: Path, so: Path) -> None:
    expected, found = (run_command("verify", shipped_path, *more).stdout for more in ([], ["--native", so]))
    names = [[line.split()[:2] for line in text.splitlines()] for text in (found, expected)]
    assert names[0] == names[1]
    assert "comparisons passed in fp16 on libfgclip_rt" in found.splitlines()[-1]


def test_what_fails_ends_alike(shipped_path: Path, so: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(shipped_path, bundle)
    edit_manifest(bundle, lambda document: document["parity"]["limits"]["fp16"].update(max_error=1e-12))
    expected, found = (report(bundle, *more, status=1) for more in ([], ["--native", so]))
    assert found["error"]["code"] == "parity_failed"
    assert without_logits(found["rows"]) == without_logits(expected["rows"])


def test_a_library_that_changes_a_byte_fails(shipped_path: Path, so: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = NativeModel.prepare

    def altered(self: NativeModel, *arguments: object) -> object:
        patches, grid = prepare(self, *arguments)  # type: ignore[arg-type]
        patches[0, 0] ^= 1
        return patches, grid

    monkeypatch.setattr(NativeModel, "prepare", altered)
    text = run_command("verify", shipped_path, "--native", so, "--device", "cpu", status=1).stdout
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("preparation")] == ["FAILED"]


def test_bad_calls_are_refused(shipped_path: Path, so: Path, tmp_path: Path) -> None:
    def error(*options: object) -> dict[str, str]:
        result: dict[str, str] = json.loads(run_command("verify", shipped_path, *options, "--json", status=1).stdout)
        return result["error"]  # type: ignore[return-value]

    assert error("--native", tmp_path / "absent.so")["code"] == "native_missing"
    assert error("--native", so, "--precision", "fp8")["code"] == "precision_missing"
    assert error("--native", so, "--device", "tpu")["code"] == "argument_invalid"
    assert error("--native", so, "--threads", 0)["code"] == "argument_invalid"
    assert error("--native", so, "--device", "tensorrt")["code"] == "device_missing"
    for options in (("--backend", "onnxruntime"), ("--preparation", "native")):
        assert "leave them out with --native" in error("--native", so, *options)["message"]
