"""FG-CLIP 2 as a :class:`fgclip_rt.export.families.base.ReferenceModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgclip_rt import manifest
from fgclip_rt.interface import DENSE_FEATURES

from ...checkpoints.files import Checkpoint
from ...checkpoints.stand_ins import byte_tokenizer, random_module
from ...checkpoints.tensors import load_module
from ...checkpoints.tokenizers import TextSettings
from ...graphs.regions import region_source
from ...graphs.trace import GraphSource
from ..siglip2 import model as siglip2
from ..siglip2.graphs import VisionGraph, vision_source
from . import reference
from .config import Config, PreprocessorConfig
from .graphs import DenseGraph, DenseHead


class Fgclip2Model(siglip2.Siglip2Model):
    """A loaded FG-CLIP 2."""

    module: reference.Fgclip2
    box_shares = "float64"
    # The README of the released code opens images by Pillow alone, which turns none but TIFF files.
    exif_transpose = False

    @property
    def text_spec(self) -> manifest.TextSpec:
        # FG-CLIP 2's examples lower-case a text before the tokenizer is called.
        texts = self._texts
        return siglip2.text_spec(lengths(self.module.config), texts.pad_token_id, texts.masked, lowercase=True)

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


def lengths(config: Config) -> dict[str, int]:
    """Number of tokens by walk type of a model of these sizes."""
    short, long = config.text_config.max_position_embeddings, config.text_config.longtext_len
    return {name: long if name == "long" else short for name in reference.Fgclip2.walk_types}


def load(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Fgclip2Model:
    """Load a checkpoint; arguments and errors are those of :class:`fgclip_rt.export.families.table.Family`."""
    sizes = Config.from_json(config)
    preprocessor = siglip2.read_preprocessor(checkpoint, sizes, PreprocessorConfig)
    texts = siglip2.read_texts(checkpoint, sizes, lengths(sizes), lowercase=False)
    return Fgclip2Model(load_module(lambda: reference.Fgclip2(sizes), checkpoint, sizes.blocks), preprocessor, texts)


def random(config: Mapping[str, Any], seed: int) -> Fgclip2Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    sizes = Config.from_json(config)
    module = random_module(lambda: reference.Fgclip2(sizes), seed, **siglip2.RANDOM_SCALARS)
    return Fgclip2Model(module, PreprocessorConfig(), TextSettings(byte_tokenizer(), pad_token_id=0))
