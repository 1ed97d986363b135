"""SigLIP 2 NaFlex as a :class:`fgclip_rt.export.families.base.ReferenceModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fgclip_rt.manifest import NaflexSpec, Score, TextSpec, WalkTypeSpec

from ...checkpoints.files import TOKENIZER, Checkpoint
from ...checkpoints.stand_ins import byte_tokenizer, random_module
from ...checkpoints.tensors import load_module
from ...checkpoints.tokenizers import makes_mask, padding_token, read_tokenizer
from ...graphs.text import TextGraph, text_source
from ...graphs.trace import GraphSource
from ...reference.blocks import WalkType
from ..base import ReferenceModel
from . import reference
from .config import Config, PreprocessorConfig
from .graphs import PoolingHead, TextTower, VisionGraph, VisionTower, vision_source
from .one_grid import OneGrid

#: The largest patch count in the released models' examples (dense maps of FG-CLIP 2).
MAX_NUM_PATCHES = 16_384

#: Logit scale and bias of models with random weights, near those of the released models.
RANDOM_SCALARS = {"logit_scale": 4.7, "logit_bias": -12.0}


class Siglip2Model(ReferenceModel):
    """A loaded SigLIP 2: whole images and short texts."""

    module: reference.Siglip2

    def __init__(
        self,
        model: reference.Siglip2,
        preprocessor: PreprocessorConfig,
        tokenizer_json: str,
        pad_token_id: int,
        masked: bool,
    ) -> None:
        self.module = model.eval().requires_grad_(False)
        self._normalisation = preprocessor.image_mean, preprocessor.image_std
        self._max_num_patches = preprocessor.max_num_patches
        self._pad_token_id = pad_token_id
        self._masked = masked
        self.tokenizer_json = tokenizer_json

    @property
    def embedding_size(self) -> int:
        return self.module.config.vision_config.hidden_size

    @property
    def image_spec(self) -> NaflexSpec:
        # transformers turns the files that its processor opens, by ``load_image``, and no Pillow image.
        return image_spec(self.module.config, (self._max_num_patches,), exif_transpose=True)

    @property
    def text_spec(self) -> TextSpec:
        lengths = {"short": self.module.config.text_config.max_position_embeddings}
        return text_spec(lengths, self._pad_token_id, self._masked)

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
        mask = attention_mask if self._masked else None
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
        return text_source(graph, length, self.embedding_size, masked=self._masked)


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


def text_spec(lengths: Mapping[str, int], pad_token_id: int, masked: bool) -> TextSpec:
    """Tokenisation of texts: padded to a length by walk type, with an attention mask or without."""
    return TextSpec(
        tokenizer=TOKENIZER,
        lowercase=True,
        pad_token_id=pad_token_id,
        attention_mask=masked,
        walk_types={
            name: WalkTypeSpec(index=index, length=length) for index, (name, length) in enumerate(lengths.items())
        },
    )


def load(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Siglip2Model:
    """Load a checkpoint; arguments and errors are those of :class:`fgclip_rt.export.families.table.Family`."""
    sizes = Config.from_json(config)
    parts = load_parts(checkpoint, sizes)
    return Siglip2Model(load_module(lambda: reference.Siglip2(sizes), checkpoint), *parts)


def random(config: Mapping[str, Any], seed: int) -> Siglip2Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    sizes = Config.from_json(config)
    return Siglip2Model(random_module(lambda: reference.Siglip2(sizes), seed, **RANDOM_SCALARS), *random_parts())


def load_parts(checkpoint: Checkpoint, config: Config) -> tuple[PreprocessorConfig, str, int, bool]:
    """The arguments of a :class:`Siglip2Model` after its weights, from a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for a preparation that a bundle cannot express.
    """
    preprocessor = PreprocessorConfig.from_json(checkpoint.json("preprocessor_config.json"), config.vision_config)
    tokenizer_json, tokenizer = read_tokenizer(checkpoint)
    pad_token_id = padding_token(checkpoint, tokenizer, config.text_config.vocab_size)
    return preprocessor, tokenizer_json, pad_token_id, makes_mask(checkpoint)


def random_parts() -> tuple[PreprocessorConfig, str, int, bool]:
    """The same arguments for random weights."""
    return PreprocessorConfig(), byte_tokenizer(), 0, False
