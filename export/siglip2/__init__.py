"""SigLIP 2 NaFlex: what the export pipeline asks of it (:class:`fgclip_rt.export.families.ReferenceModel`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fgclip_rt.manifest import NaflexSpec, Score, TextSpec, WalkTypeSpec
from fgclip_rt.preparation import Patches

from ..checkpoint import TOKENIZER, Checkpoint, load_weights
from ..families import FloatArray, ImageFeatures, ReferenceModel
from ..onnx_writer import GraphSource
from ..random_weights import initialise
from ..reference_blocks import WalkType
from ..text import TextGraph, text_source
from ..tokenizer_files import byte_tokenizer, makes_mask, padding_token, read_tokenizer
from . import reference
from .config import Config, PreprocessorConfig
from .graphs import PoolingHead, TextTower, VisionGraph, VisionTower, vision_source

#: The largest count that the released models are shown with (dense maps of FG-CLIP 2).
MAX_NUM_PATCHES = 16_384


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
        return image_spec(self.module.config, (self._max_num_patches,))

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

    @torch.inference_mode()
    def image(self, patches: Patches, boxes: FloatArray, masks: FloatArray) -> ImageFeatures:  # noqa: ARG002
        return ImageFeatures(self.module.get_image_features(*self.inputs_of(patches))[0].numpy())

    def image_inputs(self, pixels: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        # Rescaled and normalised as the released processor does, before the projection.
        mean, std = (pixels.new_tensor(values, dtype=torch.float32) for values in self._normalisation)
        channels = pixels.unflatten(-1, (-1, len(mean))).to(torch.float32)
        pixel_values = ((channels / 255 - mean) / std).flatten(2)
        mask = torch.arange(pixels.shape[1], device=pixels.device) < spatial_shapes.prod(1, keepdim=True)
        # The reference reads the grids as numbers; from a GPU it would wait for each.
        return pixel_values, mask.float(), spatial_shapes.cpu()

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:
        mask = attention_mask if self._masked else None
        return self.module.get_text_features(input_ids, cast(WalkType, walk_type), mask)

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


def image_spec(config: Config, buckets: tuple[int, ...]) -> NaflexSpec:
    """How images become patches for a model of these sizes."""
    vision = config.vision_config
    return NaflexSpec(
        patch_size=vision.patch_size,
        channels=vision.num_channels,
        resample="bilinear",
        buckets=buckets,
        max_num_patches=MAX_NUM_PATCHES,
    )


def text_spec(lengths: Mapping[str, int], pad_token_id: int, masked: bool) -> TextSpec:
    """How texts become tokens: padded to a length by walk type, with an attention mask or without."""
    return TextSpec(
        tokenizer=TOKENIZER,
        lowercase=True,
        pad_token_id=pad_token_id,
        attention_mask=masked,
        walk_types={
            name: WalkTypeSpec(index=index, length=length) for index, (name, length) in enumerate(lengths.items())
        },
    )


def load(checkpoint: Checkpoint) -> Siglip2Model:
    """Load a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, tensors do not fit the configuration, or the preprocessing is
            not one that the bundle can express.
    """
    config = Config.from_json(checkpoint.json("config.json"))
    with torch.device("meta"):
        model = reference.Siglip2(config)
    return Siglip2Model(model, *load_parts(checkpoint, model))


def random(config: Mapping[str, Any], seed: int) -> Siglip2Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    with torch.device("meta"):
        model = reference.Siglip2(Config.from_json(config))
    return Siglip2Model(model, *random_parts(model, seed))


def load_parts(checkpoint: Checkpoint, model: reference.Siglip2) -> tuple[PreprocessorConfig, str, int, bool]:
    """Fill ``model``, built on the meta device, and read the rest of what a :class:`Siglip2Model` is made of.

    Raises:
        CheckpointError: as for :func:`load`.
    """
    config = model.config
    preprocessor = PreprocessorConfig.from_json(checkpoint.json("preprocessor_config.json"), config.vision_config)
    tokenizer_json, tokenizer = read_tokenizer(checkpoint)
    pad_token_id = padding_token(checkpoint, tokenizer, config.text_config.vocab_size)
    masked = makes_mask(checkpoint)
    load_weights(model, checkpoint)
    return preprocessor, tokenizer_json, pad_token_id, masked


@torch.no_grad()
def random_parts(model: reference.Siglip2, seed: int) -> tuple[PreprocessorConfig, str, int, bool]:
    """Fill ``model``, built on the meta device, with random weights, and make up the rest."""
    model.to_empty(device="cpu")
    initialise(model, seed)
    model.logit_scale.fill_(4.7)
    model.logit_bias.fill_(-12.0)
    return PreprocessorConfig(), byte_tokenizer(), 0, False
