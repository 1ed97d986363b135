"""``fgclip-rt bench --device cuda`` on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgclip_rt.benchmarks.bench import available_peers, bench
from fgclip_rt.benchmarks.report import unequal
from fgclip_rt.benchmarks.task import Case
from fgclip_rt.machine import cuda_gpus

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.skipif(not cuda_gpus(), reason="no NVIDIA GPU that CUDA gives this process"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch has no CUDA"),
]


def test_contenders_compute_the_same_and_what_cannot_run_says_why(pocket_path: Path) -> None:
    cases = [Case("vision", 256, 8), Case("vision", 256, 8, end_to_end=True), Case("text", 64)]
    result = bench(pocket_path, cases, device="cuda", peers=available_peers("cuda"), rounds=2, seconds=0.0)
    assert result.machine["gpu"]
    for table in result.tables:
        assert table.rate > 1e12
        rows = {row.contender: row for row in table.rows}
        assert len(rows) == 3 + 3 * 2 * 3 + 4
        assert rows["pytorch"].seconds
        assert rows["pytorch autocast"].seconds
        for row in rows.values():
            assert bool(row.seconds) != bool(row.problem)
            assert not row.peak
            assert not row.seconds or row.cosine > 0.98
        assert 0 < table.share(rows["pytorch"]).value < 1
    assert not list(unequal(result.tables))
