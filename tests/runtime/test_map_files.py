"""Files of maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fgclip_rt.errors import ArgumentError, OutputError
from fgclip_rt.map_files import check_maps_output, write_maps
from helpers import assert_one_sentence

MAPS = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)


def test_a_file_holds_maps_texts_and_sizes(tmp_path: Path) -> None:
    texts = ["电脑 🚗 \n\x00", "caf\udce9\x00\x00"]
    write_maps(tmp_path / "maps.npz", MAPS, texts, (300, 451))
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as file:
        assert {name: file[name].dtype.name for name in file} == {
            "maps": "float32",
            "texts": "uint8",
            "image_size": "int32",
            "grid": "int32",
        }
        np.testing.assert_array_equal(file["maps"], MAPS)
        assert file["image_size"].tolist() == [300, 451]
        assert file["grid"].tolist() == [3, 4]
        assert json.loads(bytes(file["texts"])) == texts


def test_a_long_text_costs_its_own_length_only(tmp_path: Path) -> None:
    texts = ["a" * 100_000, *["b"] * 999]
    write_maps(tmp_path / "maps.npz", np.zeros((1000, 1, 1), np.float32), texts, (1, 1))
    assert (tmp_path / "maps.npz").stat().st_size < 120_000


@pytest.mark.parametrize("name", ["maps", "maps.npy", "maps.NPZ", "maps.npz.png"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as error:
        check_maps_output(tmp_path / name)
    assert_one_sentence(error.value, f"--maps {tmp_path / name}", ".npz", code="argument_invalid")


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "maps.npz"
    check_maps_output(output)
    output.touch()
    with pytest.raises(OutputError) as error:
        check_maps_output(output)
    assert_one_sentence(error.value, "exists already", "another --maps", "--overwrite", code="output_exists")
    check_maps_output(output, overwrite=True)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OutputError) as error:
        write_maps(tmp_path / "maps.npz", MAPS, ["a", "b"], (3, 4))
    assert error.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == []
