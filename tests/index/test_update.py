"""From a folder to its index: only what changed is read, and whatever happens, a search finds the old or the new."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from indexing import bring_up_to_date, damage
from numpy.testing import assert_allclose

from fgclip_rt.errors import ArgumentError, FgclipError, ImageError, IndexFileError, OutputError
from fgclip_rt.index import ImageIndex, update, writer
from fgclip_rt.index.files import IndexFiles
from fgclip_rt.model import Model, load
from fgclip_rt.space import Origin
from helpers import another_export, another_space, assert_one_sentence


def origin(model: Model) -> Origin:
    return Origin.of(model.bundle, model.precision)


def held(output: Path) -> dict[str, np.ndarray]:
    """The vector of each image that an index finds, by its path."""
    files = IndexFiles.open(output)
    try:
        vectors = files.vectors()
        entries = [entry for entry in files.entries() if entry.row is not None]
        return {os.fsdecode(entry.path): np.array(vectors[entry.row], np.float32) for entry in entries}
    finally:
        files.close()


def assert_holds(output: Path, model: Model, photos: Path) -> None:
    """An index holds the vector of each image of a folder, and nothing else."""
    expected = {str(path.relative_to(photos)): path for path in photos.rglob("*.png")}
    found = held(output)
    assert found.keys() == expected.keys()
    vectors = model.embed_images(list(expected.values()))
    for vector, name in zip(vectors, expected, strict=True):
        # float16 keeps 11 bits of numbers below one.
        assert_allclose(found[name], vector, atol=2**-12, err_msg=name)


def test_it_holds_the_vectors_of_the_images(pocket: Model, photos: Path, output: Path) -> None:
    made = bring_up_to_date(pocket, photos, output)
    assert (made.images, made.added, made.changed, made.removed, made.embedded) == (10, 10, 0, 0, 10)
    assert_holds(output, pocket, photos)


def test_nothing_is_read_again_that_has_its_size_and_time(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up_to_date(pocket, photos, output)
    monkeypatch.setattr(Model, "prepare", None)
    again = bring_up_to_date(pocket, photos, output)
    assert (again.unchanged, again.added, again.changed, again.removed, again.embedded) == (10, 0, 0, 0, 0)


def test_new_changed_and_gone_files_are_told_apart(pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    shutil.copy(photos / "0.png", photos / "1.png")
    (photos / "2.png").unlink()
    shutil.copy(photos / "3.png", photos / "new.png")
    (photos / "4.png").rename(photos / "more" / "moved.png")
    again = bring_up_to_date(pocket, photos, output)
    # A copy and a moved file are new names of contents that have their vectors.
    assert (again.images, again.added, again.changed, again.removed, again.embedded) == (10, 2, 1, 2, 0)
    assert_holds(output, pocket, photos)


def test_a_copy_shares_the_vector_of_its_content(pocket: Model, photos: Path, output: Path) -> None:
    for number in range(40):
        shutil.copy(photos / "0.png", photos / f"copy{number}.png")
    made = bring_up_to_date(pocket, photos, output)
    assert made.images == 50
    files = IndexFiles.open(output)
    assert files.count() == 10
    assert len({entry.row for entry in files.entries() if b"copy" in entry.path or entry.path == b"0.png"}) == 1
    files.close()


def test_images_that_cannot_be_read_are_kept_with_their_errors(pocket: Model, photos: Path, output: Path) -> None:
    (photos / "bad.png").write_bytes((photos / "0.png").read_bytes()[:500])
    made = bring_up_to_date(pocket, photos, output)
    (bad,) = made.unreadable
    assert (bad.path, bad.code) == (b"bad.png", "image_damaged")
    assert str(photos / "bad.png") in (bad.error or "")
    # It is damaged still, so it is not read again, and it is said again.
    again = bring_up_to_date(pocket, photos, output)
    assert again.unreadable == [bad]
    assert again.unchanged == 11
    shutil.copy(photos / "0.png", photos / "bad.png")
    assert bring_up_to_date(pocket, photos, output).unreadable == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_could_not_be_opened_is_tried_again(pocket: Model, photos: Path, output: Path) -> None:
    (photos / "0.png").chmod(0)
    assert [entry.code for entry in bring_up_to_date(pocket, photos, output).unreadable] == ["image_unreadable"]
    (photos / "0.png").chmod(0o600)
    assert bring_up_to_date(pocket, photos, output).unreadable == []


def test_a_file_that_vanishes_meanwhile_is_reported(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def vanish(path: object, **options: object) -> os.stat_result:
        state = stat(path, **options)  # type: ignore[arg-type, call-overload]
        if isinstance(path, bytes) and path.endswith(b"/5.png"):
            (photos / "5.png").unlink(missing_ok=True)
        return state

    monkeypatch.setattr("fgclip_rt.index.updating.os.stat", vanish)
    made = bring_up_to_date(pocket, photos, output)
    monkeypatch.undo()
    assert [(entry.path, entry.code) for entry in made.unreadable] == [(b"5.png", "image_unreadable")]
    assert made.images == 9
    assert bring_up_to_date(pocket, photos, output).removed == 1


def test_names_that_are_not_utf_8(pocket: Model, photos: Path, output: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.png")
    (photos / "0.png").rename(photos / name)
    bring_up_to_date(pocket, photos, output)
    assert name in held(output)
    with ImageIndex(output) as index:
        (hits,) = index.search(pocket.embed_images(photos / name), 1)
        assert hits[0].image == "caf\\xe9 \\xff.png"
        assert index.file(hits[0]) == photos / name


def test_folders_are_named_as_hits_spell_them_or_as_the_system_does(pocket: Model, photos: Path, output: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (photos / "more").rename(photos / name)
    (photos / "0.png").rename(photos / "back\\slash.png")
    bring_up_to_date(pocket, photos, output)
    query = pocket.embed_texts("a star")
    with ImageIndex(output) as index:
        for folder in (name, "caf\\xe9", "/caf\\xe9/"):
            assert {hit.image for hit in index.search(query, 10, folder)[0]} == {"caf\\xe9/8.png", "caf\\xe9/9.png"}
            assert index.searched(folder) == 2
        # Nothing is below a file, or below half of a name.
        for folder in ("caf", "back\\slash.png"):
            with pytest.raises(IndexFileError) as info:
                index.search(query, 10, folder)
            assert_one_sentence(info.value, folder, code="index_empty")
        with pytest.raises(ArgumentError) as refused:
            index.search(query, 10, "\ud800")
        assert_one_sentence(refused.value, "valid Unicode", code="argument_invalid")


def test_rows_that_lost_their_images_go_once_they_are_over_half(pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    with ImageIndex(output) as index:
        query = pocket.embed_images(photos / "more" / "9.png")
        assert index.search(query, 1)[0][0].image == "more/9.png"
        for number in (0, 2, 4, 6, 7):
            (photos / f"{number}.png").unlink()
        bring_up_to_date(pocket, photos, output)
        assert (output / "vectors-1.f16").stat().st_size == 2 * 10 * pocket.dim
        (photos / "5.png").unlink()
        bring_up_to_date(pocket, photos, output)
        assert [(path.name, path.stat().st_size) for path in output.glob("vectors*")] == [
            ("vectors-4.f16", 2 * 4 * pocket.dim)
        ]
        # A reader that was open before sees the new rows under their new numbers.
        assert index.search(query, 1)[0][0].image == "more/9.png"
        assert index.searched() == 4
    assert_holds(output, pocket, photos)


def test_another_export_goes_on_and_another_space_only_if_it_is_interchangeable(
    pocket: Model, photos: Path, output: Path, tmp_path: Path
) -> None:
    bring_up_to_date(pocket, photos, output)
    exported = load(another_export(pocket.bundle.path, tmp_path / "exported"))
    (photos / "3.png").unlink()
    assert update(exported, photos, output, bundle=str(exported.bundle.path)).embedded == 0
    with ImageIndex(output) as index:
        # The bundle of the last update is the one that searches take.
        assert (index.about.bundle, index.about.origin) == (str(exported.bundle.path), origin(exported))
    other = load(another_space(pocket.bundle.path, tmp_path / "other"))
    shutil.copy(photos / "2.png", photos / "copy.png")
    with pytest.raises(IndexFileError) as info:
        update(other, photos, output, bundle="other")
    assert_one_sentence(info.value, pocket.space_sha256[:12], "another", "fgclip-rt compare", code="index_mismatch")
    assert update(other, photos, output, bundle="other", interchangeable=True).images == 10
    with ImageIndex(output) as index:
        index.check_model(other)
        assert index.about.origin == origin(other)


def test_an_index_of_an_earlier_version_belongs_to_its_bundle_alone(
    pocket: Model, photos: Path, output: Path, tmp_path: Path
) -> None:
    bring_up_to_date(pocket, photos, output)
    exported = load(another_export(pocket.bundle.path, tmp_path / "exported"))
    table = sqlite3.connect(output / "index.sqlite")
    ((text,),) = table.execute("SELECT description FROM about")
    old = {name: value for name, value in json.loads(text).items() if name != "space_sha256"}
    table.execute("UPDATE about SET description = ?", (json.dumps(old),))
    table.commit()
    table.close()
    with ImageIndex(output) as index, pytest.raises(IndexFileError) as info:
        index.check_model(exported)
    assert_one_sentence(info.value, f"(bundle {pocket.bundle.manifest_sha256[:12]})", code="index_mismatch")
    # From then on it has a fingerprint.
    bring_up_to_date(pocket, photos, output)
    with ImageIndex(output) as index:
        index.check_model(exported)


def test_another_width_is_no_index_to_go_on_with(model: Model, pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    with pytest.raises(IndexFileError) as info:
        update(model, photos, output, bundle="other", interchangeable=True)
    assert_one_sentence(info.value, f"{pocket.dim} numbers", str(model.dim), code="index_mismatch")


def test_another_folder_or_setting_is_refused(pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    before = held(output).keys()
    with pytest.raises(IndexFileError) as info:
        bring_up_to_date(pocket, photos / "more", output)
    assert_one_sentence(info.value, str(output), str(photos), "--overwrite", code="index_mismatch")
    assert held(output).keys() == before
    made = bring_up_to_date(pocket, photos / "more", output, anew=True)
    assert made.images == 2
    assert_holds(output, pocket, photos / "more")


def test_nothing_that_is_no_index_is_replaced(pocket: Model, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    with pytest.raises(FgclipError) as info:
        bring_up_to_date(pocket, photos, tmp_path / "letters")
    assert_one_sentence(info.value, "letters", code="index_missing")
    with pytest.raises(OutputError) as info:
        bring_up_to_date(pocket, photos, tmp_path / "letters", anew=True)
    assert_one_sentence(info.value, "love.txt", code="output_exists")
    assert (tmp_path / "letters" / "love.txt").read_text() == "dear"


def test_a_second_writer_is_refused_while_readers_go_on(pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    about = ImageIndex(output).about
    with writer.Writer(output, about, anew=False), ImageIndex(output) as index:
        with pytest.raises(IndexFileError) as info:
            bring_up_to_date(pocket, photos, output)
        assert_one_sentence(info.value, str(output), "another process", code="index_locked")
        assert len(index.search(pocket.embed_texts("a star"), 3)[0]) == 3
    assert bring_up_to_date(pocket, photos, output).unchanged == 10


def test_a_full_disk_leaves_the_index_as_it_was(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up_to_date(pocket, photos, output)
    before = held(output).keys()
    shutil.copytree(photos, photos / "again")
    (photos / "again" / "0.png").write_bytes((photos / "1.png").read_bytes() + b"\0")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgclip_rt.index.writer.os.fsync", full)
    with pytest.raises(OutputError) as info:
        bring_up_to_date(pocket, photos, output)
    assert_one_sentence(info.value, str(output), "disk is full", code="disk_full")
    assert held(output).keys() == before
    monkeypatch.undo()
    bring_up_to_date(pocket, photos, output)
    assert_holds(output, pocket, photos)


def test_so_does_a_table_that_outgrows_the_disk(pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    before = held(output).keys()
    (photos / "8.png").write_bytes((photos / "1.png").read_bytes() + b"\0")
    index = writer.Writer(output, ImageIndex(output).about, anew=False)
    with index:
        (pages,) = index.files.table.execute("PRAGMA page_count").fetchone()
        index.files.table.execute(f"PRAGMA max_page_count = {pages}")
        many = [writer.NewContent(str(number).encode(), 1, 1, 128) for number in range(1000)]
        with pytest.raises(OutputError) as info:
            index.add(many, np.zeros((1000, pocket.dim), np.float32))
    assert_one_sentence(info.value, str(output), "disk is full", code="disk_full")
    assert held(output).keys() == before


# Vectors carry no checksum: a search would have to read all of them to compute it.
@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("vectors-1.f16", "cut"),
        ("vectors-1.f16", "gone"),
        ("index.sqlite", "cut"),
        ("index.sqlite", "gone"),
        ("index.sqlite", "noise"),
    ],
)
def test_damaged_files_are_known(pocket: Model, photos: Path, output: Path, file: str, how: str) -> None:
    bring_up_to_date(pocket, photos, output)
    damage(output / file, how)
    with pytest.raises(IndexFileError) as info, ImageIndex(output) as index:
        index.search(pocket.embed_texts("a star"))
    expected = "index_missing" if (file, how) == ("index.sqlite", "gone") else "index_damaged"
    assert_one_sentence(info.value, str(output), code=expected)
    assert bring_up_to_date(pocket, photos, output, anew=True).images == 10


def test_a_newer_format_is_known(pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    table = sqlite3.connect(output / "index.sqlite")
    (text,) = table.execute("SELECT description FROM about").fetchone()
    # A format of the future may describe itself in other words.
    table.execute("UPDATE about SET description = ?", (json.dumps({**json.loads(text), "format_version": 2, "x": 1}),))
    table.commit()
    with pytest.raises(IndexFileError) as info:
        ImageIndex(output)
    assert_one_sentence(info.value, "format version 2", "upgrade", code="index_newer")


@pytest.mark.parametrize("left", [b"", b"no table at all" * 100])
def test_a_first_run_that_could_not_write_its_table_is_begun_anew(
    pocket: Model, photos: Path, output: Path, left: bytes
) -> None:
    unfinished = output.with_name(".photos.index.unfinished")
    unfinished.mkdir()
    (unfinished / "index.sqlite").write_bytes(left)
    assert bring_up_to_date(pocket, photos, output).images == 10
    assert not unfinished.exists()


def test_a_folder_that_is_missing_is_refused_and_nothing_is_made(pocket: Model, tmp_path: Path, output: Path) -> None:
    with pytest.raises(ImageError):
        bring_up_to_date(pocket, tmp_path / "none", output)
    assert list(tmp_path.iterdir()) == []


UPDATE = """
import sys, fgclip_rt
from pathlib import Path
from fgclip_rt.index import update
model = fgclip_rt.load("fg-clip2-pocket", threads=1)
print("begun", flush=True)
update(model, Path(sys.argv[1]), Path(sys.argv[2]), bundle="fg-clip2-pocket")
"""


def kill_after(seconds: float, photos: Path, output: Path) -> None:
    """Bring an index up to date in a process that is killed ``seconds`` after it has loaded its model."""
    process = subprocess.Popen(
        [sys.executable, "-c", UPDATE, str(photos), str(output)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_killed_at_any_moment_it_is_the_old_or_the_new_one(pocket: Model, photos: Path, output: Path) -> None:
    bring_up_to_date(pocket, photos, output)
    old = held(output).keys()
    for number in range(60):
        (photos / f"n{number}.png").write_bytes((photos / "1.png").read_bytes() + b"\0" * number)
    (photos / "0.png").unlink()
    new = (old - {"0.png"}) | {f"n{number}.png" for number in range(60)}
    for seconds in (0.0, 0.1, 0.2, 0.4, 0.8):
        kill_after(seconds, photos, output)
        assert held(output).keys() in (old, new)
    bring_up_to_date(pocket, photos, output)
    assert held(output).keys() == new
    assert_holds(output, pocket, photos)


def test_an_interrupted_first_run_leaves_no_index_and_loses_no_vector(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer.Writer, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        bring_up_to_date(pocket, photos, output)
    assert not output.exists()
    monkeypatch.undo()
    made = bring_up_to_date(pocket, photos, output)
    assert (made.images, made.embedded) == (10, 0)
    assert [path.name for path in output.parent.iterdir() if "photos.index" in path.name] == ["photos.index"]
    assert_holds(output, pocket, photos)
