"""FG-CLIP 2 as a :class:`fgclip_rt.export.families.base.ReferenceModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgclip_rt import manifest
from fgclip_rt.interface import DENSE_FEATURES

from ...checkpoints.files import Checkpoint
from ...checkpoints.stand_ins import random_module
from ...checkpoints.tensors import load_module
from ...graphs.regions import region_source
from ...graphs.trace import GraphSource
from ..siglip2 import model as siglip2
from ..siglip2.graphs import VisionGraph, vision_source
from . import reference
from .config import Config
from .graphs import DenseGraph, DenseHead

#: FG-CLIP 2's choice of patch counts (``determine_max_value`` in its README).
_BUCKETS = (128, 256, 576, 784, 1024)


class Fgclip2Model(siglip2.Siglip2Model):
    """A loaded FG-CLIP 2."""

    module: reference.Fgclip2
    box_shares = "float64"

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
        dense_outputs = {DENSE_FEATURES: (manifest.Axis.BATCH, manifest.Axis.PATCHES, width)}
        return {
            "vision": vision_source(VisionGraph(tower, pooling), model.vision_model),
            "dense": vision_source(dense, model.vision_model, dense_outputs),
            "text": self._text_source(),
            "region": region_source(width),
        }


def image_spec(config: Config) -> manifest.NaflexSpec:
    """Preparation of images for a model of these sizes."""
    # The README of the released code opens images by Pillow alone, which turns none but TIFF files.
    return siglip2.image_spec(config, _BUCKETS, exif_transpose=False)


def text_spec(config: Config, pad_token_id: int, masked: bool) -> manifest.TextSpec:
    """Tokenisation of texts for a model of these sizes, with an attention mask or without."""
    short, long = config.text_config.max_position_embeddings, config.text_config.longtext_len
    lengths: dict[str, int] = {name: long if name == "long" else short for name in reference.Fgclip2.walk_types}
    return siglip2.text_spec(lengths, pad_token_id, masked)


def load(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Fgclip2Model:
    """Load a checkpoint; arguments and errors are those of :class:`fgclip_rt.export.families.table.Family`."""
    sizes = Config.from_json(config)
    parts = siglip2.load_parts(checkpoint, sizes)
    return Fgclip2Model(load_module(lambda: reference.Fgclip2(sizes), checkpoint), *parts)


def random(config: Mapping[str, Any], seed: int) -> Fgclip2Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    sizes = Config.from_json(config)
    module = random_module(lambda: reference.Fgclip2(sizes), seed, **siglip2.RANDOM_SCALARS)
    return Fgclip2Model(module, *siglip2.random_parts())
