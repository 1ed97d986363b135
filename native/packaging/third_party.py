"""Writes ``THIRD-PARTY.txt``, the notices of the code that libfgclip_rt is linked with: ``python third_party.py``.

Crates that only build it, such as procedural macros, are not part of it. The texts are those of the crates' own files.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

NATIVE = Path(__file__).parents[1]
NOTICES = Path(__file__).with_name("THIRD-PARTY.txt")

#: The binary that is distributed. Crates for other systems are not in it.
_PLATFORM = "x86_64-unknown-linux-gnu"

_HEAD = """\
Software of others in libfgclip_rt
==================================

libfgclip_rt is linked with Rust's standard library (https://www.rust-lang.org, MIT OR Apache-2.0; its
compiler-builtins are MIT AND Apache-2.0 WITH LLVM-exception) and with the crates below. If a crate offers a choice that
has Apache-2.0 in it, that is the licence it is used under; its text is in the file LICENSE beside this one.
"""

_RULE = "-" * 80


def linked_crates() -> list[dict[str, Any]]:
    """Packages of ``cargo metadata`` that end up in the library, by their names and versions."""
    output = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", _PLATFORM],
        cwd=NATIVE,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    metadata = json.loads(output)
    packages = {package["id"]: package for package in metadata["packages"]}
    links = {node["id"]: node["deps"] for node in metadata["resolve"]["nodes"]}
    waiting = [key for key, package in packages.items() if package["name"] == "fgclip-rt-capi"]
    found = set()
    while waiting:
        key = waiting.pop()
        is_macro = any("proc-macro" in target["kind"] for target in packages[key]["targets"])
        if key not in found and not is_macro:
            found.add(key)
            waiting += [link["pkg"] for link in links[key] if any(kind["kind"] is None for kind in link["dep_kinds"])]
    others = [packages[key] for key in found if packages[key]["source"] is not None]
    return sorted(others, key=lambda package: (package["name"], package["version"]))


def texts(package: dict[str, Any]) -> dict[str, str]:
    """Licences and notices that must be passed on with a crate, by their paths in it."""
    folder = Path(package["manifest_path"]).parent
    has_apache = "Apache-2.0" in package["license"]
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        # These files have no suffix, or that of a text.
        if not re.fullmatch(r"(licen[cs]e|copying|copyright|notice|unlicense)(-\w+)?(\.md|\.txt)?", path.name.lower()):
            continue
        text = path.read_text("utf-8").replace("\r\n", "\n").strip()
        is_alternative = has_apache and name.upper().startswith("LICENSE-")
        is_apache = "Apache License" in text and "TERMS AND CONDITIONS FOR USE" in text
        if not is_alternative and not is_apache:
            found[name] = text
    return found


def notices() -> str:
    """Contents of ``THIRD-PARTY.txt``."""
    crates = linked_crates()
    parts = [_HEAD]
    parts += [f"{crate['name']} {crate['version']}: {crate['license']}, {crate['repository']}\n" for crate in crates]
    by_text: dict[str, list[str]] = {}
    for crate in crates:
        for name, text in texts(crate).items():
            by_text.setdefault(text, []).append(f"{crate['name']} {crate['version']}, {name}")
    for text, names in by_text.items():
        parts.append("\n".join(["", _RULE, *names, _RULE, "", text, ""]))
    return "".join([parts[0], "\n", *parts[1:]])


if __name__ == "__main__":
    NOTICES.write_text(notices(), "utf-8")
