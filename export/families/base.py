"""A model of any family, as the pipeline asks for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fgclip_rt.manifest import ImageSpec, Score, TextSpec
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Tokens

from ..graphs.trace import GraphSource
from ..reference.roi_align import region_features

FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class ImageFeatures:
    """What a reference makes of one image; None for what its model does not have.

    Attributes:
        features: of the whole image, [D].
        dense: of its patches, [h·w, D].
        regions: of boxes, [r, D].
        masks: of masks, [m, D].
    """

    features: FloatArray
    dense: FloatArray | None = None
    regions: FloatArray | None = None
    masks: FloatArray | None = None


class ReferenceModel(ABC):
    """A loaded model: its specification, its graphs, and the reference that they are measured against.

    Attributes:
        module: the reference, a module with ``logits_per_image``, ``get_image_features``, which takes what
            :meth:`image_inputs` makes, and, if the model has dense features, ``get_image_dense_features`` of the same.
        tokenizer_json: the tokenizer, in the format of the ``tokenizers`` library.
    """

    module: Any
    tokenizer_json: str

    @property
    @abstractmethod
    def embedding_size(self) -> int:
        """Width of every vector."""

    @property
    @abstractmethod
    def image_spec(self) -> ImageSpec:
        """How images are prepared."""

    @property
    @abstractmethod
    def text_spec(self) -> TextSpec:
        """How texts are tokenised."""

    @property
    @abstractmethod
    def score(self) -> Score:
        """How vectors become scores."""

    @abstractmethod
    def graphs(self) -> dict[str, GraphSource]:
        """Modules to trace, by the name of the graph."""

    @abstractmethod
    def image_inputs(self, pixels: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        """What the reference takes for patches uint8 [B, N, P·P·3] and grids integer [B, 2], on their device."""

    @abstractmethod
    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:
        """The reference's features float [B, D] of tokens integer [B, L]; some models read the mask [B, L] too."""

    def one_grid(self, graph: Literal["vision", "dense"], grid: tuple[int, int]) -> nn.Module:  # noqa: ARG002
        """The reference's tower with rows and columns of all images fixed, none of our rewrites, to export as it is.

        It takes of :meth:`image_inputs` all but the grids.
        """
        return _OneGrid(self.module, graph)

    def siglip2_towers(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Sizes and weights for transformers' ``Siglip2Config`` and ``Siglip2Model``; None for other towers."""
        return None

    def mask_features(self, dense: Tensor, masks: Tensor) -> Tensor | None:  # noqa: ARG002 (for models that have them)
        """The reference's features float [m, D] of masks [m, N] over dense features [N, D]; None if it has none."""
        return None

    @torch.inference_mode()
    def image(self, patches: Patches, boxes: FloatArray, masks: FloatArray) -> ImageFeatures:
        """The reference's features of an image and of its parts.

        Args:
            patches: the prepared image.
            boxes: [r, 4], xyxy in pixels of the image.
            masks: [m, h, w], on the image's grid.
        """
        inputs = self.inputs_of(patches)
        features = self.module.get_image_features(*inputs)[0].numpy()
        if not hasattr(self.module, "get_image_dense_features"):
            return ImageFeatures(features)
        dense = self.module.get_image_dense_features(*inputs)[0]
        regions = region_features(dense.view(*patches.grid, -1), torch.from_numpy(boxes), patches.image_size)
        masked = self.mask_features(dense, torch.from_numpy(masks).flatten(1))
        return ImageFeatures(features, dense.numpy(), regions.numpy(), None if masked is None else masked.numpy())

    @torch.inference_mode()
    def text(self, tokens: Tokens, walk_type: str) -> FloatArray:
        """The reference's text features [m, D]."""
        input_ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
        features: FloatArray = self.text_features(input_ids, mask, walk_type).numpy()
        return features

    @torch.inference_mode()
    def logits(self, image_features: FloatArray, text_features: FloatArray) -> FloatArray:
        """The reference's logits [n, m]."""
        logits: FloatArray = self.module.logits_per_image(
            torch.from_numpy(image_features), torch.from_numpy(text_features)
        ).numpy()
        return logits

    def inputs_of(self, patches: Patches) -> tuple[Tensor, ...]:
        """:meth:`image_inputs` of one image."""
        return self.image_inputs(torch.tensor(patches.pixels)[None], torch.tensor([patches.grid]))


class _OneGrid(nn.Module):
    """The method of a model whose images all have one grid."""

    def __init__(self, module: Any, graph: Literal["vision", "dense"]) -> None:
        super().__init__()
        self.module = module
        self.features = module.get_image_features if graph == "vision" else module.get_image_dense_features

    def forward(self, pixel_values: Tensor) -> Any:
        return self.features(pixel_values)
