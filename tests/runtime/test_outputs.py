"""Files and folders appear whole or not at all, and a full disk is reported as such, whichever library writes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from fgclip_rt.errors import OutputError
from fgclip_rt.outputs import (
    cannot_write,
    check_output,
    check_picture_output,
    folder_written_whole,
    save_picture,
    written_whole,
)
from helpers import assert_one_sentence, contents

FULL = Path("/dev/full")

VALUES = np.zeros(100_000, np.float32)


def replaceable() -> list[str]:
    """Allows everything in the way to be replaced, and keeps nothing of it."""
    return []


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    with written_whole(path) as partial:
        partial.write_text("new")
        assert partial.suffix == ".npy"
        assert not path.exists()
    assert contents(tmp_path) == {path: b"new"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("exists", [False, True])
def test_a_file_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "out.npy"
    if exists:
        path.write_text("old")
    before = contents(tmp_path)

    def fail() -> None:
        with written_whole(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(OutputError if error is OSError else error):
        fail()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_when_its_block_ends(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "deeper" / "out"
    if exists:
        path.mkdir(parents=True)
        (path / "old").touch()
    with folder_written_whole(path, replaceable) as partial:
        (partial / "new").touch()
        assert not (path / "new").exists()
    assert contents(tmp_path) == {path.parent: None, path: None, path / "new": b""}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "out"
    if exists:
        path.mkdir()
        (path / "old").touch()
    before = contents(tmp_path)

    def fail() -> None:
        with folder_written_whole(path, replaceable) as partial:
            (partial / "half").touch()
            raise error

    with pytest.raises(OutputError if error is OSError else error):
        fail()
    assert contents(tmp_path) == before


def test_what_is_kept_of_a_folder_moves_to_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    (path / ".git").mkdir(parents=True)
    (path / "notes").mkdir()
    for name in ("old", "README.md", ".git/HEAD", "notes/old", "notes/kept"):
        (path / name).write_text(name)
    with folder_written_whole(path, lambda: [".git", "README.md", "notes/kept"]) as partial:
        (partial / "new").touch()
    assert contents(tmp_path) == {
        path: None,
        path / "new": b"",
        path / "README.md": b"README.md",
        path / ".git": None,
        path / ".git/HEAD": b".git/HEAD",
        path / "notes": None,
        path / "notes/kept": b"notes/kept",
    }


def test_a_folder_whose_kept_file_is_in_the_new_one_too_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "both").write_text("old")
    before = contents(tmp_path)

    def write() -> None:
        with folder_written_whole(path, lambda: ["both"]) as partial:
            (partial / "both").write_text("new")

    with pytest.raises(OutputError) as info:
        write()
    assert_one_sentence(info.value, str(path / "both"), code="output_exists")
    assert contents(tmp_path) == before


def test_a_folder_that_must_be_kept_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def keep() -> list[str]:
        raise OutputError("It stays.")

    def come_second() -> None:
        with folder_written_whole(path, keep):
            path.mkdir()
            (path / "mine").touch()

    with pytest.raises(OutputError, match="It stays"):
        come_second()
    assert contents(tmp_path) == {path: None, path / "mine": b""}


def write_text(path: Path) -> None:
    path.write_text("x" * 100_000)


def write_picture(path: Path) -> None:
    Image.new("RGB", (400, 400)).save(path)


def write_npy(path: Path) -> None:
    np.save(path, VALUES)


def write_npz(path: Path) -> None:
    np.savez(path, values=VALUES)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("name", "write"),
    [("a.txt", write_text), ("a.png", write_picture), ("a.npy", write_npy), ("a.npz", write_npz)],
    ids=["text", "picture", "npy", "npz"],
)
def test_a_full_disk_is_told_as_such(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    def fill() -> None:
        with written_whole(tmp_path / name) as partial:
            partial.symlink_to(FULL)
            write(partial)

    with pytest.raises(OutputError) as info:
        fill()
    assert_one_sentence(info.value, str(tmp_path / name), "the disk is full; free some space", code="disk_full")
    assert contents(tmp_path) == {}


def test_a_disk_that_safetensors_found_full_is_told_as_such(tmp_path: Path) -> None:
    """We raise the error, because safetensors writes through a mapped file, and a full device cannot be mapped."""
    with pytest.raises(OutputError) as info, folder_written_whole(tmp_path / "out", replaceable):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert_one_sentence(info.value, "the disk is full; free some space", code="disk_full")


def test_another_failure_names_its_reason_its_remedy_and_the_outcome(tmp_path: Path) -> None:
    error = cannot_write(tmp_path, PermissionError(errno.EACCES, "Permission denied"), "check it", "one was kept")
    assert_one_sentence(error, "(Permission denied); check it; one was kept.", code="output_unwritable")
    full = cannot_write(tmp_path, OSError(errno.ENOSPC, "No space left on device"), "check it", "one was kept")
    assert_one_sentence(full, "full; free some space; one was kept.", code="disk_full")


def test_an_output_is_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file.npz").touch()
    for path, part, code in (
        (tmp_path, "is a folder", "output_unwritable"),
        (tmp_path / "file.npz", "exists already", "output_exists"),
        (tmp_path / "absent" / "a.npz", "is not a folder", "output_unwritable"),
    ):
        with pytest.raises(OutputError) as info:
            check_output(path)
        assert_one_sentence(info.value, str(path), part, code=code)
    check_output(tmp_path / "file.npz", overwrite=True)


def test_a_picture_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as info:
        check_picture_output(tmp_path / "a.txt")
    assert_one_sentence(info.value, "a.txt", ".png", code="argument_invalid")


def test_a_picture_that_its_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as info:
        save_picture(Image.new("RGB", (20_000, 1)), tmp_path / "a.webp")
    assert_one_sentence(info.value, "a.webp", "20000×1", "write .png instead", code="output_unwritable")
    assert contents(tmp_path) == {}
