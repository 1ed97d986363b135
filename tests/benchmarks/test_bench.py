"""``fgclip-rt bench``: contenders compute the same, operations and images are counted right, and errors say so.

No test depends on a measured time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fgclip_rt
from exporting import SQUARE_CHECKPOINTS
from fgclip_rt.benchmarks import advice, advise, bench
from fgclip_rt.benchmarks.bench import available_peers
from fgclip_rt.benchmarks.contest import Contest
from fgclip_rt.benchmarks.inputs import grid
from fgclip_rt.benchmarks.operations import OperationCounter
from fgclip_rt.benchmarks.page import readme
from fgclip_rt.benchmarks.page.native_figures import RESULTS, read_figures
from fgclip_rt.benchmarks.page.start import measure_starts
from fgclip_rt.benchmarks.page.targets import outcomes
from fgclip_rt.benchmarks.pipeline import make_photos, measure_pipeline
from fgclip_rt.benchmarks.products import OPERATIONS
from fgclip_rt.benchmarks.report import cells, problems, unequal, verdicts
from fgclip_rt.benchmarks.results import Row, Table, ratio, read_result
from fgclip_rt.benchmarks.task import Case, CheckpointName, Contender
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError, BenchmarkError, ImageError, MissingDependencyError
from fgclip_rt.export.families.fgclip2.config import Config
from fgclip_rt.model import Model
from helpers import GOLDENS, assert_one_sentence, picture, run_command

QUICK = {"rounds": 2, "seconds": 0.0}
PAGE = Path(__file__).parents[2] / "benchmarks"


def test_every_contender_computes_the_same(bundle_path: Path) -> None:
    checkpoint = CheckpointName(str(GOLDENS / "fgclip2" / "checkpoint"))

    def measure(peers: Sequence[str], *cases: Case) -> Sequence[Table]:
        result = bench(bundle_path, cases, peers=peers, checkpoint=checkpoint, **QUICK)  # type: ignore[arg-type]
        assert result.bundle.manifest_sha256 == Bundle.open(bundle_path).manifest_sha256
        return result.tables

    # Each process imports its contender's packages, which takes most of the time of this test.
    others = ["pytorch", "onnxruntime", "openvino"]
    tables = (
        *measure(["transformers", *others], Case("vision", 128, 2), Case("vision", 128)),
        *measure(available_peers("cpu"), Case("text", 64)),
        *measure(["pytorch", "transformers"], Case("dense", 12), Case("region", 12, 3)),
    )
    contenders = {str(table.case): {row.contender for row in table.rows if row.seconds} for table in tables}
    assert contenders == {
        "vision, 128 patches, batch 2": {"fgclip-rt fp32", "transformers", *others},
        "vision, 128 patches": {"fgclip-rt fp32", "transformers", *others},
        "text, 64 tokens": {"fgclip-rt fp32", *available_peers("cpu")},
        "dense, 12 patches": {"fgclip-rt fp32", "pytorch"},
        "region, 12 patches, 3 boxes": {"fgclip-rt fp32", "pytorch"},
    }
    for table in tables:
        for row in table.rows:
            if row.seconds:
                assert row.cosine == pytest.approx(1, abs=1e-6), (table.case, row.contender)
                assert len(row.seconds) == len(table.products) == 1, "no time was left for a second turn"
                assert 0 < row.loaded <= row.peak
            else:
                assert row.problem
    assert not list(unequal(tables))


@pytest.mark.slow
def test_a_plain_export_of_dense_features_computes_the_same(bundle_path: Path) -> None:
    checkpoint = CheckpointName(str(GOLDENS / "fgclip2" / "checkpoint"))
    peers = ["onnxruntime", "openvino"]
    (table,) = bench(bundle_path, [Case("dense", 12)], peers=peers, checkpoint=checkpoint, **QUICK).tables  # type: ignore[arg-type]
    assert [row.cosine for row in table.rows] == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "peers"),
    [
        ("fgclip1", ["pytorch"]),
        ("fineclip", ["pytorch"]),
        # Each plain export takes as long as all else.
        *(pytest.param(name, ["pytorch", "onnxruntime"], marks=pytest.mark.slow) for name in ("fgclip1", "fineclip")),
    ],
)
def test_the_other_families_are_measured_too(square_path: Any, name: str, peers: Sequence[str]) -> None:
    path = square_path(name)
    length = Bundle.open(path).manifest.image.max_num_patches
    cases = [Case("vision", length), Case("text", 77), Case("vision", length + 1)]
    with pytest.raises(BenchmarkError) as info:
        bench(path, cases[2:], precisions=["fp32"], **QUICK)  # type: ignore[arg-type]
    assert_one_sentence(info.value, f"no images of {length + 1} patches")
    model, files = SQUARE_CHECKPOINTS[name]
    options = {option: str(path) for option, path in vars(files).items() if path is not None}
    checkpoint = CheckpointName(model, **options)
    precisions = ["fp32", "int8"]
    result = bench(path, cases[:2], precisions=precisions, peers=peers, checkpoint=checkpoint, **QUICK)  # type: ignore[arg-type]
    for table in result.tables:
        assert [row.contender for row in table.rows] == [*(f"fgclip-rt {name}" for name in precisions), *peers]
        assert all(row.cosine is not None and row.cosine > 0.98 for row in table.rows), table
        assert [row.cosine for row in table.rows[2:]] == pytest.approx([1] * len(peers), abs=1e-6)
        assert table.operations > 0


def test_operations_are_those_of_the_model(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    config = Config.from_json(json.loads((GOLDENS / "fgclip2" / "checkpoint" / "config.json").read_text()))
    vision = config.vision_config
    width, mlp, heads = vision.hidden_size, vision.intermediate_size, vision.num_attention_heads

    def expected(n: int) -> int:
        # Each head's keys have eight more channels, which hide the patches past the grid.
        block = n * (4 * width**2 + 2 * width * mlp) + n * n * (2 * width + 8 * heads)
        embedding = n * width * (vision.num_channels * vision.patch_size**2 + vision.num_patches)
        pooling = 2 * n * width * heads + 2 * width**2 + 2 * width * mlp
        return 2 * (vision.num_hidden_layers * block + embedding + pooling)

    # Operations are counted for a few lengths, 128 among them; a polynomial gives the others.
    count = OperationCounter(bundle).count
    for length in (128, 64, 12, 600, 4096):
        assert count(Case("vision", length)) == expected(length)
    assert count(Case("vision", 600, 8)) == 8 * expected(600)
    texts = [count(Case("text", length)) for length in (64, 196)]
    assert 3 < texts[1] / texts[0] < 4


def test_a_list_of_operations_that_is_cut_off_is_an_error(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.read_text

    def cut_off(path: Path, **options: Any) -> str:
        return whole(path, **options)[: -100 if path.name.startswith("profile") else None]

    monkeypatch.setattr(Path, "read_text", cut_off)
    with pytest.raises(BenchmarkError) as info:
        OperationCounter(Bundle.open(bundle_path)).count(Case("text", 64))
    assert_one_sentence(info.value, "cut off", "TMPDIR")


@given(length=st.integers(1, 5000))
def test_grids_have_as_many_patches(length: int) -> None:
    rows, columns = grid(length)
    assert rows * columns == length
    assert rows <= columns


def test_a_contender_that_dies_is_a_row_that_says_so(bundle_path: Path, tmp_path: Path) -> None:
    good = Contender("good", "products", str(bundle_path), 1)
    bad = Contender("bad", "fgclip-rt", str(tmp_path / "missing"), 1)
    gone = Contender("gone", "products", str(bundle_path), 1)
    with Contest([bad, good, gone], **QUICK) as contest:  # type: ignore[arg-type]
        contest._workers[2]._child._process.kill()
        first, second, third = contest.measure(Case("vision", 128))
    assert "does not exist" in first.problem
    assert not first.seconds
    assert second.seconds
    assert "killed" in third.problem


def test_ratios_are_those_of_turns() -> None:
    ours, other = Row("a", (1.0, 2.0, 3.0, 4.0, 5.0)), Row("b", (2.0, 4.0, 3.0, 8.0, 10.0))
    found = ratio(ours, other)
    assert (found.value, found.low, found.high) == (3 / 4, 0.5, 0.5)
    assert str(found) == "0.75 (0.50–0.50)"
    assert str(ratio(Row("a", (1.0,)), Row("b", (4.0,)))) == "0.25 (0.25–0.25)"


def test_a_precision_that_is_not_faster_is_named() -> None:
    def table(case: Case, int8: float, operations: int = 1) -> Table:
        rows = (Row("fgclip-rt fp32", (1.0, 1.0)), Row("fgclip-rt int8", (int8, int8)), Row("pytorch", (9.0, 9.0)))
        return Table(case=case, threads=2, rows=rows, products=(1.0, 1.0), operations=operations)

    tables = [table(Case("vision", 256), 0.5), table(Case("text", 64), 0.97), table(Case("region", 256), 1, 0)]
    assert list(verdicts(tables)) == [
        "int8 is not faster than fp32 here (text, 64 tokens: 0.97 (0.97–0.97) of its time)"
    ]
    assert [row[4] for row in cells(tables[0])] == ["1", "0.50 (0.50–0.50)", "9.00 (9.00–9.00)"]


def test_what_was_not_run_is_said_once_for_each_reason() -> None:
    ours, reason = Row("fgclip-rt fp32", (1.0,)), "there is nothing like it"
    tables = [
        Table(Case("text", length), 2, (ours, Row("transformers", problem=reason)), (1.0,), 1) for length in (64, 196)
    ]
    assert list(problems(tables)) == [f"transformers was not run (text, 64 tokens; text, 196 tokens): {reason}"]
    assert [row[:3] for row in cells(tables[0])][1] == ("", "transformers", "not run")


def test_the_command_prints_and_writes(pocket_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ["--graph", "text", "--length", 64, "--batch", 2, "--rounds", 1, "--threads", 1, "--precision", "int8"]
    printed = run_command("bench", pocket_path, *options, "--output", output).stdout
    assert "text, 64 tokens, batch 2" in printed
    assert "fg-clip2-pocket, 1 threads" in printed
    result = read_result(output)
    assert [row.contender for row in result.tables[0].rows] == ["fgclip-rt int8"]
    assert result.tables[0].case == Case("text", 64, 2)
    document = json.loads(run_command("bench", pocket_path, *options, "--json").stdout)
    assert document["format"] == "fgclip-rt-bench"
    assert document["bundle"]["name"] == "fg-clip2-pocket"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--graph", "speech"], ["speech", "vision, text, dense, region"]),
        (["--peer", "tea"], ["tea", "pytorch"]),
        (["--precision", "fp4"], ["fp4", "fp32"]),
        (["--batch", 0], ["--batch", "positive"]),
        (["--rounds", 0], ["rounds"]),
        (["--length", 17_000, "--graph", "vision"], ["17,000 patches"]),
        (["--images", ".", "--graph", "text"], ["--images", "--graph"]),
        (["--images", ".", "--checkpoint", "."], ["--images", "--checkpoint"]),
        (["--weights", "FILE.pt"], ["--weights", "--checkpoint"]),
        (["--images", ".", "--weights", "FILE.pt"], ["--weights", "--checkpoint"]),
        (["--max-num-patches", 256], ["--images"]),
    ],
)
def test_errors(pocket_path: Path, options: list[object], parts: list[str]) -> None:
    assert_one_sentence(run_command("bench", pocket_path, *options, status=1).stderr.strip(), *parts)


def test_peers_need_weights_and_packages(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench(bundle_path, [Case("text", 64)], peers=["pytorch"], **QUICK)  # type: ignore[arg-type]
    assert "--checkpoint" in result.tables[0].rows[1].problem
    monkeypatch.setattr("fgclip_rt.packages._installed", lambda package: package != "openvino")
    with pytest.raises(MissingDependencyError, match=r"openvino.*fgclip-rt\[bench\]"):
        bench(bundle_path, peers=["openvino"])
    with pytest.raises(ArgumentError, match="rounds"):
        bench(bundle_path, rounds=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, (height, width) in enumerate([(150, 200), (150, 200), (480, 640), (160, 160), (31, 17)]):
        Image.fromarray(picture(height, width, index)).save(folder / f"{index}.png")
    return folder


def test_advice_follows_the_preparation(model: Model, photos: Path) -> None:
    files = sorted(photos.iterdir())
    found = advise(model, files, rounds=1, seconds=0)
    expected: dict[int, list[int]] = {}
    for file in files:
        patches = model.preparation(fgclip_rt.load_image(file))
        expected.setdefault(patches.bucket, []).append(len(patches.pixels))
    assert {row.bucket: (row.images, row.patches) for row in found.buckets} == {
        bucket: (len(lengths), np.mean(lengths)) for bucket, lengths in expected.items()
    }
    assert found.images == len(files)
    seconds = sum(row.images / row.rates[row.batch_size] for row in found.buckets)
    assert found.images_per_second == pytest.approx(len(files) / seconds)
    assert [row.bucket for row in advise(model, files, 100, rounds=1, seconds=0).buckets] == [100]


@given(lengths=st.lists(st.integers(1, 256), min_size=1, max_size=40), size=st.integers(1, 8))
def test_padding_is_what_batches_fill_up(lengths: list[int], size: int) -> None:
    places = 0
    for first in range(0, len(lengths), size):
        batch = lengths[first : first + size]
        places += len(batch) * max(batch)
    assert advice._padding(np.array(lengths), size) == pytest.approx(1 - sum(lengths) / places)


def test_the_smallest_batch_that_is_as_good_as_any() -> None:
    assert advice._best({1: 10.0, 2: 10.1, 4: 9.0}) == 1
    assert advice._best({1: 10.0, 2: 10.5, 4: 10.6}) == 2


def test_advice_leaves_out_what_is_no_image(pocket_path: Path, photos: Path) -> None:
    (photos / "damaged.jpg").write_bytes(b"not an image")
    (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"nor this")
    arguments = ["bench", pocket_path, "--images", photos, "--rounds", 1, "--seconds", 0.1, "--threads", 1]
    result = run_command(*arguments, "--output", photos.parent / "advice.json")
    assert "damaged.jpg" in result.stderr
    assert r"caf\xe9.jpg is not an image" in result.stderr
    assert "5 images" in result.stdout
    assert "expect" in result.stdout
    with pytest.raises(ImageError, match="none of the 1 files"):
        advise(fgclip_rt.load(pocket_path, device="cpu"), [photos / "damaged.jpg"])


def test_stages_and_the_whole(model: Model, tmp_path: Path) -> None:
    files = make_photos(tmp_path, 3)
    assert [Image.open(file).size for file in files] == [(640, 480), (480, 640), (500, 375)]
    found = measure_pipeline(model, files, 2, 64)
    assert list(found.stages) == ["decode", "resize", "copy", "model"]
    assert all(seconds > 0 for seconds in found.stages.values())
    assert found.images == 3
    assert len(found.alone) == len(found.whole) == 2
    assert found.share.value == pytest.approx(np.median(found.alone) / np.median(found.whole))
    with pytest.raises(BenchmarkError, match="none of 0 image files"):
        measure_pipeline(model, [])


def test_a_truncated_photo_is_left_out_and_another_stands_in(model: Model, tmp_path: Path) -> None:
    files = make_photos(tmp_path, 3)
    files[0].write_bytes(files[0].read_bytes()[:2000])
    found = measure_pipeline(model, files, 1, 64, most=1)
    assert (found.images, found.unreadable) == (1, (str(files[0]),))
    with pytest.raises(BenchmarkError, match="none of 1 image files"):
        measure_pipeline(model, files[:1])


def test_bench_of_a_folder_survives_a_truncated_photo(pocket_path: Path, photos: Path) -> None:
    first = min(photos.iterdir())
    first.write_bytes(first.read_bytes()[:2000])
    result = run_command("bench", pocket_path, "--images", photos, "--rounds", 1, "--seconds", 0.1, "--threads", 1)
    assert first.name in result.stderr
    assert "from files to vectors" in result.stdout


def test_starts_tell_of_failure(bundle_path: Path, tmp_path: Path) -> None:
    image = make_photos(tmp_path, 1)[0]
    ours, other = measure_starts(bundle_path, image, tmp_path / "no checkpoint", rounds=1)
    assert len(ours.seconds) == 1
    assert 20e6 < ours.peak < 500e6
    assert not other.seconds
    assert other.problem


def test_results_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(BenchmarkError) as info:
        read_result(path)
    assert_one_sentence(info.value, "results.json", "check the path")
    path.write_text('{"format": "something else"}')
    with pytest.raises(BenchmarkError) as info:
        read_result(path)
    assert_one_sentence(info.value, "results.json", "measure again")


def test_the_page_is_what_the_results_say() -> None:
    results = {path.stem: read_result(path) for path in sorted((PAGE / "results").glob("*.json"))}
    assert results
    page = readme.text(results, read_figures(PAGE / RESULTS))
    assert (PAGE / "README.md").read_text(encoding="utf-8") == page, "run 'make bench-report'"
    for line in page.splitlines():
        if line.startswith("!["):
            assert (PAGE / line.partition("(")[2].rstrip(")")).is_file()
    for name, result in results.items():
        assert result.machine["cores"] == "2", "the targets are for two cores"
        assert not list(unequal(result.tables)), f"{name}: contenders computed different things"
    assert "not measured" not in {outcome.reached for outcome in outcomes(results["fg-clip2-base"])}


@pytest.mark.parametrize(
    ("ours", "reached"),
    [
        ((0.7, 0.7, 0.7), "yes"),
        ((0.9, 0.9, 0.9), "no"),
        ((0.6, 0.7, 1.2), "within the spread"),
        ((0.7, 0.9, 0.9, 0.9, 0.9), "within the spread"),
        ((), "not measured"),
    ],
)
def test_a_target_is_reached_or_missed_only_where_the_turns_agree(ours: tuple[float, ...], reached: str) -> None:
    result = read_result(PAGE / "results" / "fg-clip2-base.json")
    rows = (Row("fgclip-rt fp32", ours), Row("pytorch", (1.0,) * len(ours)))
    table = Table(Case("vision", 256), 2, rows, products=(0.8,) * len(ours), operations=OPERATIONS)
    first, _, share, *_ = outcomes(msgspec.structs.replace(result, tables=(table,)))
    assert first.reached == reached
    if ours:
        assert table.share(rows[0]).value == pytest.approx(0.8 / median(ours))
        assert share.reached == reached
