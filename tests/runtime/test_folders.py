"""Every image below a folder is found once, everything else is counted, and nothing that would wait is opened."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fgclip_rt import folders
from fgclip_rt.errors import ImageError
from fgclip_rt.folders import BROKEN_LINKS, HIDDEN, LINKED_AGAIN, OTHER, SPECIAL, Found, search_folder
from helpers import assert_one_sentence

#: Beginnings of files, by what they are.
CONTENT = {
    "HEIC": b"\x00\x00\x00\x24ftypheic\x00\x00\x00\x00mif1heic",
    "AVIF": b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00avifmif1",
    "JPEG XL": b"\x00\x00\x00\x0cJXL \r\n\x87\n",
    "RAW": b"II*\x00\x10\x00\x00\x00CR\x02\x00",
    "video": b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00isommp42",
    OTHER: b"\x7fELF\x02\x01\x01",
}


@pytest.fixture(autouse=True)
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests mean the same whether pillow-heif is installed or not."""
    monkeypatch.setattr(folders, "missing_packages", list)


def make(folder: Path, *names: str, content: bytes = b"") -> None:
    """Files of the same content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names(found: Found, folder: Path) -> list[str]:
    return [os.path.relpath(file, folder) for file in found.files]


def test_files_come_in_the_order_of_their_parts(tmp_path: Path) -> None:
    make(tmp_path, "b.JPG", "a/z.png", "a-b/c.webp", "a.tiff", "a/b/c.bmp", "a/Z.jpeg")
    found = search_folder(tmp_path)
    assert names(found, tmp_path) == ["a/Z.jpeg", "a/b/c.bmp", "a/z.png", "a-b/c.webp", "a.tiff", "b.JPG"]
    assert found.files == list(map(str, sorted(map(Path, found.files))))
    assert (found.passed_over, found.unreadable) == ({}, [])


def test_the_working_folder_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg", "b/c.jpg")
    monkeypatch.chdir(tmp_path)
    assert search_folder(".").files == ["a.jpg", "b/c.jpg"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "QOI"])
@pytest.mark.parametrize("name", ["IMG_0001", "photo.jpg_large", "0123.ab"])
def test_content_decides_if_the_suffix_does_not(kind: str, name: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6), (1, 2, 3))
    with (tmp_path / name).open("wb") as file:
        image.save(file, format=kind)
    assert names(search_folder(tmp_path), tmp_path) == [name]


@pytest.mark.parametrize("kind", CONTENT)
def test_content_tells_what_is_passed_over(kind: str, tmp_path: Path) -> None:
    make(tmp_path, "blob", "blob.unknown", content=CONTENT[kind])
    expected = [2, 0] if kind == "AVIF" else [0, 2]
    found = search_folder(tmp_path)
    assert [len(found.files), found.passed_over.get(kind, 0)] == expected
    assert sum(found.passed_over.values()) == expected[1]


def test_texts_that_begin_like_images_are_none(tmp_path: Path) -> None:
    make(tmp_path, "BMW", content=b"BMW made these photos, and nobody else did so.")
    make(tmp_path, "P5", content=b"P51 Mustang")
    make(tmp_path, "RIFF", content=b"RIFF\x00\x00\x00\x00WAVEfmt ")
    make(tmp_path, "empty")
    assert search_folder(tmp_path) == Found([], {OTHER: 4}, [])


def test_suffixes_name_what_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a.HEIC", "b.heif", "a.nef", "b.DNG", "a.jxl", "a.mov", "b.mpg", "a.txt", "b.json", "c.eps", "c.pdf")
    expected = {"HEIC": 2, "RAW": 2, "JPEG XL": 1, "video": 2, OTHER: 4}
    assert search_folder(tmp_path) == Found([], expected, [])


def test_a_raw_file_is_not_taken_for_the_tiff_file_that_it_looks_like(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.nef", format="TIFF")
    # A camera's suffix on what is a plain image after all.
    Image.new("RGB", (8, 6)).save(tmp_path / "a.heic", format="JPEG")
    assert search_folder(tmp_path) == Found([str(tmp_path / "a.heic")], {"RAW": 1}, [])


def test_a_plugin_of_pillow_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jxl", "blob", content=CONTENT["JPEG XL"])
    assert search_folder(tmp_path).passed_over == {"JPEG XL": 2}
    monkeypatch.setitem(Image.OPEN, "JXL", (None, None))
    assert names(search_folder(tmp_path), tmp_path) == ["a.jxl", "blob"]


@pytest.mark.parametrize("installed", [False, True])
def test_heic_photos_are_found_where_they_can_be_read(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "missing_packages", lambda packages: [] if installed else packages)
    make(tmp_path, "a.heic", "blob", content=CONTENT["HEIC"])
    make(tmp_path, "empty.heic")
    expected = Found([str(tmp_path / name) for name in ("a.heic", "blob", "empty.heic")], {}, [])
    assert search_folder(tmp_path) == (expected if installed else Found([], {"HEIC": 3}, []))


def test_hidden_files_and_folders_of_systems_are_passed_over(tmp_path: Path) -> None:
    hidden = ("._a.jpg", ".DS_Store", ".hidden.jpg", ".cache/b.jpg", "@eaDir/a.jpg/SYNOPHOTO.jpg", "__MACOSX/a.jpg")
    make(tmp_path, "a.jpg", *hidden, "lost+found/a.jpg", "sub/.git/a.jpg", "sub/Thumbs.db")
    found = search_folder(tmp_path)
    # A folder counts once.
    assert (names(found, tmp_path), found.passed_over) == (["a.jpg"], {HIDDEN: len(hidden) + 3})
    assert names(search_folder(tmp_path / ".cache"), tmp_path) == [".cache/b.jpg"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    make(photos, "a.jpg", "sub/b.jpg")
    make(elsewhere, "c.jpg", "folder/d.jpg", "blob", content=b"\xff\xd8\xff\xe0")
    for link, target in {
        "loop": photos,
        "sub/up": photos,
        "folder": elsewhere / "folder",
        "sub/folder": elsewhere / "folder",
        "c.jpg": elsewhere / "c.jpg",
        "sub/again.jpg": elsewhere / "c.jpg",
        "same.jpg": photos / "a.jpg",
        "x": elsewhere / "blob",
        "broken.jpg": tmp_path / "absent",
        "itself": photos / "itself",
    }.items():
        (photos / link).symlink_to(target)
    (elsewhere / "folder/back").symlink_to(photos)
    os.link(photos / "a.jpg", photos / "hard.jpg")
    found = search_folder(photos)
    assert names(found, photos) == ["a.jpg", "c.jpg", "folder/d.jpg", "hard.jpg", "sub/b.jpg", "x"]
    # loop, sub/up, folder/back, sub/folder, sub/again.jpg and same.jpg.
    assert found.passed_over == {LINKED_AGAIN: 6, BROKEN_LINKS: 2}
    assert search_folder(photos) == found


def test_a_link_to_a_hidden_file_is_the_way_to_it(tmp_path: Path) -> None:
    """Caches keep files under digests in a hidden folder, and give them names by links."""
    make(tmp_path, ".blobs/1234", content=b"\xff\xd8\xff\xe0")
    (tmp_path / "a.jpg").symlink_to(".blobs/1234")
    assert names(search_folder(tmp_path), tmp_path) == ["a.jpg"]


def test_pipes_sockets_and_devices_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipe would wait for its writer for ever."""
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null").symlink_to(os.devnull)
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert search_folder(tmp_path) == Found([], {SPECIAL: 4}, [])


def test_folders_and_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so that the refusals are made up."""
    make(tmp_path, "a.jpg", "closed/b.jpg", "sub/closed/c.jpg", "secret")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def refuse_secret(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(folders, "open", refuse_secret, raising=False)
    found = search_folder(tmp_path)
    assert names(found, tmp_path) == ["a.jpg"]
    assert found.unreadable == [str(tmp_path / name) for name in ("closed", "secret", "sub/closed")]
    with pytest.raises(ImageError) as info:
        search_folder(tmp_path / "closed")
    assert_one_sentence(info.value, str(tmp_path / "closed"), "Permission denied", code="image_unreadable")


def test_an_entry_that_cannot_be_looked_at_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg", "b.jpg")

    def fail() -> bool:
        raise OSError(5, "Input/output error")

    class Entries(list[Any]):
        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    broken = SimpleNamespace(name="bad.jpg", path="bad.jpg", is_symlink=fail)
    with os.scandir(tmp_path) as entries:
        listed = Entries([broken, *entries])
    monkeypatch.setattr(os, "scandir", lambda _: listed)
    found = search_folder(tmp_path)
    assert (names(found, tmp_path), found.unreadable) == (["a.jpg", "b.jpg"], ["bad.jpg"])


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as info:
        search_folder(tmp_path / "absent")
    assert_one_sentence(info.value, "absent", "No such file", code="image_unreadable")


def test_a_deep_folder_is_searched(tmp_path: Path) -> None:
    """Deeper than functions may call themselves."""
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("a.jpg", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    try:
        found = search_folder(tmp_path)
    finally:
        # Python's own function calls itself for each folder.
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
    assert [Path(file).name for file in found.files] == ["a.jpg"]


def test_what_two_folders_hold_is_joined() -> None:
    found = Found(["a"], {OTHER: 1}, ["x"])
    found.add(Found(["b"], {OTHER: 2, HIDDEN: 1}, ["y"]))
    assert found == Found(["a", "b"], {OTHER: 3, HIDDEN: 1}, ["x", "y"])
    assert list(found.passed_over) == [HIDDEN, OTHER]
