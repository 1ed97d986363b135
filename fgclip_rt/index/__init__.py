"""An index of a folder's images: made and brought up to date, and searched by texts, images and regions.

- ``files``: the table and the vectors on the disk.
- ``writer``: changes to them.
- ``updating``: from a folder to its index.
- ``exact``: cosines with all rows, and the largest of them.
- ``approximate``: a graph that chooses rows, so that not all are compared.
- ``search``: from a query to images, and to places in them.
- ``duplicates``: images that are nearly the same.
- ``lance``: an index as a table of LanceDB.
- ``picture``: the images that a search found, on one sheet.
"""

from .files import About
from .lance import export_lancedb
from .search import LOOKED_AT, ImageIndex, Query, find, place, ranked, searched
from .updating import Updated, update

__all__ = [
    "LOOKED_AT",
    "About",
    "ImageIndex",
    "Query",
    "Updated",
    "export_lancedb",
    "find",
    "place",
    "ranked",
    "searched",
    "update",
]
