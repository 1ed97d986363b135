"""FineCLIP as a :class:`fgclip_rt.export.families.base.ReferenceModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from torch import Tensor

from fgclip_rt.errors import CheckpointError
from fgclip_rt.manifest import SquareSpec, TextSpec, WalkTypeSpec
from fgclip_rt.tokenizer_definition import check_tokenizer, read_tokenizer

from ...checkpoints.files import TOKENIZER, Checkpoint
from ...checkpoints.stand_ins import clip_byte_tokenizer, random_module
from ...checkpoints.tensors import load_module
from ...graphs.class_token import vision_sources
from ...graphs.regions import mask_source, region_source
from ...graphs.text import text_source
from ...graphs.trace import GraphSource
from ..square import SquareModel
from . import reference
from .config import Config
from .graphs import KINDS, text_graph, vision_tower
from .tokenizer import fineclip_tokenizer


class FineClipModel(SquareModel):
    """A loaded FineCLIP."""

    module: reference.FineClip
    box_shares = "float32"
    # Values of OpenAI's CLIP, which are constants in the released code.
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, model: reference.FineClip, tokenizer_json: str) -> None:
        """Join a model and a tokenizer whose end token has the largest of all ids."""
        self.module = model.eval().requires_grad_(False)
        self.tokenizer_json = tokenizer_json
        self.end_token = tokenizers.Tokenizer.from_str(tokenizer_json).encode("").ids[-1]

    @property
    def embedding_size(self) -> int:
        return self.module.config.embed_dim

    @property
    def image_spec(self) -> SquareSpec:
        vision = self.module.config.vision_cfg
        # The released code opens images by Pillow alone, which turns none but TIFF files.
        return SquareSpec(
            patch_size=vision.patch_size,
            channels=3,
            resample="bilinear",
            image_size=vision.image_size,
            exif_transpose=False,
        )

    @property
    def text_spec(self) -> TextSpec:
        length = self.module.config.text_cfg.context_length
        return TextSpec(
            tokenizer=TOKENIZER,
            lowercase=False,  # the tokenizer does it
            pad_token_id=0,
            attention_mask=False,
            walk_types={name: WalkTypeSpec(index=index, length=length) for name, index in KINDS.items()},
        )

    def graphs(self) -> dict[str, GraphSource]:
        width = self.embedding_size
        length = self.module.config.text_cfg.context_length
        return {
            **vision_sources(vision_tower(self.module, self.mean, self.std), normalised=True),
            "text": text_source(text_graph(self.module, self.end_token), length, width),
            "region": region_source(width),
            "mask": mask_source(width),
        }

    def mask_features(self, dense: Tensor, masks: Tensor) -> Tensor:
        return reference.mask_features(dense, masks)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:  # noqa: ARG002
        features: Tensor = self.module.text(input_ids)
        return features


def load(checkpoint: Checkpoint, config: Mapping[str, Any]) -> FineClipModel:
    """Load a checkpoint; arguments and errors are those of :class:`fgclip_rt.export.families.table.Family`."""
    sizes = Config.from_json(config)
    tokenizer_json = fineclip_tokenizer(checkpoint.text(TOKENIZER))
    try:
        check_tokenizer(read_tokenizer(tokenizer_json), tokenizer_json, sizes.text_cfg.context_length)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.where(TOKENIZER)} {error}; give CLIP's own with --tokenizer.") from None
    # Unused are the rotations' sines and cosines, which follow from the sizes.
    module = load_module(lambda: reference.FineClip(sizes), checkpoint, sizes.blocks, unused=("freqs_cos", "freqs_sin"))
    model = FineClipModel(module, tokenizer_json)
    if model.end_token >= sizes.text_cfg.vocab_size:
        raise CheckpointError(
            f"{checkpoint.where(TOKENIZER)} has the token {model.end_token}, past the model's "
            f"{sizes.text_cfg.vocab_size}; give CLIP's own with --tokenizer."
        )
    return model


def random(config: Mapping[str, Any], seed: int) -> FineClipModel:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    sizes = Config.from_json(config)
    return FineClipModel(random_module(lambda: reference.FineClip(sizes), seed, logit_scale=4.6), clip_byte_tokenizer())
