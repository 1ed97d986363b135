"""``make bench-native``: both sides run, and the table says what was measured. No test depends on a measured time."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fgclip_rt.benchmarks.page import native
from fgclip_rt.benchmarks.page.native_figures import COLUMNS, Figures, Pair, read_figures, rows
from fgclip_rt.benchmarks.results import Start


def test_both_sides_run(build: Path, pocket_path: Path, tmp_path: Path) -> None:
    figures = native.measure(build / "libfgclip_rt.so", pocket_path, pocket_path, tmp_path, rounds=1, images=3)
    assert [len(start.seconds) for start in figures.starts] == [1, 1], figures.starts
    assert len(figures.pairs) == 6
    for pair in figures.pairs:
        assert min(*pair.native, *pair.python) > 0, pair.name
    # Programs, not just their libraries: a session of each tower is resident.
    *_, memory = figures.pairs
    assert memory.unit == "bytes"
    assert min(*memory.native, *memory.python) > 20e6
    assert figures.library == (build / "libfgclip_rt.so").stat().st_size
    path = tmp_path / "native.json"
    path.write_bytes(msgspec.json.encode(figures))
    assert read_figures(path) == figures


def test_the_table_says_what_was_reached() -> None:
    figures = Figures(
        format="fgclip-rt-bench-native",
        format_version=1,
        machine={},
        versions={},
        pairs=(
            Pair("a", "s", 0.35, (0.001, 0.002, 0.003), (0.01, 0.01, 0.01)),
            Pair("b", "bytes", 0.75, (3e6,), (2e6,)),
        ),
        starts=(Start("C", (0.1, 0.2, 0.2), 1), Start("Python", (0.5, 0.5, 0.5), 1)),
        library=4_500_000,
    )
    start, first, second, library = rows(figures)
    assert len(start) == len(library) == len(COLUMNS)
    assert start[1:] == ("0.20 s", "0.50 s", "0.40 (0.30–0.40)", "≤ 0.15 s", "no")
    assert first == ("a", "2.0 ms", "10.0 ms", "0.20 (0.15–0.25)", "≤ 0.35", "yes")
    assert second == ("b", "3.0 MB", "2.0 MB", "1.50 (1.50–1.50)", "≤ 0.75", "no")
    assert library[:2] == ("the shared library, stripped", "4.5 MB")
