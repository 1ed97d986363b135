"""The training of the pocket checkpoint: its shortcuts compute the same as the reference, and a few steps run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporting import hasten
from fgclip_rt import export
from fgclip_rt.pocket.captions import LANGUAGES, as_worded, box_caption, long_caption, state
from fgclip_rt.pocket.scenes import make_scene
from fgclip_rt.text import Tokenizer
from tools.pocket import losses, train
from tools.pocket.tokenizer import SPECIAL_TOKENS, train_tokenizer

CORPUS = [long_caption(make_scene(seed, "train"), language, seed) for seed in range(60) for language in LANGUAGES]


@pytest.fixture(scope="module")
def trained() -> losses.TrainedModel:
    torch.manual_seed(0)
    return losses.TrainedModel(train.new_model())


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (20, 17)])
def test_a_batch_of_one_grid_is_what_the_reference_computes(
    trained: losses.TrainedModel, grid: tuple[int, int]
) -> None:
    pixels = torch.randint(0, 256, (2, grid[0] * grid[1], 768), dtype=torch.uint8)
    arguments = (pixels.float() / 127.5 - 1, torch.ones(pixels.shape[:2]), torch.tensor([grid] * 2))
    with torch.inference_mode():
        expected = trained.model.get_image_features(*arguments), trained.model.get_image_dense_features(*arguments)
        plain = trained.images(pixels, grid)
        with losses._attention_as_two_products():
            as_products = trained.images(pixels, grid)
    for actual in (plain, as_products):
        for got, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_loss_falls(trained: losses.TrainedModel) -> None:
    tokenizer = Tokenizer(train_tokenizer(CORPUS, 1024), train._TEXT_SPEC)
    group = train._group((128, 120, 100, 6, 0))
    pixels = torch.from_numpy(group.pixels)
    values = []
    optimisers = train.optimisers(trained)
    for _ in range(5):
        loss = losses.batch_loss(trained, tokenizer, group.scenes, pixels, group.grid, random.Random(0))
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        values.append(loss.item())
    assert values[-1] < values[0] - 0.5


def test_tables_of_positions_tell_places_apart_from_the_start() -> None:
    table = train._sinusoids(64, 128)
    assert table.std().item() == pytest.approx(0.5, abs=0.05)
    distances = torch.cdist(table, table)
    assert (distances + 9 * torch.eye(64)).min() > 1.0
    # Neighbours are similar, so that a table of any other size can be resized from it.
    assert (distances[0, 1:] > distances[0, 1]).sum() >= 61
    model = train.new_model()
    text, vision = model.text_model.embeddings, model.vision_model.embeddings
    for embedding in (text.position_embedding, text.position_embedding_ori, text.position_embedding_res):
        assert torch.equal(embedding.weight, train._sinusoids(*embedding.weight.shape))
    grid = vision.position_embedding.weight.view(vision.grid, vision.grid, 2, -1)
    along = train._sinusoids(vision.grid, grid.shape[-1])
    assert torch.equal(grid[:, :, 0], along[:, None].expand(-1, vision.grid, -1))
    assert torch.equal(grid[:, :, 1], along[None].expand(vision.grid, -1, -1))


def test_the_wording_loss_reads_the_first_colour_and_the_worded_relation() -> None:
    trained = losses.TrainedModel(train.new_model())
    statement = state(make_scene(3, "train"), 3)
    sides = [as_worded(statement, 0), as_worded(statement, 1)]
    assert sides[0] == statement != sides[1]
    with torch.no_grad():
        trained.first_colour.bias.zero_()[losses.COLOURS.index(statement.first.colour)] = 20.0
        trained.relation.bias.zero_()[losses._WORDED_RELATIONS.index(statement.relation)] = 20.0
        assert losses._wording_loss(trained, torch.zeros(1, 160), sides[:1]) < 1e-3
        assert losses._wording_loss(trained, torch.zeros(2, 160), sides) > 1.0


def test_boxes_of_background_meet_no_thing() -> None:
    count = 0
    for seed in range(100):
        scene = make_scene(seed, "train")
        box = losses._empty_box(scene, random.Random(seed))
        if box is None:
            continue
        count += 1
        assert 0 <= box[0] < box[2] <= scene.width
        assert 0 <= box[1] < box[3] <= scene.height
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert min(right, box[2]) <= max(left, box[0]) or min(bottom, box[3]) <= max(top, box[1])
    assert count > 60


def test_captions_of_single_things_are_labelled_by_what_is_shown() -> None:
    scenes = [make_scene(seed, "train") for seed in range(12)]
    captions, shown = losses._single_things(scenes, random.Random(3))
    assert shown.shape == (12, len(captions))
    plain, placed, misplaced = (shown[:, start::3].sum(dim=0) for start in range(3))
    assert (plain >= 1).all()
    assert (placed >= 1).all()
    assert (misplaced == 0).all()


def test_a_few_steps_write_a_checkpoint_that_exports(
    pocket_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch, pocket_path)
    monkeypatch.setattr(train, "_GROUPS", {128: (1, 8, 8)})
    monkeypatch.setattr(train, "_SHARES", ((1.0,), (1.0,)))
    monkeypatch.setattr(train, "validate", lambda checkpoint: str(checkpoint))
    train.train(tmp_path / "made", steps=2, scale=1.0, threads=2, start=None)
    bundle = export.export(export.checkpoint_source(str(tmp_path / "made")), tmp_path / "bundle")
    assert bundle.manifest.embedding_size == 160
    resumed = tmp_path / "resumed"
    train.train(resumed, steps=1, scale=1.0, threads=2, start=tmp_path / "made")
    assert (resumed / "tokenizer.json").read_bytes() == (tmp_path / "made/tokenizer.json").read_bytes()


def test_the_tokenizer_is_of_gemmas_kind() -> None:
    definition = train_tokenizer(CORPUS, 700)
    assert definition == train_tokenizer(CORPUS, 700)
    vocabulary = json.loads(definition)["model"]["vocab"]
    assert len(vocabulary) == 700
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)] == list(range(4, 260))
    tokenizer = tokenizers.Tokenizer.from_str(definition)
    assert tokenizer.encode("a red star").ids[-1] == SPECIAL_TOKENS.index("<eos>")
    # Words are tokens, and no token crosses a space.
    assert "▁shapes" in vocabulary
    assert all("▁" not in token[1:] for token in vocabulary)


@given(st.integers(0, 10_000))
def test_known_words_are_few_tokens(seed: int) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(DEFINITION)
    thing = make_scene(seed, "train").things[0]
    for language in LANGUAGES:
        caption = box_caption(thing.look, language, seed)
        ids = np.array(tokenizer.encode(caption).ids)
        assert not ((ids >= 4) & (ids < 260)).any()
        assert len(ids) <= 24
        assert tokenizer.decode(ids.tolist()) == caption


DEFINITION = train_tokenizer(CORPUS * 2, 1024)
