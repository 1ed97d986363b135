"""Files of vectors: what they hold, what is refused before any work, and vectors that do not fit into memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_rt import vectors
from fgclip_rt.errors import ArgumentError
from fgclip_rt.vectors import Rows, check_inputs, size_of, write_rows
from helpers import assert_one_sentence

VECTORS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
ORDER = np.array([6, 0, 0, 3, 5], np.int32)
INPUTS = [r"caf\xe9.jpg", "b.jpg", "一只黑猫", "", "a\0b"]
ROWS = Rows(["image"] * 2 + ["text"] * 3, INPUTS, VECTORS, ORDER)


def read(output: Path) -> tuple[list[str], list[str], np.ndarray[Any, Any]]:
    if output.suffix == ".npy":
        rows = json.loads(output.with_name(output.name + ".json").read_text(encoding="utf-8"))["rows"]
        assert [row["row"] for row in rows] == list(range(len(rows)))
        return [row["kind"] for row in rows], [row["input"] for row in rows], np.load(output)
    if output.suffix == ".npz":
        with np.load(output) as file:
            return file["kinds"].tolist(), file["inputs"].tolist(), file["vectors"]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(output)
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[4]"
    return table["kind"].to_pylist(), table["input"].to_pylist(), np.stack(table["vector"].to_numpy())


@pytest.mark.parametrize("suffix", vectors.SUFFIXES)
@pytest.mark.parametrize("block", [2, 5, 100])
def test_a_file_holds_rows_in_their_order(
    suffix: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(vectors, "_BLOCK", block)
    output, folder = tmp_path / f"out{suffix}", tmp_path / "work"
    folder.mkdir()
    write_rows(ROWS, output, folder)
    kinds, inputs, found = read(output)
    assert (kinds, inputs) == (ROWS.kinds, ROWS.inputs)
    np.testing.assert_array_equal(found, VECTORS[ORDER])
    assert found.dtype == np.float32
    assert not list(folder.iterdir())


def test_a_file_is_the_one_that_numpy_writes(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / "out.npy")
    expected = io.BytesIO()
    np.save(expected, VECTORS[ORDER])
    assert (tmp_path / "out.npy").read_bytes() == expected.getvalue()


def test_vectors_are_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_BLOCK", 2)
    taken: list[int] = []

    class Watched(np.ndarray[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            taken.append(len(key))
            return np.asarray(self)[key]

    write_rows(Rows(ROWS.kinds, INPUTS, VECTORS.view(Watched), ORDER), tmp_path / "out.npz")
    assert taken == [2, 2, 1]


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (["a", "b\0"], ["input number 2 ends in a NUL character"]),
        # 4 bytes for each of 1,001 texts of 100,000 characters.
        (["a"] * 1000 + ["b" * 100_000], ["400,400,000 bytes", "each of the 1,001", "100,000 characters"]),
    ],
    ids=["nul", "long"],
)
def test_inputs_that_an_npz_would_pad_or_change_are_refused(
    inputs: list[str], parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError) as info:
        check_inputs(tmp_path / "out.npz", inputs, 64)
    assert_one_sentence(info.value, *parts, "write .parquet or .npy", code="argument_invalid")
    check_inputs(tmp_path / "out.npy", inputs, 64)
    check_inputs(tmp_path / "out.parquet", inputs, 64)


def test_inputs_may_take_more_than_vectors_but_not_many_times_as_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "_INPUTS_LEAST", 4 * 100)
    check_inputs(tmp_path / "out.npz", ["a" * 10] * 10, 1)
    with pytest.raises(ArgumentError):
        check_inputs(tmp_path / "out.npz", ["a" * 11] * 10, 1)
    check_inputs(tmp_path / "out.npz", ["a" * 40] * 10, 10)
    with pytest.raises(ArgumentError):
        check_inputs(tmp_path / "out.npz", ["a" * 41] * 10, 10)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_size_of_a_file_is_known_before_the_work(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"out{suffix}"
    write_rows(ROWS, output)
    least = size_of(output, INPUTS, 4)
    assert least <= output.stat().st_size <= least + 2000
