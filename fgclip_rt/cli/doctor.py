"""``fgclip-rt doctor``: what this machine can run."""

from __future__ import annotations

import msgspec

from ..doctor import examine
from . import options
from .console import say_json, say_table


def run(json: options.Json = False) -> None:
    """Show what this machine can run, and why not for the rest."""
    checks = examine()
    if json:
        say_json(msgspec.to_builtins(checks))
        return
    say_table(
        "",
        ("", "check", "found", "remedy"),
        (("ok" if check.ok else "no", check.name, check.detail, check.remedy) for check in checks),
        right=False,
    )
