"""The page of jobs over shards is made of its results."""

from __future__ import annotations

import shutil
from pathlib import Path

from fgclip_rt.benchmarks.page import shards as page

PAGES = Path(__file__).parents[2] / "benchmarks"


def test_the_page_is_that_of_its_results(tmp_path: Path) -> None:
    shutil.copytree(PAGES / "results", tmp_path / "results")
    page.write(tmp_path)
    assert (tmp_path / "shards.md").read_text("utf-8") == (PAGES / "shards.md").read_text("utf-8")
    assert "| 10,000,000,000 |" in (tmp_path / "shards.md").read_text("utf-8")


def test_a_small_job_is_measured(tmp_path: Path) -> None:
    found = page.measure(tmp_path, 4, 1, [3], 20)
    assert min(found.plain, found.shard, found.one, found.two, found.resumed, found.decoded) > 0
    assert found.peaks[3] > 2**20
    assert found.markers == 20
