"""Train the pocket checkpoint: ``python -m fgclip_rt.pocket.train OUTPUT``.

The losses are FG-CLIP 2's (https://arxiv.org/abs/2510.10921) on a small scale: the sigmoid loss on short and on long
captions, the same between dense features pooled over boxes by RoIAlign and box captions, and a loss that sets each
short caption against false ones that differ from it in one attribute. Linear classifiers of each attribute on the same
pooled features, thrown away afterwards, shorten training many times over: without them the tower finds colours at once
and shapes very late. A batch is many scenes of one size, so that all share a grid and no patch is padding.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from fgclip_rt.export import checkpoint_source, export
from fgclip_rt.export.fgclip2 import graphs, reference
from fgclip_rt.export.fgclip2.config import Config
from fgclip_rt.export.fgclip2.random_weights import initialise
from fgclip_rt.export.registry import MODELS
from fgclip_rt.images import NaflexPreparation
from fgclip_rt.manifest import ImageSpec, TextSpec, WalkTypeSpec
from fgclip_rt.model import Model
from fgclip_rt.text import Tokenizer

from .captions import LANGUAGES, box_caption, falsify, long_caption, short_caption, state
from .evaluation import evaluate
from .looks import ATTRIBUTES, Look
from .scenes import Scene, draw, make_scene
from .tokenizer import EOS, PAD, SPECIAL_TOKENS, train_tokenizer

CONFIG = Config.from_json(MODELS["fg-clip2-pocket"].config)
_IMAGES = ImageSpec(
    kind="naflex",
    patch_size=16,
    channels=3,
    resample="bilinear",
    buckets=(128, 256, 576, 784, 1024),
    max_num_patches=1024,
)
_TEXTS = TextSpec(
    tokenizer="tokenizer.json",
    lowercase=True,
    pad_token_id=SPECIAL_TOKENS.index(PAD),
    attention_mask=False,
    walk_types={
        "short": WalkTypeSpec(index=0, length=64),
        "box": WalkTypeSpec(index=1, length=64),
        "long": WalkTypeSpec(index=2, length=196),
    },
)

#: By bucket: how many sizes, how many scenes of each, how many of them in a batch.
_GROUPS = {128: (24, 1600, 128), 256: (12, 640, 64), 576: (8, 256, 28), 784: (5, 200, 20), 1024: (5, 200, 16)}
#: Shares of the buckets in the steps of the first and of the second part of training.
_SHARES = ((0.85, 0.15, 0.0, 0.0, 0.0), (0.5, 0.25, 0.12, 0.06, 0.07))
_SECOND_PART = 0.65  # of the steps done, when it begins
_REGIONS_ONLY = 400  # steps at the start
_REPORT_EVERY, _SAVE_EVERY = 50, 500  # steps
_BOX_TEXTS = 96  # distinct box captions in a batch, at most
_FALSE_WEIGHT, _WARM_UP = 1.0, 100
_CLASSIFIED_SCALE = 8.0  # of the normalised features, for the classifiers


@dataclasses.dataclass(frozen=True)
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


class TrainedModel(nn.Module):
    """The reference's modules, run for a batch that shares one grid."""

    def __init__(self, model: reference.Fgclip2) -> None:
        super().__init__()
        self.model = model
        self.regions = graphs.RegionGraph()
        # Regions are compared by cosine, so their scale and bias serve training only.
        self.region_scale = nn.Parameter(torch.tensor([math.log(10.0)]))
        self.region_bias = nn.Parameter(torch.tensor([-6.0]))
        width = CONFIG.vision_config.hidden_size
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})

    def images(self, pixels: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image features [B, D] and dense features [B, N, D] of uint8 patches [B, N, P·P·3]."""
        vision = self.model.vision_model
        embeddings = vision.embeddings
        table = embeddings.position_embedding.weight.view(embeddings.grid, embeddings.grid, -1).permute(2, 0, 1)[None]
        positions = reference.resize_positions(table, *grid)[0].flatten(1).T
        x = embeddings.patch_embedding(pixels.float() / 127.5 - 1) + positions
        x = vision.post_layernorm(vision.encoder(x, None))
        pooled = _attend(vision.head, vision.head.probe.expand(len(x), -1, -1), x)[:, 0]
        return pooled, _attend(self.model.dense_feature_head, x, x)

    def pooled(self, dense: Tensor, grid: tuple[int, int], size: tuple[int, int], boxes: Tensor, at: Tensor) -> Tensor:
        """Normalised features [R, D] of ``boxes`` [R, 4] in the images ``at`` [R], of one ``size`` (height, width)."""
        shapes = torch.tensor([grid], dtype=torch.int32).expand(len(dense), -1)
        sizes = torch.tensor([size], dtype=torch.int32).expand(len(dense), -1)
        embeds: Tensor = self.regions(dense, shapes, sizes, boxes, at)[1]
        return embeds

    def texts(self, tokenizer: Tokenizer, texts: Sequence[str], walk_type: reference.WalkType) -> Tensor:
        """Normalised text features [B, D]."""
        input_ids = torch.from_numpy(tokenizer(texts, walk_type).input_ids)
        with torch.autocast("cpu", torch.bfloat16):
            features = self.model.get_text_features(input_ids, walk_type)
        embeds: Tensor = F.normalize(features.float(), dim=-1)
        return embeds


def _attend(head: reference.PoolingHead, queries: Tensor, x: Tensor) -> Tensor:
    y = head.attention(queries, x, x, need_weights=False)[0]
    return y + head.mlp(head.layernorm(y))


def _sigmoid_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Pairwise sigmoid loss (https://arxiv.org/abs/2303.15343) of logits [n, m], summed over columns."""
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(logits)


def step_loss(
    trained: TrainedModel, tokenizer: Tokenizer, group: Group, chosen: Sequence[int], seed: int, captions: bool
) -> Tensor:
    """The loss of one batch: scenes ``chosen`` from a group, with wording and false captions decided by ``seed``."""
    with torch.autocast("cpu", torch.bfloat16):
        features, dense = trained.images(torch.from_numpy(group.pixels[np.asarray(chosen)]), group.grid)
    scenes, random_ = [group.scenes[i] for i in chosen], random.Random(seed)
    loss = _region_loss(trained, tokenizer, scenes, dense.float(), group.grid, random_)
    if captions:
        loss = loss + _caption_loss(trained, tokenizer, scenes, features.float(), random_)
    return loss


def _caption_loss(
    trained: TrainedModel, tokenizer: Tokenizer, scenes: Sequence[Scene], features: Tensor, random_: random.Random
) -> Tensor:
    true, false = [], []
    for scene in scenes:
        language, phrasing = random_.choice(LANGUAGES), random_.getrandbits(32)
        statement = state(scene, phrasing)
        true.append(short_caption(statement, language, phrasing))
        false.append(short_caption(falsify(scene, statement, phrasing)[0], language, phrasing))
    # Long captions cost three times as much, and half of the scenes teach as well.
    long = [long_caption(scene, random_.choice(LANGUAGES), random_.getrandbits(32)) for scene in scenes[::2]]

    short_texts = trained.texts(tokenizer, [*true, *false], "short")
    long_texts = trained.texts(tokenizer, long, "long")
    images = F.normalize(features, dim=-1)
    scale, bias = trained.model.logit_scale.exp(), trained.model.logit_bias
    count = len(scenes)
    short_logits = scale * images @ short_texts.T + bias
    long_logits = scale * images[::2] @ long_texts.T + bias
    own = torch.eye(count, dtype=torch.bool)
    preference = short_logits[:, :count].diagonal() - short_logits[:, count:].diagonal()
    return (
        _sigmoid_loss(short_logits, torch.cat([own, torch.zeros_like(own)], dim=1))
        + _sigmoid_loss(long_logits, own[: len(long), : len(long)])
        - _FALSE_WEIGHT * F.logsigmoid(preference).mean()
    )


def _region_loss(
    trained: TrainedModel,
    tokenizer: Tokenizer,
    scenes: Sequence[Scene],
    dense: Tensor,
    grid: tuple[int, int],
    random_: random.Random,
) -> Tensor:
    boxes, at, shown = _boxes(scenes, random_)
    regions = trained.pooled(dense, grid, (scenes[0].height, scenes[0].width), boxes, at)
    looks = list(dict.fromkeys(look for look in shown if look is not None))
    looks = random_.sample(looks, min(_BOX_TEXTS, len(looks)))
    names = [box_caption(look, random_.choice(LANGUAGES), random_.getrandbits(32)) for look in looks]
    logits = trained.region_scale.exp() * regions @ trained.texts(tokenizer, names, "box").T + trained.region_bias
    loss = _sigmoid_loss(logits, torch.tensor([[look == name for name in looks] for look in shown]))

    things = regions[torch.tensor([look is not None for look in shown])]
    for name, values in ATTRIBUTES.items():
        labels = torch.tensor([values.index(getattr(look, name)) for look in shown if look is not None])
        loss = loss + F.cross_entropy(trained.classifiers[name](_CLASSIFIED_SCALE * things), labels)
    return loss


@contextmanager
def _attention_as_two_products() -> Iterator[None]:
    """On a CPU, PyTorch's own attention takes several times as long to train in bfloat16."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: None = None, *_: object, **__: object) -> Tensor:
        assert attn_mask is None
        scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).mT)
        return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(q.shape)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def _boxes(scenes: Sequence[Scene], random_: random.Random) -> tuple[Tensor, Tensor, list[Look | None]]:
    """Boxes [R, 4] of every thing and one of background a scene, the scenes they are in [R], and what they show."""
    boxes: list[tuple[float, float, float, float]] = []
    at: list[int] = []
    shown: list[Look | None] = []
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            boxes.append(thing.box)
            shown.append(thing.look)
        if (empty := _empty_box(scene, random_)) is not None:
            boxes.append(empty)
            shown.append(None)
        at += [index] * (len(boxes) - len(at))
    return torch.tensor(boxes), torch.tensor(at, dtype=torch.int32), shown


def _empty_box(scene: Scene, random_: random.Random) -> tuple[float, float, float, float] | None:
    """A box that meets no thing, if a few attempts find one."""
    side = (scene.width * scene.height) ** 0.5
    for _ in range(8):
        width, height = (random_.uniform(0.1, 0.35) * side for _ in range(2))
        x, y = random_.uniform(0, scene.width - width), random_.uniform(0, scene.height - height)
        overlaps = (
            x < right and left < x + width and y < bottom and top < y + height
            for left, top, right, bottom in (thing.box for thing in scene.things)
        )
        if not any(overlaps):
            return x, y, x + width, y + height
    return None


def _group(arguments: tuple[int, int, int, int, int]) -> Group:
    bucket, width, height, count, seed = arguments
    preparation = NaflexPreparation(_IMAGES)
    scenes = [make_scene(seed + i, "train", (width, height)) for i in range(count)]
    patches = [preparation(draw(scene)) for scene in scenes]
    return Group(bucket, patches[0].grid, scenes, np.stack([entry.pixels for entry in patches]))


def draw_groups(scale: float) -> list[Group]:
    """The training scenes; ``scale`` multiplies the number of scenes of each size."""
    orders, seeds = [], iter(range(10_000_000))
    for bucket, (sizes, count, _) in _GROUPS.items():
        found = 0
        while found < sizes:
            seed = next(seeds)
            scene = make_scene(seed, "train")
            if _bucket(scene) == bucket:
                orders.append((bucket, scene.width, scene.height, max(1, round(count * scale)), 100_000 * (seed + 1)))
                found += 1
    with multiprocessing.get_context("fork").Pool() as pool:
        return pool.map(_group, orders, chunksize=1)


def _bucket(scene: Scene) -> int:
    patches = (scene.width // 16) * (scene.height // 16)
    return next((bucket for bucket in _IMAGES.buckets if patches <= bucket), _IMAGES.buckets[-1])


def _captions(count: int) -> Iterator[str]:
    for seed in range(count):
        scene = make_scene(seed, "train")
        for language in LANGUAGES:
            yield short_caption(state(scene, seed), language, seed)
            yield long_caption(scene, language, seed)
            for thing in scene.things:
                yield box_caption(thing.look, language, seed + len(thing.look.shape))


def new_model() -> reference.Fgclip2:
    """The model before training."""
    with torch.device("meta"):
        model = reference.Fgclip2(CONFIG)
    model.to_empty(device="cpu")
    initialise(model, seed=0)
    with torch.no_grad():
        for embedding in (model.text_model.embeddings, model.vision_model.embeddings):
            for module in embedding.modules():
                if isinstance(module, nn.Embedding):
                    module.weight.mul_(0.1 if module is embedding.get_submodule("position_embedding") else 0.3)
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-6.0)
    return model


def optimisers(trained: TrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and heads, AdamW for tables, norms, biases and scalars."""
    matrices = {
        id(parameter)
        for name, parameter in trained.named_parameters()
        if parameter.ndim == 2 and "embedding" not in name
    }
    rest = [parameter for parameter in trained.parameters() if id(parameter) not in matrices]
    blocks = [parameter for parameter in trained.parameters() if id(parameter) in matrices]
    return [
        torch.optim.Muon(blocks, lr=0.03, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(output: Path, steps: int, scale: float, threads: int) -> None:
    """Train and write a checkpoint folder."""
    torch.manual_seed(0)
    output.mkdir(parents=True)
    tokenizer_json = train_tokenizer(_captions(4000))
    tokenizer = Tokenizer(tokenizer_json, _TEXTS)
    groups = draw_groups(scale)
    torch.set_num_threads(threads)
    print(f"{sum(len(group.scenes) for group in groups)} scenes of {len(groups)} sizes", flush=True)

    trained = TrainedModel(new_model())
    optimisers_ = optimisers(trained)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / _WARM_UP) * max(0.0, 1 - max(0.0, step / steps - 0.3) / 0.7)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, rate) for optimiser in optimisers_]
    random_ = random.Random(0)
    began, losses = time.monotonic(), []
    for step in range(steps):
        shares = _SHARES[step >= _SECOND_PART * steps]
        (bucket,) = random_.choices(list(_GROUPS), shares)
        group = random_.choice([group for group in groups if group.bucket == bucket])
        chosen = random_.sample(range(len(group.scenes)), min(_GROUPS[bucket][2], len(group.scenes)))
        with _attention_as_two_products():
            loss = step_loss(trained, tokenizer, group, chosen, random_.getrandbits(32), captions=step >= _REGIONS_ONLY)
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
    """Evaluate a saved checkpoint on validation scenes as its users would meet it: from an exported bundle."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(checkpoint_source(str(checkpoint)), Path(folder) / "bundle")
        result = evaluate(Model(bundle, "cpu"), scenes=100, split="validation")
    figures = (f"{figure.measure} ({figure.language}) {figure.share:.0%}" for figure in result.figures)
    return ", ".join(figures)


def save(model: reference.Fgclip2, tokenizer_json: str, output: Path) -> None:
    """Write a checkpoint folder as ``save_pretrained`` does, its tensors in fp16."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    vision, text = CONFIG.vision_config, CONFIG.text_config
    documents: dict[str, dict[str, Any]] = {
        "config.json": {
            "architectures": ["Fgclip2Model"],
            "dtype": "float16",
            "model_type": "fgclip2",
            "text_config": {**dataclasses.asdict(text), "model_type": "fgclip2_text_model", "eos_token_id": 1},
            "vision_config": {**dataclasses.asdict(vision), "model_type": "fgclip2_vision_model"},
        },
        "preprocessor_config.json": {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "dynamic_max_patches": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Fgclip2ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_num_patches": 256,
            "patch_size": 16,
            "resample": 2,
            "rescale_factor": 1 / 255,
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_eos_token": True,
            "bos_token": "<bos>",
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": "<unk>",
            "model_input_names": ["input_ids"],
            "model_max_length": 64,
            "padding_side": "right",
            "tokenizer_class": "GemmaTokenizer",
        },
    }
    for name, document in documents.items():
        (output / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (output / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")


def main(
    output: Annotated[Path, typer.Argument(help="Checkpoint folder to make.")],
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 4000,
    scale: Annotated[float, typer.Option(help="Share of the training scenes to draw.")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the pocket checkpoint on scenes that are drawn for it."""
    train(output, steps, scale, threads)


if __name__ == "__main__":
    typer.run(main)
