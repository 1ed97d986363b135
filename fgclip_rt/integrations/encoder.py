"""``encode`` and ``similarity``, as sentence-transformers names them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from fgclip_rt.arrays import FloatArray
from fgclip_rt.errors import ArgumentError
from fgclip_rt.model import Model
from fgclip_rt.scores import cosines

from .inputs import ModelSource, embed_mixed, open_model

#: Arguments of sentence-transformers that only their neutral values are taken of, with the remedy for the others.
_NEUTRAL: dict[str, tuple[Any, str]] = {
    "prompt": (None, "write it into the texts, as the model knows no prompts"),
    "prompt_name": (None, "leave it out, as the model knows no prompts"),
    "output_value": ("sentence_embedding", "leave it out"),
    "precision": ("float32", "leave it out and quantize the vectors afterwards"),
    "convert_to_tensor": (False, "leave it out and pass the result to torch.from_numpy"),
    "device": (None, "give it when the model is loaded"),
    "truncate_dim": (None, "leave it out, as the first numbers of a vector mean nothing by themselves"),
    "pool": (None, "leave it out"),
    "chunk_size": (None, "leave it out"),
}


class Encoder:
    """A model for code that expects a ``SentenceTransformer``.

    It is none: it needs neither torch nor sentence-transformers. Arguments that it could not honour are refused.

    Attributes:
        model: the model.
        walk_type: kind of the texts, as for :meth:`fgclip_rt.Model.embed_texts`.
        similarity_fn_name: ``cosine``.
    """

    similarity_fn_name = "cosine"

    def __init__(self, model: ModelSource, *, walk_type: str = "short", **options: Any) -> None:
        """Use a model.

        Args:
            model: a loaded model, or the path of its bundle.
            walk_type: kind of the texts.
            options: ``device`` and ``precision`` of a model that is loaded.

        Raises:
            FgclipError: as for :func:`fgclip_rt.load`.
        """
        self.model: Model = open_model(model, **options)
        self.walk_type = walk_type

    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        normalize_embeddings: bool = False,
        convert_to_numpy: bool = True,
        show_progress_bar: bool | None = None,  # noqa: ARG002 (there is none)
        **others: Any,
    ) -> FloatArray | list[FloatArray]:
        """Vectors of texts and images.

        Args:
            inputs: one input or several. A string is a text, never a path. Everything else is an image: a Pillow image,
                bytes, an array uint8 [H, W, 3], a ``pathlib.Path``; or a mapping with ``text`` or ``image``.
            batch_size: images that run together; None chooses. Texts always run as the model chooses.
            normalize_embeddings: to length one; the default is the reference's own features, as with
                sentence-transformers.
            convert_to_numpy: one array; False gives a list of them.
            show_progress_bar: accepted and without effect.
            others: refused, unless they are at their neutral values.

        Returns:
            float32 [n, D], or [D] of a single input; or a list of arrays [D].

        Raises:
            ArgumentError: an argument cannot be honoured.
            FgclipError: an input cannot be embedded.
        """
        for name, value in others.items():
            if name not in _NEUTRAL:
                raise ArgumentError(f"encode takes no argument {name!r}; leave it out.")
            neutral, remedy = _NEUTRAL[name]
            if value != neutral:
                raise ArgumentError(f"{name} is {value!r}, which is not supported; {remedy}.")
        single = _is_single(inputs)
        given = [_only_value(each) for each in ([inputs] if single else list(inputs))]
        vectors = embed_mixed(self.model, given, self.walk_type, batch_size=batch_size, normalize=normalize_embeddings)
        if single:
            first: FloatArray = vectors[0]
            return first
        return vectors if convert_to_numpy else list(vectors)

    def encode_query(self, inputs: Any, **options: Any) -> FloatArray | list[FloatArray]:
        """As :meth:`encode`: queries and documents have the same vectors."""
        return self.encode(inputs, **options)

    def encode_document(self, inputs: Any, **options: Any) -> FloatArray | list[FloatArray]:
        """As :meth:`encode`: queries and documents have the same vectors."""
        return self.encode(inputs, **options)

    def similarity(self, first: ArrayLike, second: ArrayLike) -> FloatArray:
        """Cosine of each vector of ``first`` [n, D] with each of ``second`` [m, D], float32 [n, m]."""
        return cosines(np.asarray(first, np.float32), np.asarray(second, np.float32))

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.model.dim

    #: The name that it had before version 6.
    get_sentence_embedding_dimension = get_embedding_dimension


def _is_single(inputs: Any) -> bool:
    if isinstance(inputs, np.ndarray):
        return inputs.dtype == np.uint8 and inputs.ndim == 3
    kinds = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, dict)
    return isinstance(inputs, kinds) or not isinstance(inputs, Iterable)


def _only_value(given: Any) -> Any:
    """An input, out of the mapping that says its kind."""
    if not isinstance(given, dict):
        return given
    if set(given) == {"text"} and isinstance(given["text"], str):
        return given["text"]
    if set(given) != {"image"}:
        named = ", ".join(map(repr, given)) or "nothing"
        raise ArgumentError(f"an input has {named}; give a 'text' or an 'image', as this model joins none.")
    # Here a string is a path; by itself it would be a text.
    return Path(given["image"]) if isinstance(given["image"], str) else given["image"]
