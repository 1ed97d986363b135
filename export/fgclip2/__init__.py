"""FG-CLIP 2: what the export pipeline asks of it (:class:`fgclip_rt.export.families.ReferenceModel`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fgclip_rt import manifest
from fgclip_rt.preparation import Patches

from .. import siglip2
from ..checkpoint import Checkpoint
from ..families import FloatArray, ImageFeatures
from ..onnx_writer import GraphSource
from ..regions import region_source
from ..roi_align import region_features
from ..siglip2.graphs import VisionGraph, vision_source
from . import reference
from .config import Config
from .graphs import DenseGraph, DenseHead

#: FG-CLIP 2's choice of patch counts (``determine_max_value`` in its README).
_BUCKETS = (128, 256, 576, 784, 1024)


class Fgclip2Model(siglip2.Siglip2Model):
    """A loaded FG-CLIP 2."""

    module: reference.Fgclip2

    @property
    def image_spec(self) -> manifest.NaflexSpec:
        return image_spec(self.module.config)

    @property
    def text_spec(self) -> manifest.TextSpec:
        return text_spec(self.module.config, self._pad_token_id, self._masked)

    def graphs(self) -> dict[str, GraphSource]:
        model, width = self.module, self.embedding_size
        tower, pooling = self._vision_parts()
        dense = DenseGraph(tower, pooling, DenseHead(model.dense_feature_head))
        dense_outputs = {"dense_features": ("batch", "patches", width)}
        return {
            "vision": vision_source(VisionGraph(tower, pooling), model.vision_model),
            "dense": vision_source(dense, model.vision_model, dense_outputs),
            "text": self._text_source(),
            "region": region_source(width),
        }

    @torch.inference_mode()
    def image(self, patches: Patches, boxes: FloatArray, masks: FloatArray) -> ImageFeatures:  # noqa: ARG002
        inputs = self.inputs_of(patches)
        dense = self.module.get_image_dense_features(*inputs)[0]
        regions = region_features(dense.view(*patches.grid, -1), torch.from_numpy(boxes), patches.image_size)
        features = self.module.get_image_features(*inputs)[0]
        return ImageFeatures(features.numpy(), dense=dense.numpy(), regions=regions.numpy())


def image_spec(config: Config) -> manifest.NaflexSpec:
    """How images become patches for a model of these sizes."""
    return siglip2.image_spec(config, _BUCKETS)


def text_spec(config: Config, pad_token_id: int, masked: bool) -> manifest.TextSpec:
    """How texts become tokens for a model of these sizes, with an attention mask or without."""
    short, long = config.text_config.max_position_embeddings, config.text_config.longtext_len
    lengths: dict[str, int] = {name: long if name == "long" else short for name in reference.Fgclip2.walk_types}
    return siglip2.text_spec(lengths, pad_token_id, masked)


def load(checkpoint: Checkpoint) -> Fgclip2Model:
    """Load a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, tensors do not fit the configuration, or the preprocessing is
            not one that the bundle can express.
    """
    config = Config.from_json(checkpoint.json("config.json"))
    with torch.device("meta"):
        model = reference.Fgclip2(config)
    return Fgclip2Model(model, *siglip2.load_parts(checkpoint, model))


def random(config: Mapping[str, Any], seed: int) -> Fgclip2Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    with torch.device("meta"):
        model = reference.Fgclip2(Config.from_json(config))
    return Fgclip2Model(model, *siglip2.random_parts(model, seed))
