"""Losses of the pocket checkpoint's training.

They are FG-CLIP 2's losses (https://arxiv.org/abs/2510.10921) on a small scale. The sigmoid loss compares images with
short and with long captions, and dense features, pooled over boxes by RoIAlign, with box captions. A cross entropy
compares each short caption with false ones that differ from it in one attribute.

Further losses are ours, because the model must learn within two hours what usually takes days. Most of them train
linear maps that are thrown away afterwards:

- From pooled dense features, they predict each attribute. Without them the model knows colours at once and shapes very
  late.
- From image and short-text features (one set of maps for both), they predict which attributes go with which colour, and
  where colours lie.
- From short-text features alone, they predict the colour that is named first and the relation that is worded. Only the
  two together tell the side on which a colour lies; without these maps the model did not learn to combine them.

Short captions of single things, with and without their place, teach the parts of captions of pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TypeAlias, get_args
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgclip_rt.export.families.fgclip2 import reference
from fgclip_rt.export.families.siglip2.reference import PoolingHead, resize_positions
from fgclip_rt.export.graphs.regions import RegionGraph
from fgclip_rt.export.reference.blocks import WalkType
from fgclip_rt.export.reference.roi_align import grid_units
from fgclip_rt.pocket.captions import (
    LANGUAGES,
    Place,
    Relation,
    Statement,
    as_worded,
    box_caption,
    falsify,
    long_caption,
    place_of,
    placed_caption,
    short_caption,
    state,
)
from fgclip_rt.pocket.looks import ATTRIBUTES, COLOURS, LOOKS, Look
from fgclip_rt.pocket.scenes import Scene
from fgclip_rt.text import Tokenizer

_BOX_TEXTS, _THING_CAPTIONS = 64, 48  # most distinct box captions, and captions of one thing, in a batch
_FALSE_CAPTIONS, _FALSE_WEIGHT = 2, 3.0
_TRAIN_LOOKS = frozenset(LOOKS["train"])
_ALL_PLACES: tuple[Place, ...] = tuple(product(range(3), range(3)))
#: An attribute, a colour, and the attribute's value that goes with the colour.
Fact: TypeAlias = tuple[str, str, str]
_FACTS: tuple[Fact, ...] = tuple(
    (name, colour, value) for name in ("size", "texture", "shape") for colour in COLOURS for value in ATTRIBUTES[name]
)
_WORDED_RELATIONS: tuple[Relation | None, ...] = (None, *get_args(Relation))
_SIDE = 0.5  # position of a colour whose side a text names; 1 is the border
_FACT_WEIGHT, _POSITION_WEIGHT = 0.5, 2.0
_CLASSIFIED_SCALE = 8.0  # factor of the normalised features before the linear maps


class TrainedModel(nn.Module):
    """The reference's modules, run for a batch that shares one grid, and parameters that only training needs."""

    def __init__(self, model: reference.Fgclip2) -> None:
        super().__init__()
        self.model = model
        self.regions = RegionGraph()
        # Regions are compared by cosine, so their scale and bias serve training only.
        self.region_scale = nn.Parameter(torch.tensor([math.log(10.0)]))
        self.region_bias = nn.Parameter(torch.tensor([-6.0]))
        width = model.config.vision_config.hidden_size
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
        self.facts = nn.Linear(width, len(_FACTS))
        nn.init.constant_(self.facts.bias, -3.0)
        self.positions = nn.Linear(width, 2 * len(COLOURS))
        self.first_colour = nn.Linear(width, len(COLOURS))
        self.relation = nn.Linear(width, len(_WORDED_RELATIONS))

    def images(self, pixels: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image features [B, D] and dense features [B, N, D] of uint8 patches [B, N, P·P·3]."""
        vision = self.model.vision_model
        embeddings = vision.embeddings
        table = embeddings.position_embedding.weight.view(embeddings.grid, embeddings.grid, -1).permute(2, 0, 1)[None]
        positions = resize_positions(table, *grid)[0].flatten(1).T
        x = embeddings.patch_embedding(pixels.float() / 127.5 - 1) + positions
        x = vision.post_layernorm(vision.encoder(x, None))
        pooled = _attend(vision.head, vision.head.probe.expand(len(x), -1, -1), x)[:, 0]
        return pooled, _attend(self.model.dense_feature_head, x, x)

    def pooled(self, dense: Tensor, grid: tuple[int, int], size: tuple[int, int], boxes: Tensor, at: Tensor) -> Tensor:
        """Normalised features [R, D] of ``boxes`` [R, 4] in the images ``at`` [R], of one ``size`` (height, width)."""
        shapes = torch.tensor([grid], dtype=torch.int32).expand(len(dense), -1)
        on_grid = torch.from_numpy(grid_units(boxes.double().numpy(), size, grid, "float64"))
        embeds: Tensor = self.regions(dense, shapes, on_grid, at)[1]
        return embeds

    def texts(self, tokenizer: Tokenizer, texts: Sequence[str], walk_type: WalkType) -> Tensor:
        """Normalised text features [B, D]."""
        input_ids = torch.from_numpy(tokenizer(texts, walk_type).input_ids)
        with _fast(), _attention_as_two_products():
            features = self.model.get_text_features(input_ids, walk_type)
        embeds: Tensor = F.normalize(features.float(), dim=-1)
        return embeds


def _attend(head: PoolingHead, queries: Tensor, x: Tensor) -> Tensor:
    y = head.attention(queries, x, x, need_weights=False)[0]
    return y + head.mlp(head.layernorm(y))


def _sigmoid_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Pairwise sigmoid loss (https://arxiv.org/abs/2303.15343) of logits [n, m], summed over columns."""
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(logits)


def batch_loss(
    trained: TrainedModel,
    tokenizer: Tokenizer,
    scenes: Sequence[Scene],
    pixels: Tensor,
    grid: tuple[int, int],
    random_: random.Random,
    captions: bool = True,
) -> Tensor:
    """The loss of one batch.

    Args:
        trained: the model.
        tokenizer: tokenizer of its texts.
        scenes: B scenes of one size.
        pixels: uint8 [B, N, P·P·3], their patches.
        grid: (rows, columns) of the patches.
        random_: decides the wording, the false captions and the boxes of background.
        captions: whether to learn short and long captions too, or regions only.

    Returns:
        float32 [].
    """
    with _fast(), _attention_as_two_products():
        features, dense = trained.images(pixels, grid)
    loss = _region_loss(trained, tokenizer, scenes, dense.float(), grid, random_)
    if captions:
        loss = loss + _caption_loss(trained, tokenizer, scenes, features.float(), random_)
    return loss


def _caption_loss(
    trained: TrainedModel, tokenizer: Tokenizer, scenes: Sequence[Scene], features: Tensor, random_: random.Random
) -> Tensor:
    count = len(scenes)
    true: list[str] = []
    false: list[str] = []
    truths: list[Statement] = []
    lies: list[Statement] = []
    worded_truths: list[Statement] = []
    worded_lies: list[Statement] = []
    for scene in scenes:
        language, phrasing = random_.choice(LANGUAGES), random_.getrandbits(32)
        truths.append(state(scene, phrasing))
        worded_truths.append(as_worded(truths[-1], phrasing))
        true.append(short_caption(truths[-1], language, phrasing))
        for k in range(_FALSE_CAPTIONS):
            lies.append(falsify(scene, truths[-1], phrasing + k, _TRAIN_LOOKS)[0])
            worded_lies.append(as_worded(lies[-1], phrasing))
            false.append(short_caption(lies[-1], language, phrasing))
    statements = [*truths, *lies]
    named, shows = _single_things(scenes, random_)
    # Long captions cost three times as much as short ones, and a quarter of the scenes teach as well as all.
    long = [long_caption(scene, random_.choice(LANGUAGES), random_.getrandbits(32)) for scene in scenes[::4]]

    short_texts = trained.texts(tokenizer, [*true, *false, *named], "short")
    long_texts = trained.texts(tokenizer, long, "long")
    images = F.normalize(features, dim=-1)
    scale, bias = trained.model.logit_scale.exp(), trained.model.logit_bias
    short_logits = scale * images @ short_texts.T + bias
    long_logits = scale * images[::4] @ long_texts.T + bias
    own = torch.eye(count, dtype=torch.bool)
    positive = torch.cat([own, torch.zeros(count, _FALSE_CAPTIONS * count, dtype=torch.bool), shows], dim=1)
    # Each scene's true caption, then its own false ones.
    mine = count + _FALSE_CAPTIONS * torch.arange(count)[:, None] + torch.arange(_FALSE_CAPTIONS)
    choices = short_logits.gather(1, torch.cat([torch.arange(count)[:, None], mine], dim=1))
    shown_facts = _labels(_facts_shown(scene) for scene in scenes)
    stated_facts = _labels(map(_facts_stated, statements))
    statement_texts = short_texts[: len(statements)]
    return (
        _sigmoid_loss(short_logits, positive)
        + _sigmoid_loss(long_logits, own[: len(long), : len(long)])
        + _FALSE_WEIGHT * F.cross_entropy(choices, torch.zeros(count, dtype=torch.long))
        + _FACT_WEIGHT * _sigmoid_loss(trained.facts(_CLASSIFIED_SCALE * images), shown_facts)
        + _FACT_WEIGHT * _sigmoid_loss(trained.facts(_CLASSIFIED_SCALE * statement_texts), stated_facts)
        + _position_loss(trained, images, map(_positions_shown, scenes))
        + _position_loss(trained, statement_texts, map(_positions_stated, statements))
        + _wording_loss(trained, statement_texts, [*worded_truths, *worded_lies])
    )


def _facts_stated(statement: Statement) -> set[Fact]:
    """The attributes that a statement gives to colours."""
    return _facts_of(statement.first) | _facts_of(statement.second)


def _facts_shown(scene: Scene) -> set[Fact]:
    """The attributes that go with the colours of a scene."""
    return set().union(*(_facts_of(thing.look) for thing in scene.things))


def _facts_of(look: Look) -> set[Fact]:
    return {(name, look.colour, getattr(look, name)) for name in ("size", "texture", "shape")}


def _labels(facts: Iterable[set[Fact]]) -> Tensor:
    """Labels bool [n, facts] of sets of facts."""
    return torch.tensor([[fact in held for fact in _FACTS] for held in facts])


#: A colour's axis, its number times two and plus one for y; and its position there, from -1 (left, top) to 1.
Position: TypeAlias = tuple[int, float]


def _positions_stated(statement: Statement) -> list[Position]:
    """Positions of a statement's two colours, on opposite sides; empty if it has no relation or only one colour."""
    if statement.relation is None or statement.first.colour == statement.second.colour:
        return []
    axis = int(statement.relation in ("above", "below"))
    side = -_SIDE if statement.relation in ("left", "above") else _SIDE
    first, second = (COLOURS.index(look.colour) for look in (statement.first, statement.second))
    return [(2 * first + axis, side), (2 * second + axis, -side)]


def _positions_shown(scene: Scene) -> list[Position]:
    """Positions of the colours that only one thing of a scene has."""
    colours = [thing.look.colour for thing in scene.things]
    positions: list[Position] = []
    for thing in scene.things:
        if colours.count(thing.look.colour) == 1:
            number = 2 * COLOURS.index(thing.look.colour)
            positions.append((number, 2 * thing.centre[0] / scene.width - 1))
            positions.append((number + 1, 2 * thing.centre[1] / scene.height - 1))
    return positions


def _position_loss(trained: TrainedModel, embeds: Tensor, positions: Iterable[list[Position]]) -> Tensor:
    """Squared error of colours' positions, by one linear map for images, which show them, and texts, which name a side.

    If both use the same directions, the product of an image with "a left of b" grows the further left a lies.
    """
    rows, columns, values = [], [], []
    for row, entries in enumerate(positions):
        for column, value in entries:
            rows.append(row)
            columns.append(column)
            values.append(value)
    guessed = trained.positions(_CLASSIFIED_SCALE * embeds)[rows, columns]
    return _POSITION_WEIGHT * (guessed - torch.tensor(values)).square().sum() / len(embeds)


def _wording_loss(trained: TrainedModel, embeds: Tensor, worded: Sequence[Statement]) -> Tensor:
    """Cross entropies of the colour that a text names first and of the relation that it words."""
    scaled = _CLASSIFIED_SCALE * embeds
    colours = torch.tensor([COLOURS.index(statement.first.colour) for statement in worded])
    relations = torch.tensor([_WORDED_RELATIONS.index(statement.relation) for statement in worded])
    return F.cross_entropy(trained.first_colour(scaled), colours) + F.cross_entropy(trained.relation(scaled), relations)


def _single_things(scenes: Sequence[Scene], random_: random.Random) -> tuple[list[str], Tensor]:
    """Captions of one thing each, a third with its place and a third with a wrong one; and the scenes that they fit."""
    looks = list(dict.fromkeys(thing.look for scene in scenes for thing in scene.things))
    placed = {(thing.look, place_of(thing, scene)) for scene in scenes for thing in scene.things}
    captions: list[str] = []
    contents: list[tuple[Look, Place | None]] = []
    places = dict(sorted(placed, key=repr))
    for look in random_.sample(looks, min(_THING_CAPTIONS // 3, len(looks))):
        wrong = random_.choice([place for place in _ALL_PLACES if (look, place) not in placed])
        for place in (None, places[look], wrong):
            language, phrasing = random_.choice(LANGUAGES), random_.getrandbits(32)
            contents.append((look, place))
            captions.append(
                box_caption(look, language, phrasing)
                if place is None
                else placed_caption(look, place, language, phrasing)
            )
    true = [
        {(thing.look, place) for thing in scene.things for place in (None, place_of(thing, scene))} for scene in scenes
    ]
    return captions, torch.tensor([[entry in holds for entry in contents] for holds in true])


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
    loss = _sigmoid_loss(logits, torch.tensor([[look == other for other in looks] for look in shown]))

    things = regions[torch.tensor([look is not None for look in shown])]
    for name, values in ATTRIBUTES.items():
        labels = torch.tensor([values.index(getattr(look, name)) for look in shown if look is not None])
        loss = loss + F.cross_entropy(trained.classifiers[name](_CLASSIFIED_SCALE * things), labels)
    return loss


def _fast() -> torch.autocast:
    """bfloat16 on CPUs that multiply it; emulated on AVX2, forward and backward took 18 times as long as float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(torch.cpu.get_capabilities().get("avx512_bf16")))


@contextmanager
def _attention_as_two_products() -> Iterator[None]:
    """Replace PyTorch's attention, which takes several times as long to train in bfloat16 on a CPU."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: None = None, *_: object, **__: object) -> Tensor:
        assert attn_mask is None
        scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).mT)
        return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(q.shape)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def _boxes(scenes: Sequence[Scene], random_: random.Random) -> tuple[Tensor, Tensor, list[Look | None]]:
    """Boxes [R, 4] of every thing and one of background per scene, their scenes [R], and the looks that they show."""
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
    """A box that meets no thing; None if eight attempts find none."""
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
