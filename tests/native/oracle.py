"""The Rust core behind a pipe: a program of its examples that answers what it computes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

NATIVE = Path(__file__).parents[2] / "native"


class Refusal(NamedTuple):
    """An error of the core."""

    message: str
    status: str
    at: int | None


class Oracle:
    """A running program. Not for several threads."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """End the program."""
        self._process.communicate()

    def ask(self, do: str, data: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes] | Refusal:
        """A result and its bytes, or an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request | {"do": do, "bytes": len(data)}).encode() + b"\n" + data)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the core ended at {do} {request}"
        answer = json.loads(line)
        found = self._process.stdout.read(answer["bytes"])
        if "error" in answer:
            return Refusal(answer["error"], answer["status"], answer["index"])
        return answer, found

    def result(self, do: str, data: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
        """A result and its bytes; an error is a failure."""
        answer = self.ask(do, data, **request)
        assert not isinstance(answer, Refusal), answer
        return answer


def build() -> Path:
    """Build the program with cargo, which takes minutes the first time."""
    subprocess.run(
        ["cargo", "build", "--quiet", "--locked", "--package", "fgclip-rt-core", "--example", "oracle"],
        cwd=NATIVE,
        check=True,
    )
    return NATIVE / "target" / "debug" / "examples" / "oracle"


def missing() -> str | None:
    """The reason why the program cannot be built, if there is one."""
    return None if shutil.which("cargo") else "cargo is not installed; install Rust from https://rustup.rs."
