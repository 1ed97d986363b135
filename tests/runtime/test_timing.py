"""Times and verdicts of a bundle's precisions; no test depends on a real time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import pytest

from fgclip_rt import turns
from fgclip_rt.backends.onnxruntime import OnnxRuntimeBackend
from fgclip_rt.cli.commands.doctor import verdict
from fgclip_rt.errors import BundleError, FgclipError
from fgclip_rt.timing import ROUNDS, Timing, time_precisions
from helpers import Json, assert_one_sentence, edit_manifest, run_command

Costs = dict[tuple[str, str], Iterator[float]]

#: Seconds of one run. Only fp16's vision is faster than fp32's.
SECONDS = {("vision", "fp32"): 0.5, ("vision", "fp16"): 0.34, ("text", "fp32"): 0.1, ("text", "fp16"): 0.104}


@pytest.fixture
def two_precisions(masked_bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle whose fp16 is its fp32 by another name."""
    bundle = tmp_path / "bundle"
    shutil.copytree(masked_bundle_path, bundle)
    edit_manifest(bundle, lambda document: name_again(document, "fp16"))
    return bundle


def name_again(document: Json, precision: str) -> None:
    for graph in document["graphs"].values():
        graph[precision] = graph["fp32"]
    document["parity"]["limits"][precision] = document["parity"]["limits"]["fp32"]


def spend(monkeypatch: pytest.MonkeyPatch, costs: Costs) -> None:
    """Replace the clock: only a run moves it on, by the next cost of the run's graph and precision."""
    now = 0.0

    def run(graph: str, precision: str) -> None:
        nonlocal now
        now += next(costs[graph, precision])

    monkeypatch.setattr(turns, "perf_counter", lambda: now)
    submit = OnnxRuntimeBackend.submit

    def spending(backend: OnnxRuntimeBackend, graph: str, *arguments: Any) -> Any:
        run(graph, backend.precision)
        return submit(backend, graph, *arguments)

    monkeypatch.setattr(OnnxRuntimeBackend, "submit", spending)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run takes the time in ``SECONDS``."""
    spend(monkeypatch, {key: repeat(seconds) for key, seconds in SECONDS.items()})


def test_the_real_graphs_are_timed(two_precisions: Path) -> None:
    rounds: list[None] = []
    timings = time_precisions(two_precisions, "cpu", 1, lambda: rounds.append(None))
    assert [(timing.graph, timing.precision) for timing in timings] == [
        ("vision", "fp32"),
        ("vision", "fp16"),
        ("text", "fp32"),
        ("text", "fp16"),
    ]
    assert len(rounds) == timings[0].runs + timings[-1].runs
    for timing in timings:
        assert timing.milliseconds > 0
        assert 1 <= timing.runs <= ROUNDS
        assert timing.baseline == "fp32"
        assert "on cpu" in timing.backend
        assert timing.case == ("256 patches" if timing.graph == "vision" else "64 tokens")
    assert [timing.ratio for timing in timings if timing.precision == "fp32"] == [1, 1]


@pytest.mark.usefixtures("steady")
def test_times_are_compared_with_fp32(two_precisions: Path) -> None:
    timings = time_precisions(two_precisions, "cpu")
    assert {(timing.graph, timing.precision): round(timing.milliseconds) for timing in timings} == {
        key: round(1000 * seconds) for key, seconds in SECONDS.items()
    }
    assert [round(timing.ratio, 3) for timing in timings] == [1, 0.68, 1, 1.04]
    assert [timing.runs for timing in timings] == [ROUNDS] * 4


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("precisions", [("fp16",), ("fp16", "fp32")])
def test_the_baseline_is_fp32_or_the_first(precisions: tuple[str, ...], two_precisions: Path) -> None:
    def reorder(document: Json) -> None:
        for name, graph in document["graphs"].items():
            document["graphs"][name] = {precision: graph[precision] for precision in precisions}
        for name in ("limits", "measured"):
            entries = document["parity"][name]
            document["parity"][name] = {
                precision: entries[precision] for precision in precisions if precision in entries
            }

    edit_manifest(two_precisions, reorder)
    timings = time_precisions(two_precisions, "cpu")
    assert [timing.precision for timing in timings] == [*precisions, *precisions]
    assert {timing.baseline for timing in timings} == {precisions[-1]}
    assert all(timing.ratio == 1 for timing in timings if timing.precision == timing.baseline)


def test_neither_loading_nor_cold_caches_nor_a_hiccup_count(
    two_precisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A precision runs once to load, and then twice in each round: cold, after the turns of others, and timed.
    runs = chain([5.0], [0.9, 0.2], [0.9, 0.2], [0.9, 5.0], cycle([0.9, 0.2]))
    spend(monkeypatch, {key: repeat(0.4) for key in SECONDS} | {("vision", "fp16"): runs})
    vision = [timing for timing in time_precisions(two_precisions, "cpu") if timing.graph == "vision"]
    assert [timing.runs for timing in vision] == [ROUNDS] * 2
    assert [round(timing.milliseconds) for timing in vision] == [400, 200]
    assert [round(timing.ratio, 3) for timing in vision] == [1, 0.5]


def test_slow_graphs_are_timed_less_often(two_precisions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(monkeypatch, {key: repeat(60.0 if key[0] == "vision" else 0.01) for key in SECONDS})
    runs = {timing.graph: timing.runs for timing in time_precisions(two_precisions, "cpu")}
    assert runs == {"vision": 1, "text": ROUNDS}


@pytest.mark.parametrize(
    ("buckets", "case"), [([128, 256, 576], "256 patches"), ([16, 64, 144], "64 patches"), ([100], "100 patches")]
)
@pytest.mark.usefixtures("steady")
def test_the_image_fills_a_common_bucket(buckets: list[int], case: str, two_precisions: Path) -> None:
    edit_manifest(two_precisions, lambda document: document["image"].update(buckets=buckets))
    assert time_precisions(two_precisions, "cpu")[0].case == case


def timing(precision: str, ratio: float, baseline: str = "fp32") -> Timing:
    return Timing("vision", "256 patches", precision, 100 * ratio, ROUNDS, baseline, ratio, "onnxruntime")


def test_the_verdict_names_what_to_use() -> None:
    assert verdict(timing("fp32", 1)) == ""
    assert verdict(timing("int8", 0.68)) == "int8: 0.68 of fp32's time"
    for ratio, shown in ((1.04, "1.04"), (0.95, "0.95")):
        assert verdict(timing("int8", ratio)) == (
            f"int8 is not faster than fp32 on this machine ({shown} of its time): "
            "use fp32 here, which is nearer to the reference."
        )
    # int8 before fp16 in a bundle does not make int8 the more exact one.
    assert verdict(timing("fp16", 1.5, "int8")).endswith("(1.50 of its time): use int8 here.")


@pytest.mark.usefixtures("steady")
def test_the_command_prints_times_and_verdicts(two_precisions: Path) -> None:
    result = run_command("doctor", two_precisions, "--device", "cpu")
    for part in (
        "bundles on the CPU",
        "on cpu",
        "quick look: medians",
        "256 patches",
        "500.00",
        "340.00",
        "fp16: 0.68 of fp32's time",
        "fp16 is not faster than fp32 on this machine (1.04 of its time): use fp32 here",
    ):
        assert part in result.stdout


@pytest.mark.usefixtures("steady")
def test_one_precision_is_compared_with_nothing(masked_bundle_path: Path) -> None:
    output = run_command("doctor", masked_bundle_path, "--device", "cpu").stdout
    assert "500.00" in output
    assert "verdict" not in output
    assert "fp32's time" not in output


@pytest.mark.usefixtures("steady")
def test_a_program_reads_the_times_beside_the_checks(two_precisions: Path) -> None:
    report = json.loads(run_command("doctor", two_precisions, "--device", "cpu", "--threads", 1, "--json").stdout)
    assert set(report) == {"bundle", "checks", "timings", "engines"}
    assert report["engines"] == []
    assert report["bundle"] == str(two_precisions)
    assert len(report["timings"]) == 4
    for entry in report["timings"]:
        assert set(entry) == set(Timing.__struct_fields__)
    assert report["timings"][1]["ratio"] == pytest.approx(0.68)
    names = [check["name"] for check in report["checks"]]
    assert names == [check["name"] for check in json.loads(run_command("doctor", "--json").stdout)]


def test_what_cannot_be_timed_is_said_in_one_sentence(masked_bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as info:
        time_precisions(tmp_path / "missing")
    assert_one_sentence(info.value, "does not exist", "fgclip-rt export")
    with pytest.raises(FgclipError):
        time_precisions(masked_bundle_path, "abacus")
    for arguments, part in (
        ([tmp_path / "missing"], "does not exist"),
        ([masked_bundle_path, "--device", "abacus"], "abacus"),
        (["--threads", 2], "name its folder"),
        (["--device", "cpu"], "name its folder"),
    ):
        result = run_command("doctor", *arguments, status=1)
        assert result.stdout == ""
        assert_one_sentence(result.stderr.strip(), part)
