"""The page of searches: collections as they are said to be, and figures that the results say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import fgclip_rt
from fgclip_rt.benchmarks import searching
from fgclip_rt.benchmarks.page import search as page
from fgclip_rt.errors import BenchmarkError
from fgclip_rt.index import ImageIndex
from helpers import assert_one_sentence

PAGE = Path(__file__).parents[2] / "benchmarks"
NAME = "fg-clip2-pocket"


def test_queries_lie_among_the_images_and_texts_lie_apart() -> None:
    rows = searching.make_vectors(500, 768).astype(np.float32)
    images = searching.make_vectors(50, 768, seed=1)
    texts = searching.make_vectors(50, 768, seed=2, texts=True)
    for vectors in (images, texts):
        assert vectors.dtype == np.float32
        assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert 0.1 < (images @ rows.T).mean() < 0.4
    assert (texts @ rows.T).mean() < 0
    # No query is one of the collection.
    assert (images @ rows.T).max() < 0.99


def test_a_collection_is_searched_in_both_ways(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    model = fgclip_rt.load(NAME)
    searching.make_collection(tmp_path / "large.index", model, NAME, 1000, 96)
    with ImageIndex(tmp_path / "large.index") as index:
        index.check_model(model)
        assert index.counts() == (1000, 0)
    exact = searching.measure_exact(tmp_path / "large.index", 4)
    assert (exact.rows, exact.dim, len(exact.searches)) == (1000, 96, 4)
    assert exact.size >= 2 * 1000 * 96
    approximate = searching.measure_approximate(tmp_path / "large.index", 4)
    assert approximate.rows == 1000
    assert 0.8 < min(approximate.images, approximate.texts) <= 1
    assert len(approximate.searches) == len(approximate.exact) == 8


def test_the_plain_product_finds_what_a_search_finds(tmp_path: Path) -> None:
    searching.make_collection(tmp_path / "large.index", fgclip_rt.load(NAME), NAME, 1000, 96)
    (query,) = searching.make_vectors(1, 96, seed=1)
    with ImageIndex(tmp_path / "large.index") as index:
        _, rows = index.vectors()
        (hits,) = index.search(query[None], searching._FOUND)
        assert {hit.row for hit in hits} == set(searching._plain(rows, query).tolist())


def test_the_page_is_what_the_results_say(tmp_path: Path) -> None:
    results = tmp_path / page.RESULTS
    results.parent.mkdir(parents=True)
    shutil.copy(PAGE / page.RESULTS, results)
    page.write(tmp_path)
    assert (PAGE / "search.md").read_text(encoding="utf-8") == (tmp_path / "search.md").read_text(encoding="utf-8")
    results.write_text('{"format": "something else"}')
    with pytest.raises(BenchmarkError) as info:
        page.write(tmp_path)
    assert_one_sentence(info.value, results.name, "measure again")
