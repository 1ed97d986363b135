"""SigLIP 2 NaFlex as a :class:`fgclip_rt.export.families.base.ReferenceModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from fgclip_rt.manifest import NaflexSpec, Score, TextSpec, WalkTypeSpec

from ...checkpoints.files import TOKENIZER, Checkpoint
from ...checkpoints.processors import read_image_settings
from ...checkpoints.stand_ins import byte_tokenizer, random_module
from ...checkpoints.tensors import load_module
from ...checkpoints.tokenizers import CheckpointTokenizer, TextSettings, with_lowercase
from ...graphs.text import TextGraph, text_source
from ...graphs.trace import GraphSource
from ...reference.blocks import WalkType
from ..base import ReferenceModel
from . import reference
from .config import MAX_NUM_PATCHES, Config, PreprocessorConfig
from .graphs import PoolingHead, TextTower, VisionGraph, VisionTower, vision_source
from .one_grid import OneGrid

_Preprocessor = TypeVar("_Preprocessor", bound=PreprocessorConfig)

#: Logit scale and bias of models with random weights, near those of the released models.
RANDOM_SCALARS = {"logit_scale": 4.7, "logit_bias": -12.0}


class Siglip2Model(ReferenceModel):
    """A loaded SigLIP 2: whole images and short texts."""

    module: reference.Siglip2
    # transformers turns the files that its processor opens, by ``load_image``, and no Pillow image.
    exif_transpose = True

    def __init__(self, model: reference.Siglip2, preprocessor: PreprocessorConfig, texts: TextSettings) -> None:
        self.module = model.eval().requires_grad_(False)
        self._normalisation = preprocessor.image_mean, preprocessor.image_std
        self._buckets = preprocessor.buckets
        self._texts = texts
        self.tokenizer_json = texts.definition

    @property
    def embedding_size(self) -> int:
        return self.module.config.vision_config.hidden_size

    @property
    def image_spec(self) -> NaflexSpec:
        return image_spec(self.module.config, self._buckets, exif_transpose=self.exif_transpose)

    @property
    def text_spec(self) -> TextSpec:
        # SigLIP 2's tokenizer lower-cases by itself, after it has split off special tokens.
        return text_spec(lengths(self.module.config), self._texts.pad_token_id, self._texts.masked, lowercase=False)

    @property
    def score(self) -> Score:
        return Score(
            activation="sigmoid",
            logit_scale=self.module.logit_scale.item(),
            logit_bias=self.module.logit_bias.item(),
        )

    def graphs(self) -> dict[str, GraphSource]:
        tower, pooling = self._vision_parts()
        vision = vision_source(VisionGraph(tower, pooling), self.module.vision_model)
        return {"vision": vision, "text": self._text_source()}

    def image_inputs(self, pixels: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        # Rescaled and normalised as the released processor does, before the projection.
        mean, std = (pixels.new_tensor(values, dtype=torch.float32) for values in self._normalisation)
        channels = pixels.unflatten(-1, (-1, len(mean))).to(torch.float32)
        pixel_values = ((channels / 255 - mean) / std).flatten(2)
        mask = torch.arange(pixels.shape[1], device=pixels.device) < spatial_shapes.prod(1, keepdim=True)
        # On the CPU, because the reference reads each grid as numbers and would wait for a GPU every time.
        return pixel_values, mask.float(), spatial_shapes.cpu()

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:
        mask = attention_mask if self._texts.masked else None
        return self.module.get_text_features(input_ids, cast(WalkType, walk_type), mask)

    def one_grid(self, graph: Literal["vision", "dense"], grid: tuple[int, int]) -> nn.Module:
        return OneGrid(self.module, graph, grid)

    def siglip2_towers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        sizes = self.module.config
        config = {"vision_config": dict(vars(sizes.vision_config)), "text_config": dict(vars(sizes.text_config))}
        return config, self.module.state_dict()

    def _vision_parts(self) -> tuple[VisionTower, PoolingHead]:
        vision = self.module.vision_model
        tower = VisionTower(vision, *self._normalisation)
        return tower, PoolingHead(vision.head)

    def _text_source(self) -> GraphSource:
        model, walk_types = self.module, self.module.walk_types
        heads = [model.head(walk_type) for walk_type in walk_types]
        graph = TextGraph(TextTower(model.text_model, walk_types), [(head.weight, head.bias) for head in heads])
        length = model.config.text_config.max_position_embeddings
        return text_source(graph, length, self.embedding_size, masked=self._texts.masked)


def image_spec(config: Config, buckets: tuple[int, ...], *, exif_transpose: bool) -> NaflexSpec:
    """Preparation of images for a model of these sizes."""
    vision = config.vision_config
    return NaflexSpec(
        patch_size=vision.patch_size,
        channels=vision.num_channels,
        resample="bilinear",
        buckets=buckets,
        max_num_patches=MAX_NUM_PATCHES,
        exif_transpose=exif_transpose,
    )


def lengths(config: Config) -> dict[str, int]:
    """Number of tokens by walk type of a model of these sizes."""
    return {"short": config.text_config.max_position_embeddings}


def text_spec(lengths: Mapping[str, int], pad_token_id: int, masked: bool, *, lowercase: bool) -> TextSpec:
    """Tokenisation of texts: padded to a length by walk type, with an attention mask or without."""
    return TextSpec(
        tokenizer=TOKENIZER,
        lowercase=lowercase,
        pad_token_id=pad_token_id,
        attention_mask=masked,
        walk_types={
            name: WalkTypeSpec(index=index, length=length) for index, (name, length) in enumerate(lengths.items())
        },
    )


def load(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Siglip2Model:
    """Load a checkpoint; arguments and errors are those of :class:`fgclip_rt.export.families.table.Family`."""
    sizes = Config.from_json(config)
    preprocessor = read_preprocessor(checkpoint, sizes, PreprocessorConfig)
    texts = read_texts(checkpoint, sizes, lengths(sizes), lowercase=True)
    return Siglip2Model(load_module(lambda: reference.Siglip2(sizes), checkpoint, sizes.blocks), preprocessor, texts)


def random(config: Mapping[str, Any], seed: int) -> Siglip2Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    sizes = Config.from_json(config)
    module = random_module(lambda: reference.Siglip2(sizes), seed, **RANDOM_SCALARS)
    return Siglip2Model(module, PreprocessorConfig(), TextSettings(with_lowercase(byte_tokenizer()), pad_token_id=0))


def read_preprocessor(checkpoint: Checkpoint, config: Config, kind: type[_Preprocessor]) -> _Preprocessor:
    """A checkpoint's preparation of images, as a family's ``kind``.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for a preparation that a bundle cannot express.
    """
    settings = read_image_settings(checkpoint)
    preprocessor = kind.from_json(settings.values, config.vision_config, settings.file)
    preprocessor.note(checkpoint, settings)
    return preprocessor


def read_texts(checkpoint: Checkpoint, config: Config, lengths: Mapping[str, int], *, lowercase: bool) -> TextSettings:
    """A checkpoint's tokenizer and its settings.

    Args:
        checkpoint: holds the files.
        config: sizes of the model.
        lengths: number of tokens by walk type.
        lowercase: whether the tokenizer has to lower-case texts.

    Raises:
        CheckpointError: a file is missing or damaged, or texts would not be tokenised as the models were trained.
    """
    tokenizer = CheckpointTokenizer(checkpoint, config.text_config.vocab_size)
    tokenizer.follow_flags()
    if lowercase:
        tokenizer.lowercase()
    tokenizer.check(min(lengths.values()), start=[], end=[tokenizer.end_token()])
    tokenizer.note_padding_side()
    return TextSettings(tokenizer.definition, tokenizer.padding_token(), tokenizer.makes_mask())
