"""Packages of fonts that are advised."""

from __future__ import annotations

import platform
import sys

import pytest

from fgclip_rt.heatmap import font_advice

NOTO = "install a font that has them, such as one of https://fonts.google.com/noto"


@pytest.mark.parametrize(
    ("release", "texts", "advice"),
    [
        ({"ID": "debian"}, ["a 电脑"], "run 'apt install fonts-noto-cjk'"),
        ({"ID": "debian"}, ["ねこ", "カ", "고양이", "。"], "run 'apt install fonts-noto-cjk'"),
        ({"ID": "debian"}, ["\U000323af"], "run 'apt install fonts-noto-cjk'"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, ["قط"], "run 'apt install fonts-noto-core'"),
        (
            {"ID": "mint", "ID_LIKE": "ubuntu debian"},
            ["电", "नमस्ते 🚗"],
            "run 'apt install fonts-noto-cjk fonts-noto-color-emoji fonts-noto-core'",
        ),
        ({"ID": "fedora"}, ["电"], "run 'dnf install google-noto-sans-cjk-fonts'"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, ["🚗"], "run 'dnf install google-noto-color-emoji-fonts'"),
        ({"ID": "arch"}, ["电"], "run 'pacman -S noto-fonts-cjk'"),
        ({"ID": "alpine"}, ["电"], "run 'apk add font-noto-cjk'"),
        ({"ID": "other"}, ["电"], NOTO),
        (None, ["电"], NOTO),
    ],
)
def test_on_linux(
    release: dict[str, str] | None, texts: list[str], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> dict[str, str]:
        if release is None:
            raise OSError
        return release

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "freedesktop_os_release", read)
    assert font_advice(texts) == advice


@pytest.mark.parametrize(
    ("name", "texts", "advice"),
    [
        ("darwin", ["电🚗"], "run 'brew install --cask font-noto-sans-cjk-sc font-noto-color-emoji'"),
        ("darwin", ["電\u1200"], NOTO),
        ("win32", ["电"], NOTO),
    ],
)
def test_elsewhere(name: str, texts: list[str], advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", name)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: (_ for _ in ()).throw(OSError()))
    assert font_advice(texts) == advice
