"""FG-CLIP 2: what the export pipeline asks of it (:class:`fgclip_rt.export.families.ReferenceModel`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgclip_rt.errors import CheckpointError
from fgclip_rt.images import Patches
from fgclip_rt.manifest import ImageSpec, Score, TextSpec, WalkTypeSpec
from fgclip_rt.text import Tokens

from ..checkpoint import Checkpoint, load_weights
from ..onnx_writer import GraphSource
from . import graphs, reference
from .config import Config, PreprocessorConfig
from .random_weights import byte_tokenizer, initialise

FloatArray = NDArray[np.float32]

#: FG-CLIP 2's choice of patch counts (``determine_max_value`` in its README).
_BUCKETS = (128, 256, 576, 784, 1024)
#: The largest count that the released model is shown with (dense maps).
_MAX_NUM_PATCHES = 16_384


class Fgclip2Model:
    """A loaded FG-CLIP 2."""

    def __init__(
        self,
        model: reference.Fgclip2,
        preprocessor: PreprocessorConfig,
        tokenizer_json: str,
        pad_token_id: int,
        masked: bool,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._mean, self._std = preprocessor.image_mean, preprocessor.image_std
        self._pad_token_id = pad_token_id
        self._masked = masked
        self.tokenizer_json = tokenizer_json

    @property
    def embedding_size(self) -> int:
        return self._model.config.vision_config.hidden_size

    @property
    def image_spec(self) -> ImageSpec:
        return image_spec(self._model.config)

    @property
    def text_spec(self) -> TextSpec:
        return text_spec(self._model.config, self._pad_token_id, self._masked)

    @property
    def score(self) -> Score:
        return Score(
            activation="sigmoid",
            logit_scale=self._model.logit_scale.item(),
            logit_bias=self._model.logit_bias.item(),
        )

    def graphs(self) -> dict[str, GraphSource]:
        model, width = self._model, self.embedding_size
        tower = graphs.VisionTower(model.vision_model, self._mean, self._std)
        pooling = graphs.PoolingHead(model.vision_model.head)
        dense = graphs.DenseHead(model.dense_feature_head)

        shapes = torch.tensor([[3, 4], [2, 5]], dtype=torch.int32)
        vision_inputs = {
            "patches": torch.zeros(2, 12, model.vision_model.embeddings.patch_embedding.in_features, dtype=torch.uint8),
            "spatial_shapes": shapes,
        }
        vision_axes = {"patches": {0: "batch", 1: "patches"}, "spatial_shapes": {0: "batch"}}
        image_outputs = {"image_features": ("batch", width), "image_embeds": ("batch", width)}

        text_inputs = {
            "input_ids": torch.zeros(2, model.config.text_config.max_position_embeddings, dtype=torch.int32),
            "walk_type": torch.tensor(0, dtype=torch.int32),
        }
        text_axes = {"input_ids": {0: "batch", 1: "tokens"}}
        if self._masked:
            text_inputs["attention_mask"] = torch.ones_like(text_inputs["input_ids"])
            text_axes["attention_mask"] = {0: "batch", 1: "tokens"}

        region_inputs = {
            "dense_features": torch.zeros(2, 12, width),
            "spatial_shapes": shapes,
            "image_sizes": shapes * 16,
            "boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 3),
            "box_images": torch.zeros(3, dtype=torch.int32),
        }
        region_axes = {
            "dense_features": {0: "batch", 1: "patches"},
            "spatial_shapes": {0: "batch"},
            "image_sizes": {0: "batch"},
            "boxes": {0: "boxes"},
            "box_images": {0: "boxes"},
        }
        return {
            "vision": GraphSource(
                graphs.VisionGraph(tower, pooling), vision_inputs, vision_axes, image_outputs, sensitive=("pooling",)
            ),
            "dense": GraphSource(
                graphs.DenseGraph(tower, pooling, dense),
                vision_inputs,
                vision_axes,
                {**image_outputs, "dense_features": ("batch", "patches", width)},
                sensitive=("pooling",),
            ),
            "text": GraphSource(
                graphs.TextGraph(model),
                text_inputs,
                text_axes,
                {"text_features": ("batch", width), "text_embeds": ("batch", width)},
                sensitive=("text_heads",),
            ),
            "region": GraphSource(
                graphs.RegionGraph(),
                region_inputs,
                region_axes,
                {"region_features": ("boxes", width), "region_embeds": ("boxes", width)},
            ),
        }

    @torch.inference_mode()
    def image(self, patches: Patches, boxes: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        pixel_values = self._normalised(patches.pixels)[None]
        mask = torch.ones(pixel_values.shape[:2])
        shapes = torch.tensor([patches.grid])
        features = self._model.get_image_features(pixel_values, mask, shapes)[0]
        dense = self._model.get_image_dense_features(pixel_values, mask, shapes)[0]
        on_grid = dense.view(*patches.grid, -1)
        regions = reference.region_features(on_grid, torch.from_numpy(boxes), patches.image_size)
        return features.numpy(), dense.numpy(), regions.numpy()

    @torch.inference_mode()
    def text(self, tokens: Tokens, walk_type: str) -> FloatArray:
        mask = torch.from_numpy(tokens.attention_mask) if self._masked else None
        input_ids, kind = torch.from_numpy(tokens.input_ids), cast(reference.WalkType, walk_type)
        features: FloatArray = self._model.get_text_features(input_ids, kind, mask).numpy()
        return features

    @torch.inference_mode()
    def logits(self, image_features: FloatArray, text_features: FloatArray) -> FloatArray:
        logits: FloatArray = self._model.logits_per_image(
            torch.from_numpy(image_features), torch.from_numpy(text_features)
        ).numpy()
        return logits

    def _normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Rescale and normalise as the released processor does, before the projection."""
        channels = torch.tensor(pixels).view(len(pixels), -1, len(self._mean)).to(torch.float32)
        return ((channels / 255 - torch.tensor(self._mean)) / torch.tensor(self._std)).flatten(1)


def image_spec(config: Config) -> ImageSpec:
    """How images become patches for a model of these sizes."""
    vision = config.vision_config
    return ImageSpec(
        kind="naflex",
        patch_size=vision.patch_size,
        channels=vision.num_channels,
        resample="bilinear",
        buckets=_BUCKETS,
        max_num_patches=_MAX_NUM_PATCHES,
    )


def text_spec(config: Config, pad_token_id: int, masked: bool) -> TextSpec:
    """How texts become tokens for a model of these sizes, with an attention mask or without."""
    text = config.text_config
    lengths = {"short": text.max_position_embeddings, "box": text.max_position_embeddings, "long": text.longtext_len}
    return TextSpec(
        tokenizer="tokenizer.json",
        lowercase=True,
        pad_token_id=pad_token_id,
        attention_mask=masked,
        walk_types={
            name: WalkTypeSpec(index=index, length=lengths[name]) for index, name in enumerate(graphs.WALK_TYPES)
        },
    )


def load(checkpoint: Checkpoint) -> Fgclip2Model:
    """Load a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or damaged, tensors do not fit the configuration, or the preprocessing is
            not one that the bundle can express.
    """
    config = Config.from_json(checkpoint.json("config.json"))
    preprocessor = PreprocessorConfig.from_json(checkpoint.json("preprocessor_config.json"), config.vision_config)
    tokenizer_json = checkpoint.text("tokenizer.json")
    pad_token_id, masked = _tokenizer_options(checkpoint, tokenizer_json)
    if pad_token_id >= config.text_config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path / 'tokenizer.json'} has the padding token {pad_token_id}, past the model's "
            f"{config.text_config.vocab_size} tokens; restore the tokenizer that came with the weights."
        )
    with torch.device("meta"):
        model = reference.Fgclip2(config)
    load_weights(model, checkpoint.weight_files(), checkpoint.path)
    return Fgclip2Model(model, preprocessor, tokenizer_json, pad_token_id, masked)


def random(config: Mapping[str, Any], seed: int) -> Fgclip2Model:
    """A model of these sizes with seeded random weights and a tokenizer that spells texts byte by byte."""
    with torch.device("meta"):
        model = reference.Fgclip2(Config.from_json(config))
    model.to_empty(device="cpu")
    initialise(model, seed)
    return Fgclip2Model(model, PreprocessorConfig(), byte_tokenizer(), pad_token_id=0, masked=False)


def _tokenizer_options(checkpoint: Checkpoint, tokenizer_json: str) -> tuple[int, bool]:
    """The padding token's id, and whether the tokenizer makes an attention mask for the text tower."""
    document: dict[str, Any] = checkpoint.json("tokenizer_config.json")
    pad = document.get("pad_token")
    content = pad.get("content") if isinstance(pad, dict) else pad
    try:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{checkpoint.path / 'tokenizer.json'} is not a tokenizer ({error}); restore the file."
        ) from None
    pad_token_id = tokenizer.token_to_id(content) if isinstance(content, str) else None
    if pad_token_id is None:
        raise CheckpointError(
            f"{checkpoint.path / 'tokenizer_config.json'}: pad_token {content!r} is not in tokenizer.json; "
            "restore the files that came with the weights."
        )
    # Tokenizers of this kind make a mask unless their file says otherwise; SigLIP 2's does.
    names = document.get("model_input_names", ["input_ids", "attention_mask"])
    if not isinstance(names, list):
        raise CheckpointError(
            f"{checkpoint.path / 'tokenizer_config.json'}: model_input_names is {names!r}, and must be a list; "
            "restore the file that came with the weights."
        )
    return pad_token_id, "attention_mask" in names
