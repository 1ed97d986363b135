"""LangChain's embeddings."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings

from .inputs import ModelSource, open_model


class LangChainEmbeddings(Embeddings):
    """Texts, and images by their paths, as LangChain's vector stores ask for them."""

    def __init__(self, model: ModelSource, *, walk_type: str = "short", **options: Any) -> None:
        """Use a model.

        Args:
            model: a loaded model, or the path of its bundle.
            walk_type: kind of the texts, as for :meth:`fgclip_rt.Model.embed_texts`.
            options: ``device`` and ``precision`` of a model that is loaded.

        Raises:
            FgclipError: as for :func:`fgclip_rt.load`.
        """
        self.model = open_model(model, **options)
        self.walk_type = walk_type

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector of each text, of length one."""
        vectors: list[list[float]] = self.model.embed_texts(texts, self.walk_type).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a text; queries and documents have the same."""
        return self.embed_documents([text])[0]

    def embed_image(self, uris: list[str]) -> list[list[float]]:
        """A vector of each image file, of length one. LangChain's Chroma store calls it for ``add_images``."""
        vectors: list[list[float]] = self.model.embed_images(uris).tolist()
        return vectors
