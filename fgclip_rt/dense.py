"""An image whose tower runs once for all of its boxes, masks and maps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from . import forks
from .arrays import FloatArray
from .boxes import BoxFormat, grid_boxes
from .graphs import Graphs, ImageInputs, MaskInputs, RegionInputs
from .manifest import BoxShares
from .masks import mask_weights
from .preparation import Patches
from .scores import l2_normalize, similarity_maps


class DenseImage:
    """The dense features of one image; :meth:`fgclip_rt.Model.dense` makes it. Safe to use from several threads.

    The tower runs when its features are first needed, so that bad boxes and masks are refused before it runs.

    Attributes:
        patches: the prepared image.
    """

    def __init__(
        self,
        graphs: Graphs,
        patches: Patches,
        embed_texts: Callable[[Iterable[str], str], FloatArray],
        box_shares: BoxShares | None,
        features: FloatArray | None = None,
    ) -> None:
        """Join a prepared image and the graphs of its model.

        Args:
            graphs: the graphs of a model that has dense features.
            patches: the prepared image.
            embed_texts: turns texts of a walk type into vectors of length one, float32 [m, D].
            box_shares: the manifest's; None if the model has no regions.
            features: the reference's dense features, float32 [h·w, D], if the tower has run already.
        """
        self.patches = patches
        self._graphs = graphs
        self._embed_texts = embed_texts
        self._box_shares = box_shares
        self._dense = None if features is None else features[None]
        self._renew_lock()
        forks.call_in_children(self._renew_lock)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: the graphs of its model belong to one process.

        Raises:
            TypeError: always.
        """
        raise TypeError("a DenseImage cannot be pickled; pickle the model, or the vectors that the image gives.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.patches.grid

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the original image in pixels."""
        return self.patches.image_size

    def features(self, normalize: bool = True) -> FloatArray:
        """One vector per patch, comparable with texts of walk type ``box``.

        Args:
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [h, w, D].
        """
        features = self._run_tower()[0].reshape(*self.grid, -1)
        return l2_normalize(features) if normalize else features.copy()

    def regions(self, boxes: ArrayLike, normalize: bool = True, *, box_format: BoxFormat = "xyxy") -> FloatArray:
        """One vector per box, comparable with texts of walk type ``box``.

        Args:
            boxes: [r, 4], each as ``box_format`` says. A box may reach over the border of the image.
            normalize: as for :meth:`features`.
            box_format: ``xyxy`` for x1, y1, x2, y2 in pixels of the original image; ``xywh`` for x, y, width, height in
                pixels; ``normalized`` for x1, y1, x2, y2 in shares of the image, 0 to 1.

        Returns:
            float32 [r, D].

        Warns:
            BoxUnitsWarning: the boxes are probably in units of the grid of patches.

        Raises:
            BoxError: a box is empty, reversed, outside the image, not finite or in other units.
            ArgumentError: the model has no features of regions, or there is no such format.
        """
        self._graphs.check_has("region")
        assert self._box_shares is not None
        on_grid = grid_boxes(boxes, self.image_size, self.grid, box_format, self._box_shares)
        if not len(on_grid):
            return self._no_vectors()
        inputs = RegionInputs.of(self._run_tower(), self.patches, on_grid)
        return self._graphs.region(inputs, normalize=normalize).result()

    def masks(self, masks: ArrayLike, normalize: bool = True) -> FloatArray:
        """One vector per mask, comparable with texts of walk type ``box``: the mean of the features, weighted by it.

        A mask of the image's size weights each patch by the share that the mask covers. A mask of the grid's size is
        used unchanged.

        Args:
            masks: [m, H, W], bool or numbers from 0 to 1, of the image's size; or [m, h, w], of its grid's.
            normalize: as for :meth:`features`.

        Returns:
            float32 [m, D].

        Raises:
            MaskError: a mask has another size, holds other numbers or is zero everywhere.
            ArgumentError: the model has no features of masks.
        """
        self._graphs.check_has("mask")
        weights = mask_weights(masks, self.image_size, self.grid)
        if not len(weights):
            return self._no_vectors()
        return self._graphs.mask(MaskInputs.of(self._run_tower(), weights), normalize=normalize).result()

    def map(self, texts: str | Iterable[str], walk_type: str = "box") -> FloatArray:
        """The cosine of each text with each patch.

        Args:
            texts: as for :meth:`fgclip_rt.Model.embed_texts`.
            walk_type: likewise.

        Returns:
            float32 [m, h, w].
        """
        embeds = self._embed_texts([texts] if isinstance(texts, str) else texts, walk_type)
        return similarity_maps(self.features(), embeds)

    def _run_tower(self) -> FloatArray:
        """The reference's dense features, float32 [1, N, D]; the first call runs the tower."""
        with self._lock:
            if self._dense is None:
                self._dense = self._graphs.dense(ImageInputs.of([self.patches])).result()
            return self._dense

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def _no_vectors(self) -> FloatArray:
        return np.zeros((0, self._graphs.dim), np.float32)
