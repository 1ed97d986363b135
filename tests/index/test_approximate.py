"""A graph over the rows: it chooses, exact cosines decide, and whatever it lacks is compared all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexing import NAME, damage
from numpy.testing import assert_allclose, assert_array_equal

from fgclip_rt import packages
from fgclip_rt.answers import Hit
from fgclip_rt.errors import IndexFileError, MissingDependencyError, OutputError
from fgclip_rt.index import ImageIndex, Query, Updated, find, update, writer
from fgclip_rt.index.approximate import RECALL_AT, Graph, extend, measure_recall
from fgclip_rt.index.files import GraphFile
from fgclip_rt.model import Model
from fgclip_rt.scores import l2_normalize
from helpers import assert_one_sentence, run_command

pytest.importorskip("usearch")

DIM = 64


def unit(count: int, seed: int) -> np.ndarray:
    return l2_normalize(np.random.default_rng(seed).standard_normal((count, DIM), np.float32))


def graph_of(path: Path, vectors: np.ndarray, old: Path | None = None) -> Graph:
    extend(path, vectors, old)
    return Graph(path.parent, GraphFile(file=path.name, size=path.stat().st_size, rows=len(vectors), recall=1.0))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(3000, 0).astype(np.float16)


@pytest.fixture(scope="module")
def graph(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return graph_of(tmp_path_factory.mktemp("graph") / "graph-1.usearch", vectors)


def share(graph: Graph, vectors: np.ndarray, queries: np.ndarray) -> float:
    """Recall, as its definition says."""
    nearest = np.argsort(-(vectors.astype(np.float32) @ queries.T), axis=0)[:RECALL_AT].T
    found = [graph.choose(query, RECALL_AT, len(vectors)) for query in queries]
    return float(np.mean([np.isin(*pair).mean() for pair in zip(nearest, found, strict=True)]))


def test_it_chooses_the_nearest_rows(graph: Graph, vectors: np.ndarray) -> None:
    queries = unit(50, 1)
    assert share(graph, vectors, queries) > 0.9
    chosen = graph.choose(queries[0], 10, len(vectors))
    assert 10 < len(chosen) < 300
    assert_array_equal(chosen, np.unique(chosen))


def test_more_are_chosen_if_more_are_sought(graph: Graph, vectors: np.ndarray) -> None:
    # No path of a graph may lead to a few of its rows.
    assert 792 <= len(graph.choose(unit(1, 1)[0], 200, len(vectors))) <= 800
    assert 2970 <= len(graph.choose(unit(1, 1)[0], 5000, len(vectors))) <= 3000


def test_rows_that_came_later_are_all_chosen(graph: Graph, vectors: np.ndarray) -> None:
    assert_array_equal(graph.choose(unit(1, 1)[0], 10, len(vectors) + 5)[-5:], len(vectors) + np.arange(5))


def test_a_graph_that_grew_finds_old_and_new_rows(vectors: np.ndarray, tmp_path: Path) -> None:
    graph_of(tmp_path / "graph-1.usearch", vectors[:2000])
    before = (tmp_path / "graph-1.usearch").read_bytes()
    grown = graph_of(tmp_path / "graph-2.usearch", vectors, tmp_path / "graph-1.usearch")
    for rows in (range(0, 2000, 20), range(2000, 3000, 10)):
        found = [row in grown.choose(vectors[row].astype(np.float32), 1, len(vectors)) for row in rows]
        assert np.mean(found) > 0.95
    assert share(grown, vectors, unit(50, 1)) > 0.9
    assert (tmp_path / "graph-1.usearch").read_bytes() == before


class Chooser:
    """Chooses all of the nearest rows for one kind of query, and seven of ten for the other."""

    def __init__(self, vectors: np.ndarray, worse: str) -> None:
        self.vectors, self.worse = vectors.astype(np.float32), worse

    def choose(self, query: np.ndarray, count: int, total: int) -> np.ndarray:
        assert (count, total) == (RECALL_AT, len(self.vectors))
        cosines = self.vectors @ query
        kind = "rows" if cosines.max() > 0.99 else "texts"
        return np.argsort(-cosines)[: 7 if kind == self.worse else 10]


@pytest.mark.parametrize("worse", ["texts", "rows"])
def test_recall_is_the_less_of_texts_and_of_rows(vectors: np.ndarray, worse: str) -> None:
    chooser: Any = Chooser(vectors, worse)
    assert measure_recall(chooser, vectors, unit(8, 2)) == pytest.approx(0.7)


# The library says nothing of a file that fits into its buffer and not onto the disk.
@pytest.mark.parametrize(("rows", "code"), [(10, "disk_full"), (3000, "output_unwritable")])
def test_a_graph_that_cannot_be_written_is_said(vectors: np.ndarray, rows: int, code: str) -> None:
    with pytest.raises(OutputError) as info:
        extend(Path("/dev/full"), vectors[:rows], None)
    assert_one_sentence(info.value, "/dev/full", code=code)


def approximated(pocket: Model, photos: Path, output: Path, approximate: bool | None = True) -> Updated:
    return update(pocket, photos, output, bundle=NAME, approximate=approximate)


def names(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir() if path.suffix in (".f16", ".usearch"))


def test_an_index_says_its_recall_and_keeps_its_graph_up_to_date(pocket: Model, photos: Path, output: Path) -> None:
    assert approximated(pocket, photos, output).recall == 1.0
    with ImageIndex(output) as index:
        assert index.recall() == 1.0
        first = index.about.graph
        assert first is not None
        assert (first.rows, names(output)) == (10, [first.file, "vectors-1.f16"])
        # An update that says nothing of it keeps it; without changes the very same one.
        approximated(pocket, photos, output, None)
        index.recall()
        assert index.about.graph == first
        shutil.copytree(photos, photos / "other")
        for number, path in enumerate((photos / "other").rglob("*.png")):
            path.write_bytes(path.read_bytes() + bytes(number + 1))
        approximated(pocket, photos, output, None)
        index.recall()
        second = index.about.graph
        assert second is not None
        assert (second.rows, names(output)) == (20, [second.file, "vectors-1.f16"])
        # Two thirds go, and the rest gets new numbers.
        shutil.rmtree(photos / "other")
        for number in range(4):
            (photos / f"{number}.png").unlink()
        approximated(pocket, photos, output, None)
        (hits,) = index.search(pocket.embed_images(photos / "5.png"), 3)
        assert hits[0].image == "5.png"
        assert index.about.graph is not None
        assert index.about.graph.rows == 6
        assert approximated(pocket, photos, output, False).recall is None
        assert index.recall() is None
    assert [name for name in names(output) if "graph" in name] == []


def images(found: list[list[Hit]]) -> list[list[str]]:
    return [[hit.image for hit in hits] for hits in found]


def choose_these(monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> None:
    monkeypatch.setattr(Graph, "choose", lambda *_: np.array(rows))


def test_exact_cosines_decide_among_the_rows_that_are_chosen(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approximated(pocket, photos, output)
    queries = pocket.embed_texts(["a star", "a moon"])
    with ImageIndex(output) as index:
        expected = index.search(queries, 10, compare_all=True)
        choose_these(monkeypatch, [2, 3, 5, 7])
        for hits, every in zip(index.search(queries, 3), expected, strict=True):
            wanted = [hit for hit in every if hit.row in (2, 3, 5, 7)][:3]
            assert images([hits]) == images([wanted])
            assert_allclose([hit.cosine for hit in hits], [hit.cosine for hit in wanted], atol=1e-6)
        # Filters, and more than were chosen, compare every image.
        assert {hit.image for hit in index.search(queries, 9, "more")[0]} == {"more/8.png", "more/9.png"}
        assert images(index.search(queries, 10)) == images(expected)
        assert images(index.search(queries, 3, compare_all=True)) == [every[:3] for every in images(expected)]
        query = Query(queries[0])
        assert find(index, pocket, query, 3).recall == 1.0
        assert find(index, pocket, query, 3, "more").recall is None
        assert find(index, pocket, query, 3, compare_all=True).recall is None


def test_a_row_without_an_image_is_not_found(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approximated(pocket, photos, output)
    query = pocket.embed_images(photos / "2.png")
    with ImageIndex(output) as index:
        (first, second) = index.search(query, 2)[0]
        (photos / "2.png").unlink()
        approximated(pocket, photos, output)
        choose_these(monkeypatch, [first.row, second.row])
        assert [hit.image for hit in index.search(query, 1)[0]] == [second.image]


def test_images_are_found_before_the_graph_knows_them(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approximated(pocket, photos, output)
    (photos / "new.png").write_bytes((photos / "1.png").read_bytes() + b"\0")

    def stop(path: Path, *_: object) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "extend", stop)
    with pytest.raises(KeyboardInterrupt):
        approximated(pocket, photos, output)
    monkeypatch.undo()
    with ImageIndex(output) as index:
        found = {hit.image for hit in index.search(pocket.embed_images(photos / "new.png"), 2)[0]}
        assert found == {"new.png", "1.png"}
        assert len(names(output)) == 3
        # The next update goes on from there, and nothing is left of the half.
        approximated(pocket, photos, output, None)
        index.recall()
        assert index.about.graph is not None
        assert (index.about.graph.rows, len(names(output))) == (11, 2)


@pytest.mark.parametrize("how", ["gone", "cut", "noise"])
def test_a_damaged_graph_is_known(pocket: Model, photos: Path, output: Path, how: str) -> None:
    approximated(pocket, photos, output)
    (path,) = output.glob("graph-*")
    damage(path, how)
    with pytest.raises(IndexFileError) as info, ImageIndex(output) as index:
        index.search(pocket.embed_texts("a star"), 3)
    assert_one_sentence(info.value, str(path), "--overwrite", code="index_damaged")
    assert update(pocket, photos, output, bundle=NAME, anew=True, approximate=True).recall == 1.0


def test_without_its_package_every_image_is_compared(
    pocket: Model, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approximated(pocket, photos, output)
    monkeypatch.setattr(packages, "_installed", lambda package: package != "usearch")
    with ImageIndex(output) as index:
        assert index.recall() is None
        assert len(index.search(pocket.embed_texts("a star"), 3)[0]) == 3
    with pytest.raises(MissingDependencyError) as info:
        approximated(pocket, photos, output)
    assert_one_sentence(info.value, "fgclip-rt[approximate]", code="dependency_missing")
    with pytest.raises(MissingDependencyError):
        approximated(pocket, photos, output.with_name("another.index"))
    assert not output.with_name("another.index").exists()


def test_the_commands_say_the_recall(photos: Path, output: Path) -> None:
    made = run_command("index", NAME, photos, "--output", output, "--approximate")
    assert made.stdout.rstrip().endswith("; the graph finds 100.0% of the ten nearest")
    text = ("--text", "a star", "--top", 3)
    assert "of which the graph finds 100.0%" in run_command("search", output, *text).stdout
    chosen = json.loads(run_command("search", output, *text, "--json").stdout)
    every = json.loads(run_command("search", output, *text, "--exact", "--json").stdout)
    assert (chosen["recall"], every["recall"]) == (1.0, None)
    assert chosen["hits"] == every["hits"]
