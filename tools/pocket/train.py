"""Training the pocket checkpoint.

A batch holds scenes of one size, so that all share a grid and no patch is padding. The drawn scenes take 8 GB of
memory. Training is in bfloat16 if the CPU has it, so weights differ slightly between machines.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fgclip_rt.evaluation.scenes import evaluate
from fgclip_rt.export import checkpoint_source, export
from fgclip_rt.export.checkpoints.locate import locate
from fgclip_rt.export.checkpoints.registry import MODELS
from fgclip_rt.export.checkpoints.stand_ins import initialise
from fgclip_rt.export.checkpoints.tensors import load_weights
from fgclip_rt.export.families.fgclip2 import model as fgclip2
from fgclip_rt.export.families.fgclip2 import reference
from fgclip_rt.export.families.fgclip2.config import Config, PreprocessorConfig
from fgclip_rt.export.families.siglip2 import model as siglip2
from fgclip_rt.export.reference.blocks import LongTextEmbeddings
from fgclip_rt.model import open_model
from fgclip_rt.pocket.captions import LANGUAGES, box_caption, long_caption, short_caption, state
from fgclip_rt.pocket.scenes import Scene, draw, make_scene
from fgclip_rt.preparation import NaflexPreparation
from fgclip_rt.text import Tokenizer

from .losses import TrainedModel, batch_loss
from .save import save
from .tokenizer import PAD, SPECIAL_TOKENS, train_tokenizer

CONFIG = Config.from_json(MODELS["fg-clip2-pocket"].config)
_PREPARATION = NaflexPreparation(siglip2.image_spec(CONFIG, PreprocessorConfig().buckets, exif_transpose=False))
_TEXT_SPEC = siglip2.text_spec(fgclip2.lengths(CONFIG), SPECIAL_TOKENS.index(PAD), masked=False, lowercase=True)

#: By bucket: number of sizes, number of scenes of each size, and number of scenes in a batch.
_GROUPS = {128: (24, 1600, 128), 256: (12, 640, 64), 576: (8, 256, 28), 784: (5, 200, 20), 1024: (5, 200, 16)}
#: Shares of the buckets in the steps of the first and of the second part of training.
_SHARES = ((0.8, 0.2, 0.0, 0.0, 0.0), (0.6, 0.25, 0.08, 0.03, 0.04))
_SECOND_PART = 0.65  # share of the steps, after which it begins
_REGIONS_ONLY = 400  # first steps, which train regions alone
_REPORT_EVERY, _SAVE_EVERY = 50, 250  # steps
_WARM_UP = 50  # steps
_TOKENS_STD = 0.3  # standard deviation of the token table before training


@dataclass(frozen=True)
class Group:
    """Scenes of one size, drawn.

    Attributes:
        bucket: the bucket of their size.
        grid: (rows, columns) of patches.
        scenes: n scenes.
        pixels: uint8 [n, rows·columns, P·P·3].
    """

    bucket: int
    grid: tuple[int, int]
    scenes: list[Scene]
    pixels: np.ndarray[Any, np.dtype[np.uint8]]


def _group(arguments: tuple[int, int, int, int, int]) -> Group:
    bucket, width, height, count, seed = arguments
    scenes = [make_scene(seed + i, "train", (width, height)) for i in range(count)]
    patches = [_PREPARATION(draw(scene)) for scene in scenes]
    return Group(bucket, patches[0].grid, scenes, np.stack([entry.pixels for entry in patches]))


def draw_groups(scale: float) -> list[Group]:
    """The training scenes; ``scale`` multiplies the number of scenes of each size."""
    orders, seeds = [], iter(range(10_000_000))
    for bucket, (sizes, count, _) in _GROUPS.items():
        drawn = 0
        while drawn < sizes:
            seed = next(seeds)
            scene = make_scene(seed, "train")
            if _PREPARATION.bucket(scene.width, scene.height) == bucket:
                orders.append((bucket, scene.width, scene.height, max(1, round(count * scale)), 100_000 * (seed + 1)))
                drawn += 1
    # Not by fork: locks that torch's threads hold at that moment would stay locked in the children.
    with multiprocessing.get_context("spawn").Pool() as pool:
        return pool.map(_group, orders, chunksize=1)


def _captions(count: int) -> Iterator[str]:
    for seed in range(count):
        scene = make_scene(seed, "train")
        for language in LANGUAGES:
            yield short_caption(state(scene, seed), language, seed)
            yield long_caption(scene, language, seed)
            for index, thing in enumerate(scene.things):
                yield box_caption(thing.look, language, seed + index)


def new_model() -> reference.Fgclip2:
    """The model before training: random weights, and sinusoidal tables of positions.

    With small random tables, image features did not tell where things lie, even after an hour of training.
    """
    model = reference.Fgclip2(CONFIG)
    initialise(model, seed=0)
    vision, text = model.vision_model.embeddings, model.text_model.embeddings
    assert isinstance(text, LongTextEmbeddings)
    with torch.no_grad():
        text.token_embedding.weight.mul_(_TOKENS_STD)
        for table in (text.position_embedding, text.position_embedding_ori, text.position_embedding_res):
            table.weight.copy_(_sinusoids(*table.weight.shape))
        along = _sinusoids(vision.grid, CONFIG.vision_config.hidden_size // 2)
        grid = [along[:, None].expand(-1, vision.grid, -1), along[None].expand(vision.grid, -1, -1)]
        vision.position_embedding.weight.copy_(torch.cat(grid, dim=-1).flatten(0, 1))
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-6.0)
    return model


def _sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines [length, width], from half a turn in all to a quarter turn per position (std 0.5)."""
    turns = torch.logspace(math.log10(0.5), math.log10(length / 4), width // 2)
    angles = math.tau * turns * torch.arange(length)[:, None] / length
    return torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(2)


def optimisers(trained: TrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and heads, AdamW for tables, norms, biases and scalars."""
    matrices = {
        id(parameter)
        for name, parameter in trained.named_parameters()
        if parameter.ndim == 2 and "embedding" not in name
    }
    scales = {id(trained.model.logit_scale), id(trained.model.logit_bias)}
    rest = [parameter for parameter in trained.parameters() if id(parameter) not in matrices | scales]
    blocks = [parameter for parameter in trained.parameters() if id(parameter) in matrices]
    return [
        torch.optim.Muon(blocks, lr=0.03, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.AdamW([trained.model.logit_scale, trained.model.logit_bias], lr=1e-2, weight_decay=0.0),
    ]


def train(output: Path, steps: int, scale: float, threads: int, start: Path | None) -> None:
    """Train and write a checkpoint folder."""
    torch.manual_seed(0)
    output.mkdir(parents=True)
    tokenizer_json = (
        train_tokenizer(_captions(4000), CONFIG.text_config.vocab_size)
        if start is None
        else (start / "tokenizer.json").read_text("utf-8")
    )
    tokenizer = Tokenizer(tokenizer_json, _TEXT_SPEC)
    groups = draw_groups(scale)
    torch.set_num_threads(threads)
    print(f"{sum(len(group.scenes) for group in groups)} scenes of {len(groups)} sizes", flush=True)

    trained = TrainedModel(new_model())
    if start is not None:
        load_weights(trained.model, locate(str(start)))
    optimisers_ = optimisers(trained)

    def rate(step: int) -> float:
        return min((step + 1) / _WARM_UP, 1 - step / steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, rate) for optimiser in optimisers_]
    random_ = random.Random(0)
    began, losses = time.monotonic(), []
    for step in range(steps):
        shares = _SHARES[step >= _SECOND_PART * steps]
        (bucket,) = random_.choices(list(_GROUPS), shares)
        group = random_.choice([group for group in groups if group.bucket == bucket])
        chosen = random_.sample(range(len(group.scenes)), min(_GROUPS[bucket][2], len(group.scenes)))
        loss = batch_loss(
            trained,
            tokenizer,
            [group.scenes[index] for index in chosen],
            torch.from_numpy(group.pixels[np.asarray(chosen)]),
            group.grid,
            random.Random(random_.getrandbits(32)),
            captions=start is not None or step >= _REGIONS_ONLY,
        )
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
        for optimiser, schedule in zip(optimisers_, schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        losses.append(loss.item())
        if step % _REPORT_EVERY == _REPORT_EVERY - 1:
            minutes = (time.monotonic() - began) / 60
            print(f"{step + 1}/{steps} {minutes:.1f} min, loss {sum(losses) / len(losses):.3f}", flush=True)
            losses.clear()
        if step % _SAVE_EVERY == _SAVE_EVERY - 1 or step == steps - 1:
            save(trained.model, tokenizer_json, output)
            print(validate(output), flush=True)


def validate(checkpoint: Path) -> str:
    """Evaluate a saved checkpoint on validation scenes, in the form that users run: an exported bundle."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(checkpoint_source(str(checkpoint)), Path(folder) / "bundle")
        result = evaluate(open_model(bundle, "cpu"), scenes=100, split="validation")
    figures = (f"{figure.measure} ({figure.language}) {figure.share:.0%}" for figure in result.figures)
    return ", ".join(figures)
