"""An index as a table of LanceDB, for those who keep more about their images than where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import ArgumentError
from ..names import spell_path
from .search import ImageIndex

#: Rows of the index that are written at once.
_BLOCK = 8192


def export_lancedb(index: ImageIndex, database: Path, name: str) -> int:
    """Write an index into a new table of a LanceDB database, without embedding anything again.

    The table has the columns ``path``, the image's file, and ``vector``, float32 of length one; copies have a row each.
    It keeps :class:`fgclip_rt.integrations.LanceDBFunction`, which embeds queries and the images that are added later.

    Args:
        index: the index.
        database: folder of the database.
        name: of the table.

    Returns:
        Number of rows.

    Raises:
        ArgumentError: the index was made with ``exif_transpose``, which the table's function does not know, or there is
            such a table already.
        MissingDependencyError: LanceDB is not installed.
    """
    # The first of these names the package, if it is missing.
    from ..integrations import LanceDBFunction
    from ..integrations.lancedb import make_table

    about = index.about
    if about.exif_transpose is not None:
        raise ArgumentError(
            f"{index.path} was made with exif_transpose={about.exif_transpose}, which LanceDB's function lacks; "
            "index without it, or search the index itself."
        )
    function = LanceDBFunction.create(
        bundle=about.bundle, precision=about.precision, max_num_patches=about.max_num_patches
    )
    try:
        table = make_table(database, name, function, _blocks(index))
    except ValueError as error:
        if "exists" not in str(error):
            raise
        raise ArgumentError(f"{database} has a table {name!r} already; give another name, or drop it.") from None
    return int(table.count_rows())


def _blocks(index: ImageIndex) -> Iterator[list[dict[str, object]]]:
    rows, vectors = index.vectors()
    for first in range(0, len(rows), _BLOCK):
        block = zip(rows[first : first + _BLOCK].tolist(), vectors[first : first + _BLOCK].astype("f4"), strict=True)
        yield [
            {"path": spell_path(Path(index.about.root, image)), "vector": vector}
            for row, vector in block
            for image in index.images(row)
        ]
