"""The ABI of the C library as ``native/abi`` records it: the functions of the header and the types in their signatures.

The library's own debug information describes Rust's types. So the record is made of a stand-in with the header's
functions; other tests hold the code to the header. ``python tests/native/abi.py`` writes the record anew.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NATIVE = Path(__file__).parents[2] / "native"
HEADER = NATIVE / "include/fgclip_rt.h"
RECORD = NATIVE / "abi/libfgclip_rt.so.1.abi"

#: Bit of abidiff's exit status for a change of the ABI that may be compatible, and for one that is not.
CHANGED, INCOMPATIBLE = 4, 8


def missing() -> str | None:
    """The reason why ABIs cannot be compared, if there is one."""
    tools = [tool for tool in ("cc", "abidw", "abidiff") if shutil.which(tool) is None]
    return f"{' and '.join(tools)} missing (on Debian: apt install gcc abigail-tools)" if tools else None


def write(header: str, record: Path) -> None:
    """Write the ABI of a header to a file."""
    functions = re.sub(r"^(\w[\w ]*\*?fgclip_\w+\([^;]*\));$", r"\1 { __builtin_trap(); }", header, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "fgclip_rt.c", Path(folder) / "libfgclip_rt.so.1"
        source.write_text(functions, encoding="utf-8")
        subprocess.run(
            ["cc", "-g", "-w", "-shared", "-fPIC", "-Wl,-soname,libfgclip_rt.so.1", source.name, "-o", library.name],
            cwd=folder,
            check=True,
        )
        subprocess.run(
            ["abidw", "--no-corpus-path", "--no-comp-dir-path", "--no-show-locs", "--out-file", record, library],
            check=True,
        )


def compare(record: Path, header: str, folder: Path) -> tuple[int, str]:
    """Exit status and report of abidiff: a record against a header."""
    now = folder / "now.abi"
    write(header, now)
    result = subprocess.run(["abidiff", record, now], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


if __name__ == "__main__":
    reason = missing()
    if reason is not None:
        sys.exit(reason)
    RECORD.parent.mkdir(exist_ok=True)
    write(HEADER.read_text(encoding="utf-8"), RECORD)
