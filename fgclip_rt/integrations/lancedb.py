"""LanceDB's embedding function, which a table remembers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lancedb
from lancedb.embeddings import EmbeddingFunction, register
from lancedb.pydantic import LanceModel, Vector
from pydantic import PrivateAttr, create_model

from fgclip_rt.arrays import FloatArray
from fgclip_rt.model import Model

from .inputs import check_origin, embed_mixed, open_model


@register("fgclip")
class LanceDBFunction(EmbeddingFunction):
    """Vectors of a column of images or texts, and of queries of either kind.

    Make one with ``create``. A table keeps its arguments and the fingerprint of their space, and is refused with a
    bundle of another space. Import this class before such a table is opened.

    Attributes:
        bundle: path of the bundle, or ``fg-clip2-pocket``.
        device: as for :func:`fgclip_rt.load`.
        precision: likewise.
        source: whether the column holds ``image``, as paths or bytes, or ``text``.
        walk_type: kind of the texts, as for :meth:`fgclip_rt.Model.embed_texts`.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.
        on_error: ``raise`` stops at the first row that cannot be embedded; ``skip`` gives it no vector, and LanceDB's
            ``on_bad_vectors`` says what becomes of it.
        manifest_sha256: digest of the bundle that a table's vectors were made with; ``create`` fills it in.
        space_sha256: fingerprint of their space, as ``model.space_sha256``; likewise.
        max_retries: zero, because a file that cannot be read cannot be read the next time either.
    """

    bundle: str
    device: str = "auto"
    precision: str | None = None
    source: Literal["image", "text"] = "image"
    walk_type: str = "short"
    max_num_patches: int | None = None
    on_error: Literal["raise", "skip"] = "raise"
    manifest_sha256: str | None = None
    space_sha256: str | None = None
    max_retries: int = 0

    _model: Model = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        """Load the model.

        Raises:
            BundleError: the bundle's vectors are of another space than those of the table.
            FgclipError: as for :func:`fgclip_rt.load`.
        """
        super().__init__(**fields)
        self._model = open_model(self.bundle, self.device, self.precision)
        check_origin(self._model, self.manifest_sha256, self.space_sha256, "the table")

    @classmethod
    def create(cls, **arguments: Any) -> LanceDBFunction:
        """Make a function that a table can keep, from the attributes above."""
        made: LanceDBFunction = super().create(**arguments)
        kept = {"manifest_sha256": made._model.bundle.manifest_sha256, "space_sha256": made._model.space_sha256}
        made.manifest_sha256, made.space_sha256 = kept.values()
        made._original_args = {**arguments, **kept}
        return made

    def ndims(self) -> int:
        """Width of the vectors."""
        return self._model.dim

    def compute_query_embeddings(self, query: Any, *_: Any, **__: Any) -> list[FloatArray | None]:
        """The vector of a query: a string is a text, and everything else an image."""
        return list(embed_mixed(self._model, [query], self.walk_type, self.max_num_patches))

    def compute_source_embeddings(self, inputs: Any, *_: Any, **__: Any) -> list[FloatArray | None]:
        """The vectors of a column's rows; None for one that cannot be embedded, if it is to be skipped."""
        rows: list[Any] = [inputs] if isinstance(inputs, bytes) else list(self.sanitize_input(inputs))
        embed: Any = (
            partial(self._model.embed_images, rows, self.max_num_patches)
            if self.source == "image"
            else partial(self._model.embed_texts, rows, self.walk_type)
        )
        if self.on_error == "raise":
            return list(embed())
        embedded = embed(on_error="skip")
        vectors: list[FloatArray | None] = [None] * len(rows)
        for row, vector in zip(embedded.rows, embedded.vectors, strict=True):
            vectors[row] = vector
        return vectors


def make_table(
    database: Path, name: str, function: LanceDBFunction, rows: Iterable[list[dict[str, object]]]
) -> lancedb.table.Table:
    """Make a table of images whose vectors are there, which embeds those that are added later.

    Args:
        database: folder of the database.
        name: of the table.
        function: embeds images that are added, and queries.
        rows: blocks of rows with ``path``, and ``vector`` of length one.

    Raises:
        ValueError: LanceDB has such a table already.
    """
    schema: Any = create_model(
        "Photo",
        __base__=LanceModel,
        path=(str, function.SourceField()),
        vector=(Vector(function.ndims()), function.VectorField()),
    )
    table = lancedb.connect(database).create_table(name, schema=schema)
    for block in rows:
        table.add(block)
    return table
