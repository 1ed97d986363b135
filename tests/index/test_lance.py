"""An index as a table of LanceDB."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from indexing import NAME, bring_up_to_date
from numpy.testing import assert_allclose

from fgclip_rt.errors import ArgumentError
from fgclip_rt.index import ImageIndex, export_lancedb, lance, update
from fgclip_rt.model import Model
from helpers import assert_one_sentence

lancedb = pytest.importorskip("lancedb")


def test_a_table_has_the_rows_of_the_index_and_embeds_only_queries(
    pocket: Model, photos: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgclip_rt.integrations import LanceDBFunction

    shutil.copy(photos / "3.png", photos / "copy.png")
    bring_up_to_date(pocket, photos, output)
    monkeypatch.setattr(lance, "_BLOCK", 4)
    monkeypatch.setattr(LanceDBFunction, "compute_source_embeddings", None)
    with ImageIndex(output) as index:
        assert export_lancedb(index, tmp_path / "db", "photos") == 11
        rows = lancedb.connect(tmp_path / "db").open_table("photos").to_arrow().to_pydict()
        expected = sorted(photos.rglob("*.png"))
        assert sorted(map(Path, rows["path"])) == [path.resolve() for path in expected]
        assert_allclose(np.array(rows["vector"]), pocket.embed_images(rows["path"]), atol=2**-12)
        # The table is opened by its own function, with a text and with an image.
        table = lancedb.connect(tmp_path / "db").open_table("photos")
        (nearest,) = index.search(pocket.embed_texts("a star"), 1)[0]
        (found,) = table.search("a star").distance_type("cosine").limit(1).to_list()
        assert found["path"] == str(photos / nearest.image)
        with pytest.raises(ArgumentError) as info:
            export_lancedb(index, tmp_path / "db", "photos")
        assert_one_sentence(info.value, "'photos'", "another name", code="argument_invalid")


def test_an_index_that_turns_images_is_refused(pocket: Model, photos: Path, output: Path, tmp_path: Path) -> None:
    update(pocket, photos, output, bundle=NAME, exif_transpose=True)
    with ImageIndex(output) as index, pytest.raises(ArgumentError) as info:
        export_lancedb(index, tmp_path / "db", "photos")
    assert_one_sentence(info.value, "exif_transpose=True", code="argument_invalid")
    assert not (tmp_path / "db").exists()
