"""Train the pocket checkpoint: ``python -m fgclip_rt.pocket.train OUTPUT``.

The losses are FG-CLIP 2's (https://arxiv.org/abs/2510.10921) on a small scale: the sigmoid loss on short and on long
captions, the same between dense features pooled over boxes by RoIAlign and box captions, and a loss that sets each
short caption against false ones that differ from it in one attribute. A batch is many scenes of one size, so that all
share a grid and no patch is padding.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from fgclip_rt.export.fgclip2 import graphs, reference
from fgclip_rt.export.fgclip2.config import Config, TextConfig, VisionConfig
from fgclip_rt.export.fgclip2.random_weights import initialise
from fgclip_rt.images import NaflexPreparation
from fgclip_rt.manifest import ImageSpec, TextSpec, WalkTypeSpec
from fgclip_rt.text import Tokenizer

from .captions import LANGUAGES, box_caption, falsify, long_caption, short_caption, state
from .looks import Look, Split
from .scenes import Scene, draw, make_scene
from .tokenizer import EOS, PAD, SPECIAL_TOKENS, VOCABULARY_SIZE, train_tokenizer

CONFIG = Config(
    VisionConfig(hidden_size=160, intermediate_size=320, num_hidden_layers=6, num_attention_heads=5),
    TextConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=VOCABULARY_SIZE,
        projection_size=160,
    ),
)
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
_SHARES = ((0.8, 0.2, 0.0, 0.0, 0.0), (0.42, 0.28, 0.14, 0.08, 0.08))
_SECOND_PART = 0.6  # of the steps done, when it begins
_BOX_TEXTS = 96  # distinct box captions in a batch, at most
_FALSE_WEIGHT, _WARM_UP = 1.0, 100
_BACKGROUND = -1  # the label of a box that shows no thing


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

    def texts(self, input_ids: Tensor, walk_type: reference.WalkType) -> Tensor:
        """Normalised text features [B, D]."""
        return F.normalize(self.model.get_text_features(input_ids, walk_type).float(), dim=-1)


def _attend(head: reference.PoolingHead, queries: Tensor, x: Tensor) -> Tensor:
    y = head.attention(queries, x, x, need_weights=False)[0]
    return y + head.mlp(head.layernorm(y))


def _sigmoid_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Pairwise sigmoid loss (https://arxiv.org/abs/2303.15343) of logits [n, m], summed over columns."""
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(logits)


def step_loss(trained: TrainedModel, tokenizer: Tokenizer, group: Group, chosen: Sequence[int], seed: int) -> Tensor:
    """The loss of one batch: scenes ``chosen`` from a group, with wording and false captions decided by ``seed``."""
    random_ = random.Random(seed)
    scenes = [group.scenes[i] for i in chosen]
    languages = [random_.choice(LANGUAGES) for _ in scenes]
    phrasings = [random_.getrandbits(32) for _ in scenes]
    statements = [state(scene, phrasing) for scene, phrasing in zip(scenes, phrasings, strict=True)]
    true, false = [], []
    for scene, language, phrasing, statement in zip(scenes, languages, phrasings, statements, strict=True):
        true.append(short_caption(statement, language, phrasing))
        false.append(short_caption(falsify(scene, statement, phrasing)[0], language, phrasing))
    # Long captions cost three times as much, and half of the scenes teach as well.
    long = [long_caption(scene, random_.choice(LANGUAGES), random_.getrandbits(32)) for scene in scenes[::2]]

    boxes, at, shown = _boxes(scenes, random_)
    looks = list({look for look in shown if look is not None})
    looks = random_.sample(looks, min(_BOX_TEXTS, len(looks)))
    names = [box_caption(look, random_.choice(LANGUAGES), random_.getrandbits(32)) for look in looks]

    def ids(texts: Sequence[str], walk_type: str) -> Tensor:
        return torch.from_numpy(tokenizer(texts, walk_type).input_ids)

    pixels = torch.from_numpy(group.pixels[np.asarray(chosen)])
    model = trained.model
    with torch.autocast("cpu", torch.bfloat16):
        features, dense = trained.images(pixels, group.grid)
        short_texts = trained.texts(ids([*true, *false], "short"), "short")
        long_texts = trained.texts(ids(long, "long"), "long")
        box_texts = trained.texts(ids(names, "box"), "box")
    images = F.normalize(features.float(), dim=-1)
    size = (scenes[0].height, scenes[0].width)
    regions = trained.pooled(dense.float(), group.grid, size, boxes, at)

    scale = model.logit_scale.exp()
    count = len(scenes)
    own = torch.eye(count, dtype=torch.bool)
    short_logits = scale * images @ short_texts.T + model.logit_bias
    long_logits = scale * images[::2] @ long_texts.T + model.logit_bias
    labels = torch.tensor([[look == name for name in looks] for look in shown])
    region_logits = trained.region_scale.exp() * regions @ box_texts.T + trained.region_bias
    preference = short_logits[:, :count].diagonal() - short_logits[:, count:].diagonal()
    return (
        _sigmoid_loss(short_logits, torch.cat([own, torch.zeros_like(own)], dim=1))
        + _sigmoid_loss(long_logits, torch.eye(len(long), dtype=torch.bool))
        + _sigmoid_loss(region_logits, labels)
        - _FALSE_WEIGHT * F.logsigmoid(preference).mean()
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
    """Attention as two products: on a CPU in bfloat16, several times faster to train than PyTorch's own."""
    assert attn_mask is None
    scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).mT)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(q.shape)


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
        torch.optim.Muon(blocks, lr=0.01, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
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
    F.scaled_dot_product_attention = _attention
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
        loss = step_loss(trained, tokenizer, group, chosen, random_.getrandbits(32))
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
        for optimiser, schedule in zip(optimisers_, schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            rates = validate(trained, tokenizer) if step % 250 == 249 else {}
            shown = " ".join(f"{name} {value:.2f}" for name, value in rates.items())
            minutes = (time.monotonic() - began) / 60
            print(f"{step + 1}/{steps} {minutes:.1f} min, loss {sum(losses) / len(losses):.3f} {shown}", flush=True)
            losses.clear()
        if step % 500 == 499 or step == steps - 1:
            save(trained.model, tokenizer_json, output)
    del groups


@torch.inference_mode()
def validate(trained: TrainedModel, tokenizer: Tokenizer) -> dict[str, float]:
    """A quick look at 100 validation scenes of one size: shares of right choices."""
    group = _validation_group()
    with torch.autocast("cpu", torch.bfloat16):
        features, dense = trained.images(torch.from_numpy(group.pixels), group.grid)
    images = F.normalize(features.float(), dim=-1)
    boxes, at, shown = _boxes(group.scenes, random.Random(0))
    size = (group.scenes[0].height, group.scenes[0].width)
    regions = trained.pooled(dense.float(), group.grid, size, boxes, at)
    looks = list({look: None for look in shown if look is not None})
    rates = {}
    for language in LANGUAGES:

        def texts(captions: Sequence[str], walk_type: Any) -> Tensor:
            return trained.texts(torch.from_numpy(tokenizer(captions, walk_type).input_ids), walk_type)

        statements = [state(scene, 0) for scene in group.scenes]
        true = texts([short_caption(entry, language, i) for i, entry in enumerate(statements)], "short")
        wrong = [falsify(scene, entry, i)[0] for i, (scene, entry) in enumerate(zip(group.scenes, statements))]
        false = texts([short_caption(entry, language, i) for i, entry in enumerate(wrong)], "short")
        long = texts([long_caption(scene, language, i) for i, scene in enumerate(group.scenes)], "long")
        names = texts([box_caption(look, language, i) for i, look in enumerate(looks)], "box")
        best = (regions @ names.T).argmax(1).tolist()
        things = [(look, looks[index]) for look, index in zip(shown, best) if look is not None]
        every = torch.arange(len(images))
        rates |= {
            f"{language} t2i": ((true @ images.T).argmax(1) == every).float().mean().item(),
            f"{language} i2t": ((images @ true.T).argmax(1) == every).float().mean().item(),
            f"{language} long": ((long @ images.T).argmax(1) == every).float().mean().item(),
            f"{language} true": ((images * true).sum(1) > (images * false).sum(1)).float().mean().item(),
            f"{language} box": sum(look == named for look, named in things) / len(things),
        }
    return rates


def _validation_group() -> Group:
    preparation = NaflexPreparation(_IMAGES)
    scenes = [make_scene(seed, "validation", (180, 150)) for seed in range(100)]
    patches = [preparation(draw(scene)) for scene in scenes]
    return Group(128, patches[0].grid, scenes, np.stack([entry.pixels for entry in patches]))


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
