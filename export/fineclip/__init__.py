"""FineCLIP: what the export pipeline asks of it (:class:`fgclip_rt.export.families.ReferenceModel`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
import torch
from torch import Tensor

from fgclip_rt.errors import CheckpointError
from fgclip_rt.manifest import SquareSpec, TextSpec, WalkTypeSpec
from fgclip_rt.preparation import Patches

from ..checkpoint import TOKENIZER, Checkpoint, load_weights
from ..class_token import vision_sources
from ..families import FloatArray, ImageFeatures
from ..onnx_writer import GraphSource
from ..random_weights import initialise
from ..regions import mask_source, region_source
from ..roi_align import region_features
from ..square import SquareModel
from ..text import text_source
from ..tokenizer_files import clip_byte_tokenizer
from . import reference
from .config import FILE, Config
from .graphs import KINDS, text_graph, vision_tower
from .tokenizer import fineclip_tokenizer


class FineClipModel(SquareModel):
    """A loaded FineCLIP."""

    module: reference.FineClip
    # OpenAI's CLIP's, which the released code has as constants.
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
        return SquareSpec(patch_size=vision.patch_size, channels=3, resample="bilinear", image_size=vision.image_size)

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

    @torch.inference_mode()
    def image(self, patches: Patches, boxes: FloatArray, masks: FloatArray) -> ImageFeatures:
        inputs = self.inputs_of(patches)
        dense = self.module.get_image_dense_features(*inputs)[0]
        regions = region_features(dense.view(*patches.grid, -1), torch.from_numpy(boxes), patches.image_size)
        masked = reference.mask_features(dense, torch.from_numpy(masks).flatten(1))
        features = self.module.get_image_features(*inputs)[0]
        return ImageFeatures(features.numpy(), dense.numpy(), regions.numpy(), masked.numpy())

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:  # noqa: ARG002
        features: Tensor = self.module.text(input_ids)
        return features


def load(checkpoint: Checkpoint) -> FineClipModel:
    """Load a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors do not fit the configuration.
    """
    config = Config.from_json(checkpoint.json(FILE))
    tokenizer_json = fineclip_tokenizer(checkpoint.text(TOKENIZER))
    with torch.device("meta"):
        model = reference.FineClip(config)
    # The rotations' sines and cosines, which follow from the sizes.
    load_weights(model, checkpoint, unused=("freqs_cos", "freqs_sin"))
    loaded = FineClipModel(model, tokenizer_json)
    if loaded.end_token >= config.text_cfg.vocab_size:
        raise CheckpointError(
            f"{checkpoint.where(TOKENIZER)} has the token {loaded.end_token}, past the model's "
            f"{config.text_cfg.vocab_size}; give CLIP's own with --tokenizer."
        )
    return loaded


@torch.no_grad()
def random(config: Mapping[str, Any], seed: int) -> FineClipModel:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    with torch.device("meta"):
        model = reference.FineClip(Config.from_json(config))
    model.to_empty(device="cpu")
    initialise(model, seed)
    model.logit_scale.fill_(4.6)
    return FineClipModel(model, clip_byte_tokenizer())
