"""The interface of a model of any family to the pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgclip_rt.arrays import DoubleArray, FloatArray
from fgclip_rt.manifest import BoxShares, ImageSpec, Score, TextSpec
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Tokens

from ..graphs.trace import GraphSource
from ..reference.roi_align import grid_units, region_features


@dataclass(frozen=True)
class ImageFeatures:
    """A reference's features of one image; None for features that its model does not have.

    Attributes:
        features: features of the whole image, [D].
        dense: features of its patches, [h·w, D].
        regions: features of boxes, [r, D].
        masks: features of masks, [m, D].
    """

    features: FloatArray
    dense: FloatArray | None = None
    regions: FloatArray | None = None
    masks: FloatArray | None = None


class ReferenceModel(ABC):
    """A loaded model: its specification, its graphs, and the reference that they are measured against.

    Attributes:
        module: the reference, with ``logits_per_image``, ``get_image_features`` and, if the model has dense features,
            ``get_image_dense_features``. The latter two take the tensors of :meth:`image_inputs`.
        tokenizer_json: the tokenizer, in the format of the ``tokenizers`` library.
        box_shares: type in which the released code multiplies a box's shares of the image by the grid; None if the
            model has no regions.
    """

    module: Any
    tokenizer_json: str
    box_shares: BoxShares | None = None

    @property
    @abstractmethod
    def embedding_size(self) -> int:
        """Width of every vector."""

    @property
    @abstractmethod
    def image_spec(self) -> ImageSpec:
        """Preparation of images."""

    @property
    @abstractmethod
    def text_spec(self) -> TextSpec:
        """Tokenisation of texts."""

    @property
    @abstractmethod
    def score(self) -> Score:
        """Formula from vectors to scores."""

    @abstractmethod
    def graphs(self) -> dict[str, GraphSource]:
        """Modules to trace, by the name of the graph."""

    @abstractmethod
    def image_inputs(self, pixels: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        """The reference's inputs for patches uint8 [B, N, P·P·3] and grids integer [B, 2], on their device."""

    @abstractmethod
    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None, walk_type: str) -> Tensor:
        """The reference's features float [B, D] of tokens integer [B, L]; some models read the mask [B, L] too."""

    def one_grid(self, graph: Literal["vision", "dense"], grid: tuple[int, int]) -> nn.Module:  # noqa: ARG002
        """The reference's tower for images of one grid, without our rewrites, for a plain export.

        It takes the tensors of :meth:`image_inputs` except the grids.
        """
        return _OneGrid(self.module, graph)

    def siglip2_towers(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Arguments of transformers' ``Siglip2Config`` and ``Siglip2Model``; None if the towers are not SigLIP 2's."""
        return None

    def mask_features(self, dense: Tensor, masks: Tensor) -> Tensor | None:  # noqa: ARG002 (for models that have them)
        """The reference's features float [m, D] of masks [m, N] over dense features [N, D]; None if it has none."""
        return None

    @torch.inference_mode()
    def image(self, patches: Patches, boxes: DoubleArray, masks: FloatArray) -> ImageFeatures:
        """The reference's features of an image and of its parts.

        Args:
            patches: the prepared image.
            boxes: [r, 4], x1, y1, x2, y2 in pixels of the image.
            masks: [m, h, w], on the image's grid.
        """
        inputs = self.inputs_of(patches)
        features = self.module.get_image_features(*inputs)[0].numpy()
        if self.box_shares is None:
            return ImageFeatures(features)
        dense = self.module.get_image_dense_features(*inputs)[0]
        on_grid = grid_units(boxes, patches.image_size, patches.grid, self.box_shares)
        regions = region_features(dense.view(*patches.grid, -1), on_grid)
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
    """The reference's own method, for models that have only one grid."""

    def __init__(self, module: Any, graph: Literal["vision", "dense"]) -> None:
        super().__init__()
        self.module = module
        self.features = module.get_image_features if graph == "vision" else module.get_image_dense_features

    def forward(self, pixel_values: Tensor) -> Any:
        return self.features(pixel_values)
