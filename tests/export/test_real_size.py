"""A model of real size with random weights, for faults that only size brings out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fgclip_rt
from fgclip_rt import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> fgclip_rt.Model:
    path = tmp_path_factory.mktemp("base") / "bundle"
    export.export(export.random_source("fg-clip2-base"), path)
    return fgclip_rt.load(path)


def test_the_token_table_is_stored_once(base: fgclip_rt.Model) -> None:
    weights = base.manifest.files["weights.safetensors"].size
    # Parameters: vision tower 86 M, two heads 7 M each, text tower 85 M, token table 197 M.
    assert weights == pytest.approx(4 * (86e6 + 2 * 7e6 + 85e6 + 197e6), rel=0.02)
    assert all(info.size < 1e6 for name, info in base.manifest.files.items() if name.endswith(".onnx"))


def test_a_map_of_16384_patches_fits_in_memory(base: fgclip_rt.Model, goldens: Path) -> None:
    with Image.open(goldens / "fgclip2/images/3_rocket_640x427.png") as image:
        (dense,) = base.dense_features([image], max_num_patches=16_384)
    assert dense.shape == (105, 156, 768)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=-1), 1, atol=1e-5)
