"""``fgclip-rt bench --device cuda`` on a machine without a GPU: its contenders run on the CPU.

No test depends on a measured time.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from fgclip_rt.benchmarks.bench import available_peers, bench, usual_cases
from fgclip_rt.benchmarks.contest import Contest
from fgclip_rt.benchmarks.events import around_all, between_events
from fgclip_rt.benchmarks.inputs import noise_images
from fgclip_rt.benchmarks.peers import GraphTower, Tower, load_reference
from fgclip_rt.benchmarks.report import unequal, verdicts
from fgclip_rt.benchmarks.results import Row, Table, ratio, read_result
from fgclip_rt.benchmarks.task import Case, CheckpointName, Contender, UnableError
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, DeviceError, MissingDependencyError
from helpers import GOLDENS, assert_one_sentence, run_command

#: The module; its package gives the same name to the function in it.
measuring = importlib.import_module("fgclip_rt.benchmarks.bench")

CHECKPOINT = CheckpointName(str(GOLDENS / "fgclip2" / "checkpoint"))


def test_its_contenders_compute_what_the_runtime_does(bundle_path: Path) -> None:
    def contender(kind: str) -> Contender:
        return Contender(kind, kind, str(bundle_path), 1, checkpoint=CHECKPOINT)

    names = ["fgclip-rt", "onnxruntime provider", "pytorch", "pytorch autocast"]
    cases = [Case("vision", 128, 2), Case("vision", 12, 2, end_to_end=True), Case("text", 64), Case("region", 12, 3)]
    with Contest(list(map(contender, names)), rounds=1, seconds=0.0) as contest:
        for case in cases:
            for row in contest.measure(case):
                exact = row.contender != "pytorch autocast"
                assert row.cosine == pytest.approx(1, abs=1e-6 if exact else 5e-4), (case, row)
                assert row.median > 0
        problems = {row.problem for row in contest.measure(Case("vision", 17_000, end_to_end=True))}
        assert problems == {"the model takes no images of 17,000 patches"}


@pytest.mark.parametrize("case", [Case("vision", 12, 2), Case("dense", 12, 2), Case("text", 64, 3)])
def test_our_own_graphs_are_one_graph_of_torch_compile_too(bundle_path: Path, case: Case) -> None:
    """Without a break: so it is compiled as well as it can be, and nothing is read by the host."""
    bundle = Bundle.open(bundle_path, check_hashes=False)
    reference = load_reference(bundle, CHECKPOINT)
    expected = Tower(bundle, reference)
    tower = GraphTower(bundle, reference)
    torch.compiler.reset()
    compiled = torch.compile(tower.function(case), dynamic=False, fullgraph=True, backend="eager")
    with torch.inference_mode():
        found = compiled(*tower.inputs(case))
        torch.testing.assert_close(found, expected.function(case)(*expected.inputs(case)), rtol=0, atol=1e-4)
    assert found.abs().max() > 0.1


@pytest.mark.parametrize("case", [Case("vision", 12, 2), Case("dense", 12, 2), Case("text", 64, 3)])
def test_our_own_graphs_run_on_the_device_of_their_inputs(bundle_path: Path, case: Case) -> None:
    """PyTorch's device ``meta`` stands for a GPU: it computes nothing, and refuses tensors of the CPU."""
    bundle = Bundle.open(bundle_path, check_hashes=False)
    tower = GraphTower(bundle, load_reference(bundle, CHECKPOINT), "meta")  # type: ignore[arg-type]
    assert tower.function(case)(*tower.inputs(case)).device.type == "meta"


def test_our_own_graphs_take_images_from_memory(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path, check_hashes=False)
    case = Case("vision", 12, 2, end_to_end=True)
    reference = load_reference(bundle, CHECKPOINT)
    results = []
    for tower in (Tower(bundle, reference), GraphTower(bundle, reference)):
        with torch.inference_mode():
            prepared = tower.prepared(noise_images(bundle.manifest.image, case), case.length)
            results.append(tower.function(case)(*prepared))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)
    with pytest.raises(UnableError, match="region"):
        GraphTower(bundle, reference).function(Case("region", 12))


def test_results_so_far_are_handed_over_after_each_case(bundle_path: Path) -> None:
    lengths: list[int] = []
    cases = [Case("text", 64), Case("text", 196), Case("vision", 12)]
    result = bench(
        bundle_path, cases, rounds=1, seconds=0.0, measured=lambda result: lengths.append(len(result.tables))
    )
    assert lengths == [1, 2, 3]
    assert [table.case for table in result.tables] == cases


def test_an_interrupted_run_leaves_what_it_measured(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, output = Contest.measure, tmp_path / "results.json"

    def interrupt(self: Contest, case: Case, *rest: Any) -> Any:
        if case.length == 196:
            raise KeyboardInterrupt
        return measure(self, case, *rest)

    monkeypatch.setattr(Contest, "measure", interrupt)
    options = ["--graph", "text", "--rounds", "1", "--seconds", "0", "--output", output]
    run_command("bench", bundle_path, *options, status=130)
    assert [table.case.length for table in read_result(output).tables] == [64]


def test_cases_from_images_to_vectors_can_be_left_out(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Case]] = []

    def stop(_: object, cases: list[Case], **__: object) -> None:
        asked.append(cases)
        raise DeviceError("enough.")

    command = importlib.import_module("fgclip_rt.cli.commands.bench")
    monkeypatch.setattr(command, "bench", stop)
    monkeypatch.setattr(command, "check_device", lambda device: device)
    for options in ([], ["--no-end-to-end"]):
        run_command("bench", bundle_path, "--device", "cuda", *options, status=1)
    assert {case.end_to_end for case in asked[0]} == {False, True}
    assert asked[1] == [case for case in asked[0] if not case.end_to_end]


class FakeEvent:
    """An event of a clock that counts how often it was asked."""

    clock = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        assert stream == "stream"
        self.time = FakeEvent.clock

    def synchronize(self) -> None:
        FakeEvent.clock += 1000  # the host wakes up

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.time - self.time)


def test_runs_are_timed_one_by_one_or_back_to_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    ran = []

    def enqueue() -> None:
        ran.append(1)
        FakeEvent.clock += 10 if len(ran) % 2 else 30

    for clock in (between_events, around_all):
        ran.clear()
        assert clock(enqueue, "stream")(4) == pytest.approx(0.02)  # type: ignore[arg-type]
        assert len(ran) == 4


def test_a_plain_export_is_not_measured_end_to_end(bundle_path: Path) -> None:
    case = Case("vision", 12, end_to_end=True)
    (table,) = bench(bundle_path, [case], peers=["onnxruntime"], checkpoint=CHECKPOINT, rounds=1, seconds=0.0).tables
    ours, plain = table.rows
    assert ours.seconds
    assert plain.problem == "it takes images that are prepared"
    assert str(table.case) == "vision, 12 patches, end to end"


def test_engines_that_are_not_there_are_a_row_that_says_so(bundle_path: Path) -> None:
    path = str(bundle_path)
    contenders = [
        Contender("ours", "fgclip-rt", path, 1),
        Contender("engines", "engines", path, 1, "cuda", library="tensorrt"),
    ]
    with Contest(contenders, rounds=1, seconds=0.0) as contest:
        ours, engines = contest.measure(Case("text", 64))
    assert ours.seconds
    assert not engines.seconds
    assert "no tensorrt engine in fp32" in engines.problem


def test_usual_cases_come_in_batches_and_end_to_end(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    cases = usual_cases(bundle, "cuda")
    assert len(set(cases)) == len(cases)
    for bucket in bundle.manifest.image.buckets:
        for batch in (1, 8, 32):
            assert {Case("vision", bucket, batch), Case("vision", bucket, batch, end_to_end=True)} <= set(cases)
    assert {case.graph for case in cases} == {"vision", "text"}
    assert not any(case.end_to_end for case in usual_cases(bundle))


def test_the_share_of_a_rate_is_of_the_product_that_was_measured() -> None:
    row = Row("fgclip-rt fp32", (2.0,))
    table = Table(Case("vision", 256), 1, (row,), products=(1.0,), operations=500, product_operations=1000)
    assert table.rate == 1000
    assert table.share(row).value == pytest.approx(0.25)


def test_float16_is_held_to_float16() -> None:
    def table(*rows: Row) -> Table:
        return Table(Case("vision", 256), 1, rows, products=(1.0,), operations=1)

    ours = Row("fgclip-rt fp32", (1.0,), cosine=1.0)
    half = Row("pytorch autocast", (1.0,), cosine=0.9996)
    assert not list(unequal([table(ours, half)]))
    for other in (Row("pytorch", (1.0,), cosine=0.9996), Row("pytorch autocast", (1.0,), cosine=0.9994)):
        assert [row for _, row in unequal([table(ours, other)])] == [other]
    # Without a run of ours the others were compared with another contender, so none is called unequal.
    assert not list(unequal([table(Row("fgclip-rt fp32", problem="no provider"), half, Row("pytorch", (1.0,)))]))


def test_an_engine_that_is_not_faster_is_named() -> None:
    rows = (Row("fgclip-rt fp32", (1.0,)), Row("fgclip-rt fp16 tensorrt", (0.99,)), Row("fgclip-rt fp16", (0.5,)))
    assert ratio(rows[1], rows[0]).value == 0.99
    (line,) = verdicts([Table(Case("text", 64), 1, rows, (1.0,), 1)])
    assert line.startswith("fp16 tensorrt is not faster than fp32 here")


def test_without_a_gpu_it_says_so_before_anything_is_measured(
    pocket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "cuda_gpus", list)
    monkeypatch.setattr(measuring, "Contest", None)
    with pytest.raises(DeviceError) as info:
        bench(pocket_path, device="cuda")
    assert_one_sentence(info.value, "'cuda'", "NVIDIA GPU", "nvidia-smi", "device 'cpu'")
    output = run_command("bench", pocket_path, "--device", "cuda", status=1)
    assert output.stdout == ""
    assert output.stderr.strip().endswith(str(info.value))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--device", "abacus"], ["abacus", "cpu, cuda"]),
        (["--device", "cuda", "--peer", "openvino"], ["openvino", "'cuda'", "pytorch autocast"]),
        (["--peer", "pytorch autocast"], ["pytorch autocast", "'cpu'", "openvino"]),
        (["--device", "cuda", "--images", "."], ["--images", "--device"]),
    ],
)
def test_errors(pocket_path: Path, options: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "cuda_gpus", lambda: ["a GPU"])
    assert_one_sentence(run_command("bench", pocket_path, *options, status=1).stderr.strip(), *parts)


def test_a_gpu_is_measured_with_torch(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "cuda_gpus", lambda: ["a GPU"])
    monkeypatch.setattr("fgclip_rt.packages._installed", lambda package: package != "torch")
    with pytest.raises(MissingDependencyError, match=r"torch.*fgclip-rt\[bench\]"):
        bench(bundle_path, device="cuda")


def test_every_peer_runs_somewhere() -> None:
    assert set(available_peers("cuda")) == {
        "pytorch",
        "pytorch autocast",
        "pytorch autocast compiled",
        "pytorch graphs autocast compiled",
    }
    with pytest.raises(ArgumentError, match="unknown"):
        bench(Path(), device="abacus")  # type: ignore[arg-type]
