"""The header against the ABI that is on record: programs that were linked before go on as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from native import abi

REASON = abi.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(scope="module")
def header() -> str:
    return abi.HEADER.read_text(encoding="utf-8")


def test_the_header_has_the_abi_on_record(header: str, tmp_path: Path) -> None:
    status, report = abi.compare(abi.RECORD, header, tmp_path)
    assert status == 0, f"{report}\nIf programs go on as they are, record it: python tests/native/abi.py"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("uint32_t fgclip_abi_version(void);", ""),
        ("int64_t index;", "int32_t index;"),
        ("uint32_t width;  /* pixels */", "uint64_t width;"),
        ("int32_t fgclip_model_dim(const fgclip_model *model, uint32_t *dim,", "int32_t fgclip_model_dim(void *dim,"),
        ("int32_t severity, const char *message);", "const char *message);"),
        ("char message[512];", "char message[256];"),
    ],
)
def test_a_change_is_noticed(header: str, tmp_path: Path, old: str, new: str) -> None:
    assert old in header
    status, report = abi.compare(abi.RECORD, header.replace(old, new), tmp_path)
    assert status & (abi.CHANGED | abi.INCOMPATIBLE), report
    assert not status & ~(abi.CHANGED | abi.INCOMPATIBLE), report


def test_a_new_function_is_compatible(header: str, tmp_path: Path) -> None:
    old = "uint32_t fgclip_abi_version(void);"
    status, report = abi.compare(abi.RECORD, header.replace(old, old + "\nint32_t fgclip_new(void);"), tmp_path)
    assert status == abi.CHANGED, report
