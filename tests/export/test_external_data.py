"""The names of weights that the runtime reads and changes in a model are those of the onnx package."""

from __future__ import annotations

from pathlib import Path

import onnx

from fgclip_rt.backends.external_data import locations, renamed


def test_the_names_of_weights_are_those_that_onnx_reads(pocket_path: Path, masked_bundle_path: Path) -> None:
    for path in sorted([*pocket_path.glob("*.onnx"), *masked_bundle_path.glob("*.onnx")]):
        model = onnx.load(path, load_external_data=False)
        entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
        assert locations(path.read_bytes()) == {entry.value for entry in entries if entry.key == "location"}


def test_a_model_with_new_names_is_otherwise_the_same(pocket_path: Path) -> None:
    # Longer and shorter names, whose lengths take another number of bytes.
    for name in ("w", "é" * 100, "a/b/" + "w" * 20_000):
        path = pocket_path / "dense.int8.onnx"
        changed = onnx.load_from_string(renamed(path.read_bytes(), lambda old, name=name: f"{name}-{old}"))
        expected = onnx.load(path, load_external_data=False)
        for tensor in expected.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{name}-{entry.value}"
        assert changed == expected
