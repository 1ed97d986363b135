"""Prints constraints for pip: the oldest versions that ``pyproject.toml`` allows the runtime and its command line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def oldest(requirement: str) -> str:
    """``name==lowest`` of a requirement ``name>=lowest``, with whatever else follows."""
    found = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
    if found is None:
        raise SystemExit(f"{requirement} in pyproject.toml has no lower bound to test; begin it with one.")
    return "{}=={}".format(*found.groups())


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["cli"]:
        print(oldest(requirement))
