"""FG-CLIP as a :class:`fgclip_rt.export.families.base.ReferenceModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from fgclip_rt.manifest import SquareSpec, TextSpec, WalkTypeSpec

from ...checkpoints.files import TOKENIZER, Checkpoint
from ...checkpoints.processors import read_image_settings
from ...checkpoints.stand_ins import clip_byte_tokenizer, random_module
from ...checkpoints.tensors import load_module
from ...checkpoints.tokenizers import CheckpointTokenizer
from ...graphs.class_token import vision_sources
from ...graphs.regions import region_source
from ...graphs.text import text_source
from ...graphs.trace import GraphSource
from ...reference.blocks import WalkType
from ..square import SquareModel
from . import reference
from .config import Config, PreprocessorConfig
from .graphs import KINDS, text_graph, vision_tower


class Fgclip1Model(SquareModel):
    """A loaded FG-CLIP."""

    module: reference.Fgclip1
    box_shares = "float64"

    def __init__(
        self, model: reference.Fgclip1, preprocessor: PreprocessorConfig, tokenizer_json: str, pad_token_id: int
    ) -> None:
        self.module = model.eval().requires_grad_(False)
        self.mean, self.std = preprocessor.image_mean, preprocessor.image_std
        self._pad_token_id = pad_token_id
        self.tokenizer_json = tokenizer_json

    @property
    def embedding_size(self) -> int:
        return self.module.config.projection_dim

    @property
    def image_spec(self) -> SquareSpec:
        # The README of the released code opens images by Pillow alone and resizes by its default filter.
        vision = self.module.config.vision_config
        return SquareSpec(
            patch_size=vision.patch_size,
            channels=vision.num_channels,
            resample="bicubic",
            image_size=vision.image_size,
            exif_transpose=False,
        )

    @property
    def text_spec(self) -> TextSpec:
        text = self.module.config.text_config
        lengths = {name: text.longtext_len if name == "long" else text.max_position_embeddings for name in KINDS}
        return TextSpec(
            tokenizer=TOKENIZER,
            lowercase=False,  # the tokenizer does it
            pad_token_id=self._pad_token_id,
            attention_mask=False,
            walk_types={name: WalkTypeSpec(index=index, length=lengths[name]) for name, index in KINDS.items()},
        )

    def graphs(self) -> dict[str, GraphSource]:
        width = self.embedding_size
        length = self.module.config.text_config.max_position_embeddings
        return {
            **vision_sources(vision_tower(self.module, self.mean, self.std), normalised=False),
            "text": text_source(text_graph(self.module), length, width),
            "region": region_source(width),
        }

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:  # noqa: ARG002
        return self.module.get_text_features(input_ids, cast(WalkType, walk_type))


def load(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Fgclip1Model:
    """Load a checkpoint; arguments and errors are those of :class:`fgclip_rt.export.families.table.Family`."""
    sizes = Config.from_json(config)
    settings = read_image_settings(checkpoint)
    preprocessor = PreprocessorConfig.from_json(settings.values, sizes.vision_config, settings.file)
    preprocessor.note(checkpoint, settings)
    text = sizes.text_config
    tokenizer = CheckpointTokenizer(checkpoint, text.vocab_size)
    pad_token_id = tokenizer.padding_token()
    tokenizer.check(text.max_position_embeddings, start=[reference.START_TOKEN], end=[reference.END_TOKEN])
    model = load_module(lambda: reference.Fgclip1(sizes), checkpoint, sizes.blocks)
    return Fgclip1Model(model, preprocessor, tokenizer.definition, pad_token_id)


def random(config: Mapping[str, Any], seed: int) -> Fgclip1Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    sizes = Config.from_json(config)
    model = random_module(lambda: reference.Fgclip1(sizes), seed, logit_scale=4.6)
    return Fgclip1Model(model, PreprocessorConfig(), clip_byte_tokenizer(), reference.END_TOKEN)
