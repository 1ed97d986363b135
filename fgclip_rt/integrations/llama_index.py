"""LlamaIndex's embedding of texts and images."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.embeddings import MultiModalEmbedding

from fgclip_rt.model import Model

from .inputs import ModelSource, open_model


class LlamaIndexEmbedding(MultiModalEmbedding):
    """Texts and images, as LlamaIndex's multi-modal indices ask for them."""

    walk_type: str = Field(default="short", description="Kind of the texts: short, box or long.")

    _model: Model = PrivateAttr()

    def __init__(
        self, model: ModelSource, *, device: str = "auto", precision: str | None = None, **fields: Any
    ) -> None:
        """Use a model.

        Args:
            model: a loaded model, or the path of its bundle.
            device: of a model that is loaded.
            precision: likewise.
            fields: ``walk_type`` as for :meth:`fgclip_rt.Model.embed_texts`, and LlamaIndex's own.

        Raises:
            FgclipError: as for :func:`fgclip_rt.load`.
        """
        opened = open_model(model, device, precision)
        # The model forms its batches itself, so that LlamaIndex's usual ten would only be in its way.
        super().__init__(**{"model_name": opened.manifest.model.name, "embed_batch_size": 256, **fields})
        self._model = opened

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's events."""
        return "fgclip_embedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._model.embed_texts(texts, self.walk_type).tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    def _get_image_embeddings(self, img_file_paths: list[str | BytesIO]) -> list[list[float]]:
        vectors: list[list[float]] = self._model.embed_images(img_file_paths).tolist()
        return vectors

    def _get_image_embedding(self, img_file_path: str | BytesIO) -> list[float]:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, query)

    async def _aget_image_embeddings(self, img_file_paths: list[str | BytesIO]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)

    async def _aget_image_embedding(self, img_file_path: str | BytesIO) -> list[float]:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)
