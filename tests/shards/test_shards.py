"""A shard of each kind to its files: rows, dead letters and marker, from good and from broken inputs."""

from __future__ import annotations

import errno
import gzip
import hashlib
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from fgclip_rt.errors import ArgumentError, OutputError, ShardError
from fgclip_rt.model import Model
from fgclip_rt.shards import Columns, Marker, embed_shard, find_shards, make_job, open_store, records, storage
from fgclip_rt.shards.inputs import part_of
from fgclip_rt.shards.job import Shard
from fgclip_rt.shards.layouts import _ParquetRows
from fgclip_rt.shards.records import read_records
from helpers import assert_one_sentence
from sharding import bomb, jpeg, letters_of, rows_of, write_folder, write_parquet, write_tar


def embed(model: Model, source: Path | str, output: Path | str, retry: Marker | None = None, **settings: Any) -> Marker:
    """Embed the one shard of an input."""
    (shard,) = find_shards([str(source)], 1000)
    job = make_job(model.bundle, model.precision, **settings)
    store = open_store(str(output))
    store.claim(job)
    return embed_shard(model, job, shard, store, retry=retry)


def assert_vectors(model: Model, rows: dict[str, dict[str, Any]], images: dict[str, bytes], atol: float = 1e-6) -> None:
    """Rows hold the vectors of these images."""
    assert rows.keys() == images.keys()
    for id_, data in images.items():
        assert np.allclose(rows[id_]["vector"], model.embed_images([data])[0], atol=atol)


def test_a_tar_gives_its_samples(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    members = [(f"in/{number:04d}.{kind}", data) for number, image in enumerate(images) for kind, data in (
        ("jpg", image), ("txt", f"caption {number}\n".encode()), ("json", b"{}"))]  # fmt: skip
    marker = embed(pocket, write_tar(tmp_path / "a.tar", members), tmp_path / "out")
    rows = rows_of(tmp_path / "out/a.parquet")
    assert_vectors(pocket, rows, {f"in/{number:04d}": image for number, image in enumerate(images)})
    assert rows["in/0001"]["caption"] == "caption 1"
    assert (rows["in/0001"]["width"], rows["in/0001"]["height"]) == (280, 200)
    assert pq.read_schema(tmp_path / "out/a.parquet").field("vector").type == pa.list_(pa.float32(), pocket.dim)
    assert (marker.rows, marker.errors, marker.manifest_sha256) == (12, {}, pocket.bundle.manifest_sha256)
    assert marker.space_sha256 == pocket.space_sha256
    assert msgspec.json.decode((tmp_path / "out/a.json").read_bytes(), type=Marker) == marker
    assert not (tmp_path / "out/a.errors.parquet").exists()
    assert list((tmp_path / "out/.unfinished").iterdir()) == []


def test_a_compressed_tar_gives_the_same(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", [(f"{number}.jpg", image) for number, image in enumerate(images)], "w:gz")
    embed(pocket, path, tmp_path / "out")
    assert_vectors(
        pocket, rows_of(tmp_path / "out/a.parquet"), {str(number): image for number, image in enumerate(images)}
    )


def test_a_tar_with_all_that_can_be_wrong(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    members = [
        ("._a.jpg", b"of a Mac"), ("a.jpg", images[0]), ("b.txt", b"no image"), ("c.jpg", images[1][:400]),
        ("a.jpg", images[2]), ("d.jpg", b""), ("e.jpg", b"no image"), ("f.seg.PNG", images[3]),
        ("g.png", bomb()), ("h.gif", b"GIF89a" + bytes(20)), ("i.svg", b"<svg/>"),
    ]  # fmt: skip
    marker = embed(pocket, write_tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert_vectors(pocket, rows_of(tmp_path / "out/a.parquet"), {"a": images[0], "f": images[3]})
    expected = [
        ("a", "item_duplicate"), ("b", "item_missing"), ("c", "image_damaged"), ("d", "image_damaged"),
        ("e", "image_unsupported"), ("g", "image_too_large"), ("h", "image_unsupported"), ("i", "item_missing"),
    ]  # fmt: skip
    assert letters_of(tmp_path / "out/a.errors.parquet") == expected
    assert marker.errors == {
        "image_damaged": 2, "image_too_large": 1, "image_unsupported": 2, "item_duplicate": 1, "item_missing": 2,
    }  # fmt: skip
    letters = {row["id"]: row for row in pq.read_table(tmp_path / "out/a.errors.parquet").to_pylist()}
    assert letters["c"]["digest"] == hashlib.sha256(images[1][:400]).hexdigest()
    assert letters["b"]["digest"] is None
    for letter in letters.values():
        assert_one_sentence(letter["error"])


@pytest.mark.parametrize("cut", ["in a member", "between members", "in a header"])
def test_a_tar_that_is_cut_gives_what_comes_before(
    pocket: Model, images: list[bytes], tmp_path: Path, cut: str
) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", image) for number, image in enumerate(images[:4])])
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    at = {"in a member": last.offset_data + 100, "between members": last.offset, "in a header": last.offset + 200}[cut]
    path.write_bytes(path.read_bytes()[:at])
    embed(pocket, path, tmp_path / "out")
    before = {str(number): image for number, image in enumerate(images[:3])}
    assert_vectors(pocket, rows_of(tmp_path / "out/a.parquet"), before)
    assert letters_of(tmp_path / "out/a.errors.parquet") == [(None, "shard_damaged")]


def test_a_parquet_with_nulls(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    columns = {
        "id": ["a", "b", None, "d", "a"],
        "image": [images[0], None, images[2], images[3], images[4]],
        "caption": ["of a", None, None, None, "again"],
    }
    embed(pocket, write_parquet(tmp_path / "a.parquet", columns), tmp_path / "out")
    rows = rows_of(tmp_path / "out/a.parquet")
    assert_vectors(pocket, rows, {"a": images[0], "d": images[3]})
    assert (rows["a"]["caption"], rows["d"]["caption"]) == ("of a", None)
    expected = [("a", "item_duplicate"), ("b", "item_missing"), ("row 2", "item_missing")]
    assert letters_of(tmp_path / "out/a.errors.parquet") == expected


def test_a_parquet_as_datasets_have_it(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    columns = {
        "photo": [{"bytes": image, "path": "x"} for image in images],
        "number": list(range(12)),
        "alt": ["x"] * 12,
    }
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(ShardError, match="has no column image or jpg or bytes") as error:
        embed(pocket, path, tmp_path / "out")
    assert_one_sentence(error.value, "photo", "--image-column", code="shard_unreadable")
    embed(pocket, path, tmp_path / "named", columns=Columns("photo", "number", "alt"))
    rows = rows_of(tmp_path / "named/a.parquet")
    assert_vectors(pocket, rows, {str(number): image for number, image in enumerate(images)})
    assert rows["3"]["caption"] == "x"
    embed(pocket, path, tmp_path / "rows", columns=Columns("photo"))
    assert rows_of(tmp_path / "rows/a.parquet").keys() == {str(number) for number in range(12)}
    with pytest.raises(ShardError, match="has no column nothing"):
        embed(pocket, path, tmp_path / "bad", columns=Columns("photo", "nothing"))


def test_a_parquet_that_is_damaged(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": images})
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match="is no Parquet file"):
        embed(pocket, path, tmp_path / "out")
    assert not (tmp_path / "out/a.json").exists()
    # The images of the last of three row groups, which stand in its dictionary.
    at = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(2).column(0).dictionary_page_offset
    data[at : at + 60] = bytes(60)
    path.write_bytes(data)
    embed(pocket, path, tmp_path / "out")
    assert letters_of(tmp_path / "out/a.errors.parquet") == [(None, "shard_damaged")]
    assert rows_of(tmp_path / "out/a.parquet").keys() == {str(number) for number in range(10)}


def test_a_list_and_a_folder_are_cut(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", images[:5])
    (folder / "sub").mkdir()
    (folder / "004.jpg").rename(folder / "sub/x.jpg")
    shards = find_shards([str(folder)], 2)
    assert [(shard.name, [id_ for id_, _ in shard.files]) for shard in shards] == [
        ("photos-00000", ["000.jpg", "001.jpg"]), ("photos-00001", ["002.jpg", "003.jpg"]),
        ("photos-00002", ["sub/x.jpg"]),
    ]  # fmt: skip
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/000.jpg\r\n\n{folder}/gone.jpg\nfile://{folder}/001.jpg\n")
    embed(pocket, listed, tmp_path / "out")
    rows = rows_of(tmp_path / "out/list-00000.parquet")
    assert_vectors(pocket, rows, {f"{folder}/000.jpg": images[0], f"file://{folder}/001.jpg": images[1]})
    letters = pq.read_table(tmp_path / "out/list-00000.errors.parquet").to_pylist()
    assert [(row["id"], row["code"]) for row in letters] == [(f"{folder}/gone.jpg", "image_unreadable")]
    assert_one_sentence(letters[0]["error"], "gone.jpg")


def test_a_folder_of_tars_gives_these(images: list[bytes], tmp_path: Path) -> None:
    for name in ("b.tar", "a.tgz", ".hidden.tar"):
        write_tar(tmp_path / name, [("0.jpg", images[0])])
    write_parquet(tmp_path / "c.parquet", {"image": images[:1]})
    (tmp_path / "readme.md").touch()
    assert [(shard.name, shard.kind) for shard in find_shards([str(tmp_path)], 9)] == [
        ("a", "tar"), ("b", "tar"), ("c", "parquet")
    ]  # fmt: skip


def test_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9.jpg\n")
    for name, part in (
        ("empty", "holds no tar"), ("a.zip", "by its name"), ("gone.tar", "cannot be opened"),
        ("latin.txt", "not valid UTF-8 at byte 3"),
    ):  # fmt: skip
        with pytest.raises(ShardError) as error:
            find_shards([str(tmp_path / name)], 9)
        assert_one_sentence(error.value, name, part, code="shard_unreadable")
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").touch()
    with pytest.raises(ArgumentError, match="would both be the shard 0"):
        find_shards([str(tmp_path / "x"), str(tmp_path / "y")], 9)
    for name in ("job.tar", "x.errors.tar"):
        (tmp_path / name).touch()
        with pytest.raises(ArgumentError, match="names of the output's own"):
            find_shards([str(tmp_path / name)], 9)
    with pytest.raises(ArgumentError, match="--shard-size is 0"):
        find_shards([], 0)


def test_parts_are_all_of_it_once() -> None:
    shards = [Shard(str(number), "tar", "", "") for number in range(10)]
    parts = [part_of(shards, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(shard.name for part in parts for shard in part) == [shard.name for shard in shards]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert part_of(shards, None) == shards
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(ArgumentError, match="--part is"):
            part_of(shards, wrong)


def test_what_is_readable_now_is_added(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    folder, output = write_folder(tmp_path / "photos", images[:6]), tmp_path / "out"
    for number in (1, 2, 3):
        (folder / f"00{number}.jpg").write_bytes(b"broken")
    first = embed(pocket, folder, output)
    assert (first.rows, first.errors) == (3, {"image_unsupported": 3})
    kept = rows_of(output / "photos-00000.parquet")
    (folder / "001.jpg").write_bytes(images[1])
    (folder / "002.jpg").unlink()
    (shard,) = find_shards([str(folder)], 1000)
    second = embed(pocket, folder, output, retry=first)
    assert (second.rows, second.errors) == (4, {"image_unsupported": 2})
    assert len(shard.files) == 5
    # The file that is gone is no part of the folder, so its letter stays.
    assert letters_of(output / "photos-00000.errors.parquet") == [
        ("002.jpg", "image_unsupported"), ("003.jpg", "image_unsupported")
    ]  # fmt: skip
    rows = rows_of(output / "photos-00000.parquet")
    assert {id_: rows[id_] for id_ in kept} == kept
    good = {f"00{number}.jpg": images[number] for number in (0, 1, 4, 5)}
    assert_vectors(pocket, rows, good)
    (folder / "003.jpg").write_bytes(images[3])
    (folder / "002.jpg").write_bytes(images[2])
    assert embed(pocket, folder, output, retry=second).errors == {}
    assert not (output / "photos-00000.errors.parquet").exists()


def test_clip_retrieval_reads_its_layout(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    folder, output = write_folder(tmp_path / "photos", images[:6]), tmp_path / "out"
    (folder / "003.jpg").write_bytes(b"broken")
    first = embed(pocket, folder, output, layout="clip-retrieval", dtype="float16")
    (folder / "003.jpg").write_bytes(images[3])
    assert embed(pocket, folder, output, retry=first, layout="clip-retrieval", dtype="float16").rows == 6
    vectors = np.load(output / "img_emb/img_emb_photos-00000.npy", allow_pickle=False)
    table = pq.read_table(output / "metadata/metadata_photos-00000.parquet")
    assert (vectors.dtype, vectors.shape) == (np.float16, (6, pocket.dim))
    assert table.column_names == ["image_path", "caption", "width", "height"]
    rows = {id_: {"vector": row} for id_, row in zip(table["image_path"].to_pylist(), vectors, strict=True)}
    assert_vectors(pocket, rows, {f"00{number}.jpg": images[number] for number in range(6)}, atol=1e-3)
    assert not (output / "photos-00000.parquet").exists()


def test_halves_are_rounded_and_kept(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    embed(pocket, write_folder(tmp_path / "photos", images), tmp_path / "out", dtype="float16")
    path = tmp_path / "out/photos-00000.parquet"
    assert pq.read_schema(path).field("vector").type == pa.list_(pa.float16(), pocket.dim)
    rows = rows_of(path)
    assert_vectors(pocket, rows, {f"{number:03d}.jpg": image for number, image in enumerate(images)}, atol=1e-3)


def test_an_object_store_is_as_a_disk(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for number, image in enumerate(images):
        system.pipe_file(f"/photos/sub/{number}.jpg", image)
    write_tar(tmp_path / "a.tar", [("0.jpg", images[0]), ("1.jpg", b"broken")])
    system.pipe_file("/tars/a.tar", (tmp_path / "a.tar").read_bytes())
    assert embed(pocket, "memory://photos", "memory://out").rows == 12
    assert embed(pocket, "memory://tars/*.tar", "memory://out").errors == {"image_unsupported": 1}
    store = open_store("memory://out")
    found = store.markers()
    assert {name: marker.rows for name, marker in found.items()} == {"photos-00000": 12, "a": 1}
    write_tar(tmp_path / "a.tar", [("0.jpg", images[0]), ("1.jpg", images[1])])
    system.pipe_file("/tars/a.tar", (tmp_path / "a.tar").read_bytes())
    assert embed(pocket, "memory://tars", "memory://out", retry=found["a"]).rows == 2
    assert not system.exists("/out/a.errors.parquet")
    with system.open("/out/a.parquet") as file:
        (tmp_path / "a.parquet").write_bytes(file.read())
    assert_vectors(pocket, rows_of(tmp_path / "a.parquet"), {"0": images[0], "1": images[1]})
    with pytest.raises(ShardError) as error:
        find_shards(["memory://tars/gone.tar"], 9)
    assert_one_sentence(error.value, "memory://tars/gone.tar", code="shard_unreadable")
    with pytest.raises(ShardError, match="cannot be opened"):
        open_store("nonesuch://out")


@pytest.mark.parametrize("kind", ["tar", "tgz", "parquet"])
def test_a_store_that_fails_in_the_middle_leaves_no_marker(
    kind: str, pocket: Model, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may answer the next time, whereas a file that breaks off stays broken."""
    noise = np.random.default_rng(1).bytes(600_000)
    if kind == "parquet":
        path = write_parquet(tmp_path / "a.parquet", {"id": ["0", "1", "2"], "image": [images[0], noise, images[1]]})
    else:
        path = write_tar(tmp_path / "a.tar", [("0.jpg", images[0]), ("1.jpg", noise), ("2.jpg", images[1])])
        if kind == "tgz":
            path = tmp_path / "a.tgz"
            path.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    fsspec.filesystem("memory").pipe_file(f"/fails/{path.name}", path.read_bytes())
    read, fails = MemoryFile.read, True

    def fail(self: MemoryFile, size: int = -1) -> bytes:
        if fails and self.path.startswith("/fails") and self.tell() < 400_000 < self.tell() + size:
            raise ConnectionResetError(104, "Connection reset by peer")
        data: bytes = read(self, size)
        return data

    monkeypatch.setattr(MemoryFile, "read", fail)
    with pytest.raises(ShardError) as error:
        embed(pocket, f"memory://fails/{path.name}", f"memory://fails-{kind}")
    assert_one_sentence(error.value, "Connection reset by peer", code="shard_unreadable")
    assert open_store(f"memory://fails-{kind}").markers() == {}
    fails = False
    assert embed(pocket, f"memory://fails/{path.name}", f"memory://fails-{kind}").rows == 2


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_of_a_store_is_read_while_the_model_works(
    kind: str, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "tar":
        path = write_tar(tmp_path / "a.tar", [(f"{number:02d}.jpg", image) for number, image in enumerate(images)])
    else:
        ids = [f"{number:02d}" for number in range(len(images))]
        path = write_parquet(tmp_path / "a.parquet", {"id": ids, "image": images})
    fsspec.filesystem("memory").pipe_file(f"/ahead/{path.name}", path.read_bytes())
    readers = []

    def opened(location: str) -> Any:
        readers.append(threading.current_thread().name)
        return storage.opened(location)

    monkeypatch.setattr(records, "opened", opened)
    found = []
    for location in (f"memory://ahead/{path.name}", str(path)):
        (shard,) = find_shards([location], 9)
        found.append([(each.id, each.image) for each in read_records(shard, Columns())])
    assert found[0] == found[1] == [(f"{number:02d}", image) for number, image in enumerate(images)]
    assert readers == ["fgclip-rt-read", "MainThread"]


def test_an_output_of_something_else_is_refused(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", images[:1])
    embed(pocket, folder, tmp_path / "out")
    store = open_store(str(tmp_path / "out"))
    job = make_job(pocket.bundle)
    store.claim(job)
    for changed, name in (
        ({"space_sha256": "0" * 64, "model": "another"}, "another in fp16 (space 000000000000)"),
        ({"precision": "int8"}, "--precision"),
        ({"dtype": "float16"}, "--dtype"), ({"max_num_patches": 256}, "--max-num-patches"),
        ({"layout": "clip-retrieval"}, "--layout"), ({"columns": Columns("x")}, "the columns"),
    ):  # fmt: skip
        with pytest.raises(ShardError) as error:
            store.claim(msgspec.structs.replace(job, **changed))
        assert_one_sentence(error.value, name, code="shard_mismatch")
    # Another export of the same space goes on.
    store.claim(msgspec.structs.replace(job, manifest_sha256="0" * 64))
    # What an earlier version began has no fingerprint, and its bundle alone goes on.
    path = tmp_path / "out" / "job.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(job, space_sha256=None)))
    store.claim(job)
    with pytest.raises(ShardError) as error:
        store.claim(msgspec.structs.replace(job, manifest_sha256="0" * 64))
    assert_one_sentence(error.value, "(bundle 000000000000)", "fgclip-rt compare", code="shard_mismatch")
    with pytest.raises(OutputError, match="no output of embed-shards"):
        open_store(str(folder)).claim(job)


@pytest.mark.parametrize("failing", ["write", "close"])
def test_a_disk_that_fills_up_leaves_no_marker(
    pocket: Model, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = write_folder(tmp_path / "photos", images[:3])
    with monkeypatch.context() as patch:
        patch.setattr(_ParquetRows, failing, full)
        with pytest.raises(OutputError) as error:
            embed(pocket, folder, tmp_path / "out")
    assert_one_sentence(error.value, "the disk is full", code="disk_full")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".unfinished", "job.json"]
    assert list((tmp_path / "out/.unfinished").iterdir()) == []
    assert embed(pocket, folder, tmp_path / "out").rows == 3


@pytest.mark.parametrize("step", range(3))
def test_a_shard_has_no_marker_while_its_files_change(
    pocket: Model, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whichever file of a retry is the last to take its name, the shard is not done with half of them."""
    folder, output = write_folder(tmp_path / "photos", images[:3]), tmp_path / "out"
    (folder / "001.jpg").write_bytes(b"broken")
    (folder / "002.jpg").write_bytes(b"broken")
    first = embed(pocket, folder, output)
    (folder / "001.jpg").write_bytes(images[1])
    replace, calls = Path.replace, iter(range(9))

    def dying(self: Path, target: Path) -> Path:
        if next(calls) == step:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            embed(pocket, folder, output, retry=first)
    assert open_store(str(output)).markers() == {}
    assert embed(pocket, folder, output).rows == 2
    assert len(rows_of(output / "photos-00000.parquet")) == 2


def test_what_a_process_that_died_left_is_removed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    left = tmp_path / "out/.unfinished/left"
    left.mkdir(parents=True)
    (left / "a.parquet").touch()
    with store.workspace() as mine:
        (mine / "b").touch()
        assert not left.exists()
        with store.workspace() as other:
            assert other != mine
            assert (mine / "b").exists()
    assert not mine.exists()


def test_a_damaged_marker_is_named(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    embed(pocket, write_folder(tmp_path / "photos", images[:1]), tmp_path / "out")
    (tmp_path / "out/photos-00000.json").write_text("{")
    with pytest.raises(ShardError) as error:
        open_store(str(tmp_path / "out")).markers()
    assert_one_sentence(error.value, "photos-00000.json is damaged", code="shard_mismatch")


def test_only_a_few_members_of_a_tar_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the images nor what tarfile notes of each."""
    path = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", b"x" * 1000) for number in range(500)])
    kept: list[tarfile.TarFile] = []
    open_tar: Callable[..., tarfile.TarFile] = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: kept.append(open_tar(*a, **k)) or kept[-1])
    (shard,) = find_shards([str(path)], 1)
    for _ in read_records(shard, Columns()):
        assert len(kept[0].members) <= 2  # type: ignore[attr-defined]


def test_ten_thousand_markers_are_read_in_seconds(pocket: Model, images: list[bytes], tmp_path: Path) -> None:
    marker = embed(pocket, write_folder(tmp_path / "photos", images[:1]), tmp_path / "out")
    data = storage._encode(marker)
    for number in range(10_000):
        (tmp_path / f"out/{number:05d}.json").write_bytes(data)
    begun = time.perf_counter()
    assert len(open_store(str(tmp_path / "out")).markers()) == 10_001
    assert time.perf_counter() - begun < 20


def test_the_images_differ() -> None:
    assert len({jpeg(seed) for seed in range(12)}) == 12
