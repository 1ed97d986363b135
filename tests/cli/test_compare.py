"""``fgclip-rt compare``: whether old vectors may stay, of bundles and of files, and what a mixed index loses."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fgclip_rt
from fgclip_rt.evaluation.spaces import compare_spaces, sampled
from fgclip_rt.space import Origin
from fgclip_rt.vectors import Rows, read_rows, write_rows
from helpers import error_of, run_command

POCKET = "fg-clip2-pocket"
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def unit(vectors: Any) -> Floats:
    array = np.asarray(vectors, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def random(count: int, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).normal(size=(count, 16)))


def turned(vectors: Floats, cosine: float) -> Floats:
    """Vectors with one cosine to the given ones."""
    noise = np.random.default_rng(9).normal(size=vectors.shape)
    across = unit(noise - (noise * vectors).sum(1, keepdims=True) * vectors)
    return unit(cosine * vectors + np.sqrt(1 - cosine**2) * across)


@pytest.mark.parametrize(
    ("cosine", "verdict"), [(1.0, "identical"), (0.981, "interchangeable"), (0.979, "re-index"), (0.0, "re-index")]
)
def test_the_cosine_decides(cosine: float, verdict: str) -> None:
    old = random(150)
    found = compare_spaces(old, turned(old, cosine))
    assert found.verdict == verdict
    assert found.least == pytest.approx(cosine, abs=1e-4)
    assert found.mean == pytest.approx(cosine, abs=1e-4)


def test_one_of_a_hundred_may_be_far_and_two_may_not() -> None:
    old = random(201)
    for far, verdict in ((2, "interchangeable"), (5, "re-index")):
        new = turned(old, 0.99)
        new[:far] = -old[:far]
        assert compare_spaces(old, new).verdict == verdict


def test_a_query_that_moved_counts_as_an_item_does() -> None:
    old, queries = random(20), random(20, 1)
    assert compare_spaces(old, old, (queries, -queries)).verdict == "re-index"


def test_results_are_those_of_new_queries_among_old_and_new_items() -> None:
    old = unit([[1, 0], [0.9, 0.1], [0, 1]])
    # The second item has moved next to the third, so that the second query finds the first item no more.
    new = unit([[1, 0], [0.1, 0.9], [0, 1]])
    found = compare_spaces(old, new, (old, new))
    # Old: each query finds its own item. New, among the first and third old and the second new one: likewise.
    assert found.kept == {1: 1.0}
    alone = compare_spaces(old, new)
    # Old: 2, 1, 2. New: 2 (0.11 against 0), 3, 2.
    assert alone.kept == {1: pytest.approx(2 / 3)}
    assert alone.shift == pytest.approx(float((old[0] @ old[1]) - (new[0] @ new[1])), abs=1e-6)


@given(count=st.integers(1, 130), seed=st.integers(0, 5))
def test_equal_vectors_lose_nothing(count: int, seed: int) -> None:
    old = random(count, seed)
    for found in (compare_spaces(old, old), compare_spaces(old, old, (old, old))):
        assert (found.verdict, found.shift) == ("identical", 0)
        assert set(found.kept.values()) <= {1.0}
    # A list as long as the gallery says nothing.
    assert list(compare_spaces(old, old).kept) == [depth for depth in (1, 10, 100) if depth < count - 1]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_a_file_is_read_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    vectors = random(3)
    for origin in (None, Origin("猫", "fp16", "0" * 64, "1" * 64)):
        order = np.array([2, 0, 1])
        written = Rows(["image", "text", "image"], ["a ' photo.png", "猫", "b.png"], vectors, order, origin)
        write_rows(written, tmp_path / f"old{suffix}")
        read = read_rows(tmp_path / f"old{suffix}")
        # Files of earlier versions have no origin.
        assert (read.kinds, read.inputs, read.origin) == (written.kinds, written.inputs, origin)
        np.testing.assert_array_equal(read.vectors[read.order], vectors[[2, 0, 1]])


def photos(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(3):
        run_command("scene", "--seed", seed, "--output", folder / f"{seed}.png")
    return folder


def test_a_bundle_is_compared_with_the_file_of_its_own_vectors(tmp_path: Path) -> None:
    old, folder = tmp_path / "old.npz", photos(tmp_path / "photos")
    texts = tmp_path / "texts.txt"
    texts.write_text("a red star\na blue ring\n")
    result = run_command("embed", POCKET, folder, "--texts", texts, "--output", old, "--no-normalize", "--json")
    space = fgclip_rt.load(POCKET).space_sha256
    assert json.loads(result.stdout)["space_sha256"] == space
    answer = json.loads(run_command("compare", old, POCKET, "--json").stdout)
    assert (answer["verdict"], answer["images"], answer["texts"]) == ("identical", 3, 2)
    assert answer["old_space"] == answer["new_space"] == space
    assert "error" not in answer
    # Another checkpoint's vectors of the same width.
    rows = read_rows(old)
    write_rows(Rows(rows.kinds, rows.inputs, rows.vectors[::-1].copy(), rows.order), tmp_path / "other.npz")
    result = run_command("compare", tmp_path / "other.npz", POCKET, "--json", status=1)
    answer = json.loads(result.stdout)
    assert (answer["verdict"], answer["error"]["code"]) == ("re-index", "space_differs")
    assert "must not share an index" in result.stderr
    # A file that is gone is left out.
    (folder / "1.png").unlink()
    answer = json.loads(run_command("compare", old, POCKET, "--json").stdout)
    assert (answer["verdict"], answer["images"], answer["left_out"]) == ("identical", 2, 1)


def test_an_index_is_compared_with_its_images_as_they_are(tmp_path: Path) -> None:
    index, folder = tmp_path / "photos.index", photos(tmp_path / "photos")
    run_command("index", POCKET, folder, "--output", index, "--max-num-patches", 100)
    # The index keeps float16, and remembers the number of patches.
    answer = json.loads(run_command("compare", index, POCKET, "--json").stdout)
    assert (answer["verdict"], answer["images"], answer["left_out"]) == ("identical", 3, 0)
    assert answer["old_space"] == answer["new_space"]
    shutil.copy(folder / "0.png", folder / "1.png")
    (folder / "2.png").unlink()
    result = run_command("compare", index, POCKET, "--json")
    answer = json.loads(result.stdout)
    assert (answer["verdict"], answer["images"], answer["left_out"]) == ("identical", 1, 2)
    assert "left out: 2 images" in result.stderr
    printed = run_command("compare", index, POCKET, "--max-num-patches", 256, status=1)
    assert "the space is the same, so that images or settings must have changed" in printed.stderr
    shutil.rmtree(folder)
    assert "none of the 3 images" in error_of("compare", index, POCKET)


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_shards_are_compared_with_their_inputs(tmp_path: Path, layout: str) -> None:
    output, folder = tmp_path / "shards", photos(tmp_path / "photos")
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, f"in/{path.name}")
    (folder / "3.png").write_bytes(b"no image")
    words = ("embed-shards", POCKET, folder, tmp_path / "more.tar", "--output", output)
    run_command(*words, "--shard-size", 2, "--layout", layout, "--dtype", "float16")
    answer = json.loads(run_command("compare", output, POCKET, "--json").stdout)
    assert (answer["verdict"], answer["images"], answer["left_out"]) == ("identical", 6, 0)
    assert answer["old_space"] == answer["new_space"]
    # One of each shard is more than is asked for.
    answer = json.loads(run_command("compare", output, POCKET, "--limit", 2, "--json").stdout)
    assert (answer["verdict"], answer["images"]) == ("identical", 2)
    (folder / "0.png").unlink()
    answer = json.loads(run_command("compare", output, POCKET, "--json").stdout)
    assert (answer["verdict"], answer["images"], answer["left_out"]) == ("identical", 5, 1)
    (tmp_path / "more.tar").unlink()
    assert "more.tar cannot be opened" in error_of("compare", output, POCKET)


def test_vectors_of_float16_may_be_off_by_their_last_bit_and_no_more() -> None:
    vectors = random(50)
    kept = vectors.astype(np.float16).astype(np.float32)
    assert compare_spaces(kept, vectors, halves=True).verdict == "identical"
    assert compare_spaces(kept, vectors).verdict == "interchangeable"
    kept[7, 3] += 2e-3
    assert compare_spaces(kept, vectors, halves=True).verdict == "interchangeable"


@given(count=st.integers(0, 50), limit=st.integers(1, 60))
def test_a_sample_is_spread_from_the_first_to_the_last(count: int, limit: int) -> None:
    places = sampled(count, limit).tolist()
    assert len(set(places)) == len(places) == min(count, limit)
    assert places == sorted(places)
    assert not places or places[0] == 0
    assert len(places) < 2 or places[-1] == count - 1


def test_a_limit_goes_with_vectors_that_are_kept(pocket_path: Path) -> None:
    assert "--limit goes with" in error_of("compare", pocket_path, POCKET, "--limit", 5)
    assert "--limit is 0" in error_of("compare", "old.npz", POCKET, "--limit", 0)


def test_precisions_of_a_bundle_are_interchangeable(pocket_path: Path) -> None:
    printed = run_command("compare", pocket_path, pocket_path, "--precision", "int8").stdout
    assert printed.endswith(": interchangeable\n")
    assert "first 1 results that stay" in printed


def test_another_width_is_another_space(pocket_path: Path, bundle_path: Path) -> None:
    message = error_of("compare", bundle_path, pocket_path)
    assert "numbers, and the new ones 160" in message


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("old.npz", b"PK not a zip", "is no file that 'embed' wrote"),
        ("old.npy", b"\x93NUMPY", "cannot be read (No such file or directory)"),
        ("old.parquet", b"PAR1", "is no file that 'embed' wrote"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert part in error_of("compare", tmp_path / name, POCKET)


def test_a_file_names_its_own_inputs(tmp_path: Path) -> None:
    write_rows(Rows(["text"], ["a"], random(1), np.array([0])), tmp_path / "old.npz")
    assert "names its own inputs" in error_of("compare", tmp_path / "old.npz", POCKET, "--images", tmp_path)
