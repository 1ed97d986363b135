"""Chroma's embedding function, which a collection remembers."""

from __future__ import annotations

from typing import Any

import numpy as np
from chromadb.api.types import Embeddable, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function
from PIL import Image

from .inputs import check_origin, embed_mixed, open_model


@register_embedding_function
class ChromaFunction(EmbeddingFunction[Embeddable]):
    """Vectors of documents, which are strings, and images, which are arrays, in the same collection.

    A collection keeps the arguments and the fingerprint of its space, and is refused with a bundle of another space.
    Import this class before such a collection is opened.
    """

    def __init__(
        self,
        bundle: str,
        device: str = "auto",
        precision: str | None = None,
        walk_type: str = "short",
        max_num_patches: int | None = None,
        manifest_sha256: str | None = None,
        space_sha256: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            bundle: path of the bundle, or ``fg-clip2-pocket``.
            device: as for :func:`fgclip_rt.load`.
            precision: likewise.
            walk_type: kind of the texts, as for :meth:`fgclip_rt.Model.embed_texts`.
            max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.
            manifest_sha256: digest of the bundle that a collection's vectors were made with; None if there are none.
            space_sha256: fingerprint of their space, as ``model.space_sha256``; likewise.

        Raises:
            BundleError: the bundle's vectors are of another space than those of the collection.
            FgclipError: as for :func:`fgclip_rt.load`.
        """
        self._model = open_model(bundle, device, precision)
        check_origin(self._model, manifest_sha256, space_sha256, "the collection")
        self._arguments: dict[str, Any] = {
            "bundle": bundle,
            "device": device,
            "precision": precision,
            "walk_type": walk_type,
            "max_num_patches": max_num_patches,
        }

    def __call__(self, input: Embeddable) -> Embeddings:  # noqa: A002 (Chroma checks the name)
        """Vectors of documents and images in their order."""
        inputs = [_picture(each) if isinstance(each, np.ndarray) else each for each in input]
        return list(embed_mixed(self._model, inputs, self._arguments["walk_type"], self._arguments["max_num_patches"]))

    @staticmethod
    def name() -> str:
        """The name that a collection remembers."""
        return "fgclip"

    def default_space(self) -> Space:
        """Vectors have length one and are compared by their cosine."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """The arguments, the digest of the bundle, and the fingerprint of the space."""
        return {
            **self._arguments,
            "manifest_sha256": self._model.bundle.manifest_sha256,
            "space_sha256": self._model.space_sha256,
        }

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> ChromaFunction:
        """The function of a collection."""
        return ChromaFunction(**config)


def _picture(array: Any) -> Any:
    """Chroma's loader gives greyscale and transparent images as they are, and not as [H, W, 3]."""
    return Image.fromarray(array) if array.dtype == np.uint8 and array.ndim in (2, 3) else array
