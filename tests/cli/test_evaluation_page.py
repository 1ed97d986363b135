"""The page of an evaluation: what it shows, and that it needs nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from fgclip_rt import answers
from fgclip_rt.cli.evaluation_page import benchmark_page, scenes_page
from helpers import run_command

SETTINGS = answers.BenchmarkSettings(
    protocol="official",
    limit=None,
    walk_types={"box": 64},
    lowercase=True,
    script_lowercase=True,
    images="naflex",
    max_num_patches=1024,
    templates=80,
    official_templates=True,
    class_vectors=None,
    boxes="xywh",
    left_out=12,
)
FIGURES = [
    answers.BenchmarkFigure("region top-1", 749, 1000, 0.749, 0.72, 0.775, 74.9, 0.0),
    answers.BenchmarkFigure("region top-5", 1000, 1000, 1.0, 1.0, 1.0, None, None),
]
FLIPS = [answers.BenchmarkFlips("region top-1", 0.746, 4, 1, 0.375)]
ANSWER = answers.Benchmarked(
    bundle="a<b>",
    backend="onnxruntime on cpu",
    precision="fp32",
    benchmark="coco-boxes",
    data="coco",
    settings=SETTINGS,
    figures=FIGURES,
    classes=[answers.BenchmarkClass("cat & dog", 9, 10), answers.BenchmarkClass("toaster", 0, 3)],
    caveat="not reproduced",
    others=[answers.BenchmarkedBeside("int8", "onnxruntime on cpu", FLIPS)],
)


class Parsed(HTMLParser):
    """The rows of a page's tables, and whether each element that was opened is closed in order."""

    VOID = ("meta", "path", "circle")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID, attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_page_shows_figures_settings_flips_and_classes() -> None:
    page = benchmark_page(ANSWER)
    rows = Parsed(page).rows
    assert ["region top-1", "749", "1,000", "74.9%", "72.0 to 77.5%", "74.9%", "+0.0", ""] in rows
    assert ["region top-5", "1,000", "1,000", "100.0%", "100.0 to 100.0%", "", "", ""] in rows
    assert ["region top-1", "74.6%", "4", "1", "0.375"] in rows
    assert ["templates", "80, the benchmark's own"] in rows
    assert ["left out", "12"] in rows
    # The lowest shares come first.
    assert rows.index(["toaster", "0", "3", "0.0%", ""]) < rows.index(["cat & dog", "9", "10", "90.0%", ""])
    assert "a&lt;b&gt;" in page
    assert "Published figures: not reproduced." in page
    assert "No difference is shown" not in page
    # 256 units are a share of one: the interval's ends and the published figure.
    assert 'd="M184.3 10.0H198.4"' in page
    assert 'd="M191.7 2V18"' in page


def test_a_page_says_why_there_is_no_difference() -> None:
    figure = msgspec.structs.replace(FIGURES[0], difference=None)
    settings = msgspec.structs.replace(
        SETTINGS, limit=9, lowercase=True, script_lowercase=False, official_templates=False
    )
    page = benchmark_page(msgspec.structs.replace(ANSWER, figures=[figure], settings=settings, classes=[], others=[]))
    rows = Parsed(page).rows
    assert "No difference is shown" in page
    assert ["inputs", "the first 9"] in rows
    assert ["case", "lower, whereas the released script keeps it"] in rows
    assert ["templates", "80, not known to be the benchmark's own"] in rows
    assert "Classes" not in page


@pytest.mark.parametrize("page", [benchmark_page(ANSWER)])
def test_a_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert not Parsed(page).tags & {"script", "link", "img", "iframe", "object"}
    assert not re.findall(r"(?:src|href|url)\s*[=(]|https?:|@import", page)


def test_a_page_of_scenes_shows_both_languages() -> None:
    figures = [answers.Share("image to short text", language, 90, 100, 0.01, 0.9) for language in ("en", "zh")]
    counts = {"colour": answers.Counted(3, 4), "size": answers.Counted(0, 0)}
    flips = [answers.Flipped("image to short text", "zh", 0.88, 3, 1, 0.625)]
    others = [answers.EvaluatedBeside("int8", "onnxruntime on cpu", flips)]
    rows = Parsed(scenes_page(answers.Evaluated("b", "cpu", "fp32", 100, 0, figures, counts, others))).rows
    assert ["image to short text", "zh", "90", "100", "90.0%", "1.0%", ""] in rows
    assert ["colour", "3", "4", "75.0%"] in rows
    assert ["image to short text", "zh", "88.0%", "3", "1", "0.625"] in rows
    assert not any(row[0] == "size" for row in rows)


def test_the_command_writes_a_page_once(pocket_path: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        run_command("scene", "--seed", seed, "--output", tmp_path / f"{seed}.png")
    (tmp_path / "pairs.csv").write_text("image,text\n1.png,one\n2.png,two\n")
    command = ("evaluate", pocket_path, "--pairs", tmp_path / "pairs.csv", "--report", tmp_path / "out.html")
    said = run_command(*command).stdout
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    rows = Parsed(page).rows
    assert "text to image R@1" in said
    assert any(row[0] == "text to image R@1" and row[2] == "2" for row in rows)
    assert "choose another --report" in run_command(*command, status=1).stderr
    run_command(*command, "--overwrite")
