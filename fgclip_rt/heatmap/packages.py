"""Packages that bring fonts, by what they are for and by system."""

from __future__ import annotations

import platform
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["cjk", "emoji", "other"]

#: By an ``ID`` or ``ID_LIKE`` of ``/etc/os-release``: the command, and the package of each kind of characters.
_LINUX: Mapping[str, tuple[str, Mapping[Kind, str]]] = {
    "debian": (
        "apt install",
        {"cjk": "fonts-noto-cjk", "emoji": "fonts-noto-color-emoji", "other": "fonts-noto-core"},
    ),
    "fedora": (
        "dnf install",
        {
            "cjk": "google-noto-sans-cjk-fonts",
            "emoji": "google-noto-color-emoji-fonts",
            "other": "google-noto-fonts-all",
        },
    ),
    "arch": ("pacman -S", {"cjk": "noto-fonts-cjk", "emoji": "noto-fonts-emoji", "other": "noto-fonts"}),
    "alpine": ("apk add", {"cjk": "font-noto-cjk", "emoji": "font-noto-emoji", "other": "font-noto-all"}),
}
_MACOS: Mapping[Kind, str] = {"cjk": "font-noto-sans-cjk-sc", "emoji": "font-noto-color-emoji"}

#: Words that begin the Unicode names of characters that Chinese, Japanese and Korean are written with.
_CJK = ("CJK", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH", "BOPOMOFO", "HIRAGANA", "KATAKANA", "HANGUL")


def font_advice(lacking: Iterable[str]) -> str:
    """The command, or else the address, that brings fonts for these characters on this system, as an order."""
    kinds = sorted({_kind(character) for cluster in lacking for character in cluster if not character.isascii()})
    if sys.platform == "darwin" and all(kind in _MACOS for kind in kinds):
        return f"run 'brew install --cask {' '.join(_MACOS[kind] for kind in kinds)}'"
    for name in _system_names():
        if name in _LINUX:
            command, packages = _LINUX[name]
            return f"run '{command} {' '.join(packages[kind] for kind in kinds)}'"
    return "install a font that has them, such as one of https://fonts.google.com/noto"


def _kind(character: str) -> Kind:
    # The planes after the first two hold ideographs only, new ones among them that Python cannot name.
    if unicodedata.name(character, "").split(" ")[0] in _CJK or ord(character) >= 0x20000:
        return "cjk"
    # Pictures stand in these blocks; symbols that are older than emoji come with the other fonts.
    return "emoji" if 0x1F000 <= ord(character) < 0x20000 else "other"


def _system_names() -> list[str]:
    """Names of this Linux and of those that it is like, nearest first."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return []
    return [release["ID"], *release.get("ID_LIKE", "").split()]
