"""Figures on benchmarks: counted by hand, and on drawn scenes equal to those of the scenes' own evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_rt.errors import BenchmarkError, BoxError
from fgclip_rt.evaluation import measures
from fgclip_rt.evaluation.benchmarks import BENCHMARKS, caveat, published
from fgclip_rt.evaluation.data import Captions, Region, Regions
from fgclip_rt.evaluation.measures import interval, ranks
from fgclip_rt.evaluation.readers import read_coco_captions, read_fg_ovd, read_flickr30k
from fgclip_rt.evaluation.running import Rate, measure_captions, measure_regions
from fgclip_rt.export.checkpoints.registry import MODELS
from fgclip_rt.model import Model
from fgclip_rt.pocket.captions import box_caption, short_caption, state
from fgclip_rt.pocket.scenes import Scene, draw, make_scene
from helpers import run_command

SCENES = 12


def groups(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_ranks_count_the_false_candidates_before_the_best_true_one() -> None:
    queries = np.eye(2, dtype=np.float32)
    candidates = np.array([[0.6, 0.8], [0.8, 0.6], [1, 0], [0, 1]], np.float32)
    found = ranks(queries, candidates, groups(0, 1), groups(0, 0, 1, 1), strict=False)
    # The first query's best true candidate, 0.8, lies behind 1; the second's is the nearest of all.
    assert found.tolist() == [1, 0]


def test_a_tie_is_right_officially_and_wrong_strictly() -> None:
    queries, candidates = np.ones((1, 1), np.float32), np.ones((3, 1), np.float32)
    assert ranks(queries, candidates, groups(1), groups(0, 1, 2), strict=False).tolist() == [0]
    assert ranks(queries, candidates, groups(1), groups(0, 1, 2), strict=True).tolist() == [2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4))
def test_blocks_change_no_rank(seed: int, block: int, captions: int) -> None:
    random = np.random.default_rng(seed)
    images, texts = random.standard_normal((7, 4)), random.standard_normal((7 * captions, 4))
    own, owners = np.arange(7), np.arange(7 * captions) % 7
    order = [[(owners[j] == i, texts[j] @ images[i]) for j in range(len(texts))] for i in range(7)]
    expected = [sum(value > max(v for true, v in row if true) for true, value in row if not true) for row in order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "_BLOCK", block)
        found = ranks(images, texts, own, owners, strict=False)  # type: ignore[arg-type]
    assert found.tolist() == expected


def test_an_interval_draws_whole_groups() -> None:
    right = np.array([True, False] * 50)
    low, high = interval(right, np.arange(100, dtype=np.int32))
    # Of a share of one half among 100, 1.96 standard deviations are 0.098.
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.02)
    # Groups that are all right or all wrong are a tenth as many observations.
    wide_low, wide_high = interval(np.repeat([True, False] * 5, 10), np.repeat(np.arange(10, dtype=np.int32), 10))
    assert wide_high - wide_low > 2 * (high - low)
    assert interval(np.ones(5, bool), np.arange(5, dtype=np.int32)) == (1, 1)


def test_every_published_figure_is_of_a_model_and_a_benchmark() -> None:
    found = {(model, name) for model in MODELS for name in BENCHMARKS if published(model, name)}
    # Models with figures of all, in English only, and without COCO and Flickr30k; SigLIP 2 has no regions.
    assert len(found) == 3 * 18 + 2 * 12 + 12 + 10 + 2 * 11
    assert published("fg-clip2-base", "lvis-boxes") == {"region top-1": 47.3}
    assert published("fg-clip-large", "imagenet-v2") == {"image top-1": 69.0}
    assert published("fg-clip2-base", "dci") == {"image to text R@1": 64.5, "text to image R@1": 64.9}
    assert published("fg-clip-large", "fg-ovd-hard") == {"region top-1": 48.4}
    assert published("fg-clip2-pocket", "dci") == {}
    assert "which of FineCLIP's checkpoints" in caveat("fineclip-vitb16", "local")
    assert "came from a file" in caveat("fineclip-vitb16", "local")
    assert "came from a file" not in caveat("fg-clip2-base", "released")
    assert "size of SigLIP 2's images" in caveat("siglip2-base-patch16-naflex", "released")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Scene]]:
    """Drawn scenes, and files in the forms of COCO, Flickr30k and FG-OVD that describe them."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn = [make_scene(seed, "test") for seed in range(SCENES)]
    (folder / "val2017").mkdir()
    for index, scene in enumerate(drawn):
        draw(scene).save(folder / f"val2017/{index:012}.png")
    texts = [short_caption(state(scene, index), "en", index) for index, scene in enumerate(drawn)]
    files = [{"id": index, "file_name": f"{index:012}.png"} for index in range(SCENES)]
    captions = [{"image_id": index, "caption": text} for index, text in enumerate(texts)]
    _write(folder / "captions_val2017.json", {"images": files, "annotations": captions})
    flickr = [{"image": f"val2017/{index:012}.png", "caption": [text]} for index, text in enumerate(texts)]
    _write(folder / "flickr30k_test.json", flickr)
    rows = []
    for index, scene in enumerate(drawn):
        true, *false = (box_caption(thing.look, "en", 0) for thing in scene.things)
        left, top, right, bottom = scene.things[0].box
        box = [left, top, right - left, bottom - top]
        rows.append(
            {"img_path": f"val2017/{index:012}.png", "bbox": box, "pos_expression": [true], "neg_expression": false}
        )
    (folder / "h_attributes_llava.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, drawn


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def test_scenes_in_the_forms_of_coco_and_flickr30k_get_their_own_figures(
    pocket: Model, scenes: tuple[Path, list[Scene]]
) -> None:
    folder, drawn = scenes
    images = pocket.embed_images([draw(scene) for scene in drawn])
    texts = pocket.embed_texts(short_caption(state(scene, index), "en", index) for index, scene in enumerate(drawn))
    # Fewer than a hundred scenes are one gallery of the scenes' own evaluation.
    expected = {
        "image to text R@1": measures.retrieved(images, texts).sum(),
        "text to image R@1": measures.retrieved(texts, images).sum(),
    }
    for data in (read_coco_captions(folder), read_flickr30k(folder)):
        done: list[None] = []
        rates = measure_captions(pocket, data, "short", (1, SCENES), done=lambda: done.append(None))  # noqa: B023
        found = {rate.name: rate.right for rate in rates}
        assert {name: found[name] for name in expected} == expected
        assert found[f"text to image R@{SCENES}"] == SCENES == len(done)


def test_scenes_in_the_form_of_fg_ovd_get_their_own_figures(pocket: Model, scenes: tuple[Path, list[Scene]]) -> None:
    folder, drawn = scenes
    right = 0
    for scene in drawn:
        region = pocket.dense(draw(scene)).regions([scene.things[0].box])
        names = pocket.embed_texts((box_caption(thing.look, "en", 0) for thing in scene.things), "box")
        right += int(measures.named(region, names, [0]).sum())
    (rate,) = measure_regions(pocket, read_fg_ovd("h_attributes_llava.jsonl", folder), (1,))
    assert (rate.right, rate.total, rate.share) == (right, SCENES, right / SCENES)
    assert right > SCENES // 2


def test_equal_texts_are_a_tie_of_a_box(pocket: Model, scenes: tuple[Path, list[Scene]]) -> None:
    image = scenes[0] / "val2017/000000000000.png"
    tied = Regions(("a star", "a star"), (Region(image, (0, 0, 99, 99), (0, 1)),), "xywh")
    assert [rate.right for rate in measure_regions(pocket, tied, (1,))] == [1]
    assert [rate.right for rate in measure_regions(pocket, tied, (1,), "strict")] == [0]


def test_a_box_that_cannot_be_sampled_is_left_out_or_wrong(pocket: Model, scenes: tuple[Path, list[Scene]]) -> None:
    image = scenes[0] / "val2017/000000000000.png"
    regions = (Region(image, (0, 0, 99, 99), (0,)), Region(image, (5, 5, 0, 9), (0,)))
    data = Regions(("a star",), regions, "xywh")
    counts = {
        protocol: [(rate.right, rate.total) for rate in measure_regions(pocket, data, (1,), protocol, skips_boxes=True)]
        for protocol in ("official", "strict")
    }
    assert counts == {"official": [(1, 1)], "strict": [(1, 2)]}
    with pytest.raises(BoxError):
        measure_regions(pocket, data, (1,))
    with pytest.raises(BenchmarkError, match="no box of the data can be sampled"):
        measure_regions(pocket, Regions(("a star",), regions[1:], "xywh"), (1,), skips_boxes=True)


def test_data_without_inputs_are_refused(pocket: Model) -> None:
    with pytest.raises(BenchmarkError, match="hold no images"):
        measure_captions(pocket, Captions((), (), ()), "short", (1,))
    with pytest.raises(BenchmarkError, match=r"b\.png has no caption"):
        measure_captions(pocket, Captions((Path("a.png"), Path("b.png")), ("a",), (0,)), "short", (1,))
    with pytest.raises(BenchmarkError, match="hold no boxes"):
        measure_regions(pocket, Regions((), (), "xywh"), (1,))


def test_the_command_prints_figures_and_settings(pocket_path: Path, scenes: tuple[Path, list[Scene]]) -> None:
    arguments = ("evaluate", pocket_path, "--benchmark", "coco-retrieval", "--data", scenes[0], "--limit", 4)
    report = json.loads(run_command(*arguments, "--json").stdout)
    assert [figure["total"] for figure in report["figures"]] == [4] * 6
    for figure in report["figures"]:
        assert figure["low"] <= figure["share"] == figure["right"] / 4 <= figure["high"]
        assert figure["published"] is figure["difference"] is None
    assert report["settings"]["walk_types"] == {"short": 64}
    assert (report["settings"]["limit"], report["settings"]["protocol"]) == (4, "official")
    table = run_command(*arguments, "--protocol", "strict").stdout
    assert "text to image R@10" in table
    assert "settings: protocol strict; inputs the first 4; texts short of 64 tokens; case lower;" in table


def test_the_command_measures_pairs(pocket_path: Path, scenes: tuple[Path, list[Scene]]) -> None:
    folder, drawn = scenes
    thing = drawn[0].things[0]
    box = ",".join(map(str, thing.box))
    (folder / "pairs.csv").write_text(
        f'image,text,box\nval2017/000000000000.png,{box_caption(thing.look, "en", 0)},"{box}"\n'
        "val2017/000000000001.png,a scene,\n"
    )
    report = json.loads(run_command("evaluate", pocket_path, "--pairs", folder / "pairs.csv", "--json").stdout)
    assert {figure["name"]: (figure["right"], figure["total"]) for figure in report["figures"]} == {
        f"{name}{k}": (1, 1) for name in ("image to text R@", "text to image R@", "region top-") for k in (1, 5, 10)
    }
    assert report["settings"]["walk_types"] == {"short": 64, "box": 64}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "coco"], "benchmark 'coco' is unknown"),
        (["--benchmark", "dci"], "give their folder with --data"),
        (["--data", "x"], "with --benchmark or --pairs"),
        (["--limit", 0], "--limit is 0"),
        (["--limit", 1], "with --benchmark or --pairs"),
        (["--protocol", "lenient"], "'lenient' is unknown"),
        (["--pairs", "x.csv", "--benchmark", "dci"], "give one or the other"),
        (["--pairs", "x.csv"], "x.csv cannot be read"),
    ],
)
def test_the_command_refuses_options_that_do_not_go_together(
    pocket_path: Path, arguments: list[object], message: str
) -> None:
    assert message in run_command("evaluate", pocket_path, *arguments, status=1).stderr


def test_a_published_figure_is_compared_only_with_the_same_benchmark(
    pocket_path: Path, scenes: tuple[Path, list[Scene]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgclip_rt.cli.benchmarking.published", lambda *_: {"text to image R@1": 50.0})

    def difference(*arguments: object) -> float | None:
        command = ("evaluate", pocket_path, "--benchmark", "coco-retrieval", "--data", scenes[0], "--json")
        figures = {f["name"]: f for f in json.loads(run_command(*command, *arguments).stdout)["figures"]}
        found: float | None = figures["text to image R@1"]["difference"]
        assert found is None or found == pytest.approx(100 * figures["text to image R@1"]["share"] - 50)
        return found

    # The pocket's weights are not a release's.
    assert difference() is None
    monkeypatch.setattr("fgclip_rt.cli.benchmarking._RELEASED", ("shipped",))
    assert difference() is not None
    assert difference("--limit", 3) is None
    assert difference("--protocol", "strict") is None


def test_another_precision_is_compared_choice_by_choice(
    pocket_path: Path, scenes: tuple[Path, list[Scene]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(model: Model, *_: object, **__: object) -> list[Rate]:
        rights = np.array([True, True, True, False] if model.precision == "fp32" else [True, False, False, True])
        return [Rate("text to image R@1", rights, 0, 1)]

    monkeypatch.setattr("fgclip_rt.cli.benchmarking.measure_captions", measure)
    command = ("evaluate", pocket_path, "--benchmark", "coco-retrieval", "--data", scenes[0])
    both = (*command, "--precision", "fp32", "--precision")
    report = json.loads(run_command(*both, "int8", "--json").stdout)
    (other,) = report["others"]
    assert (report["precision"], other["precision"]) == ("fp32", "int8")
    assert other["figures"] == [{"name": "text to image R@1", "share": 0.5, "lost": 2, "gained": 1, "p_value": 1.0}]
    assert "choices of int8 that are not those of fp32" in run_command(*both, "int8").stdout
    assert "no precision 'fp8'" in run_command(*both, "fp8", status=1).stderr
