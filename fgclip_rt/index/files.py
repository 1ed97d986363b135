"""The files of an index: a table of what lies in a folder, and a file of vectors.

An index is a folder.

- ``index.sqlite`` holds the table. Its transactions are those of the index: a change is there whole or not at all.
- ``vectors-N.f16`` holds one row of D float16 numbers, little-endian, for each content that was embedded. Rows are only
  appended, and on the disk before the table names them. What lies beyond the last row of the table counts for nothing.
- ``graph-N.usearch``, if there is one, chooses rows for an approximate search. It may lack the last rows.
- ``lock`` is held by the one process that changes the index.

``contents`` has a row for each content that has a vector: copies share one, and a file that moved keeps its own.
``images`` has a row for each file of the folder, and is replaced as a whole when an update ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from ..arrays import Array
from ..errors import IndexFileError, OutputError
from ..outputs import cannot_write
from ..space import Origin

FORMAT = "fgclip-rt index"
FORMAT_VERSION = 1

TABLE, LOCK = "index.sqlite", "lock"

#: Seconds that a transaction waits for another's to end.
_PATIENCE = 60.0

_SCHEMA = """
CREATE TABLE about (description TEXT NOT NULL);
CREATE TABLE contents (
    row INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    bucket INTEGER NOT NULL
);
CREATE TABLE images (
    path BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    row INTEGER,
    code TEXT,
    error TEXT
) WITHOUT ROWID;
CREATE INDEX images_of_row ON images (row, path);
"""


class GraphFile(msgspec.Struct, frozen=True, kw_only=True):
    """A graph over the first rows of an index.

    Attributes:
        file: its name.
        size: in bytes.
        rows: number of rows.
        recall: share of the ten nearest rows that it chooses, as :func:`.approximate.measure_recall` measures it.
    """

    file: str
    size: int
    rows: int
    recall: float


class About(msgspec.Struct, frozen=True, kw_only=True):
    """An index, as it describes itself.

    Attributes:
        format: :data:`FORMAT`.
        format_version: :data:`FORMAT_VERSION`.
        bundle: folder of the bundle, absolute; or the name of one that comes with the package.
        manifest_sha256: digest of the bundle's manifest.
        space_sha256: fingerprint of the space of the vectors; None if an earlier version made the index.
        model: name of the model.
        precision: the precision that made the vectors.
        dim: width D of each.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.
        exif_transpose: likewise.
        root: the folder that is indexed, absolute.
        vectors: name of the file of vectors.
        generation: number of changes that have ended.
        approximate: whether it is to have a graph.
        graph: the graph; None if there is none, or not yet.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    bundle: str
    manifest_sha256: str
    model: str
    precision: str
    dim: int
    max_num_patches: int | None
    exif_transpose: bool | None
    root: str
    vectors: str = "vectors-1.f16"
    generation: int = 0
    approximate: bool = False
    graph: GraphFile | None = None
    space_sha256: str | None = None

    @property
    def origin(self) -> Origin:
        """What made the vectors."""
        return Origin(self.model, self.precision, self.space_sha256, self.manifest_sha256)


class Content(msgspec.Struct, frozen=True):
    """An image by what is in its file: its row of vectors, width and height in pixels, and bucket of patches."""

    row: int
    width: int
    height: int
    bucket: int


class Entry(msgspec.Struct, frozen=True):
    """A file of the folder.

    Attributes:
        path: below the folder, as the system spells it.
        size: in bytes.
        modified: time of its last change in nanoseconds.
        row: row of its vector; None if it cannot be read.
        code: code of the error that it cannot be read; None if it can.
        error: the sentence of that error.
    """

    path: bytes
    size: int
    modified: int
    row: int | None
    code: str | None = None
    error: str | None = None


class IndexFiles:
    """An index on the disk, open. Not safe to use from several threads at once.

    Attributes:
        path: its folder.
        about: as it describes itself.
        table: its table, open.
    """

    def __init__(self, path: Path, table: sqlite3.Connection, about: About) -> None:
        """Join an open table and its description; :meth:`open` and :meth:`create` do this."""
        self.path = path
        self.about = about
        self.table = table

    @classmethod
    def open(cls, path: Path) -> IndexFiles:
        """Open an index.

        Raises:
            IndexFileError: there is none at ``path``, it is damaged, or it has a newer format.
        """
        if not (path / TABLE).is_file():
            state = "is no index" if path.exists() else "does not exist"
            raise IndexFileError(f"{path} {state}; make one with 'fgclip-rt index'.", code="index_missing")
        try:
            table = _connect(path)
            return cls(path, table, _about(path, table))
        except sqlite3.Error as error:
            raise damaged(path, error) from None

    @classmethod
    def create(cls, path: Path, about: About) -> IndexFiles:
        """Make an index of no images in a folder that has none.

        Raises:
            OutputError: writing failed.
        """
        try:
            table = _connect(path)
            table.executescript(f"BEGIN;{_SCHEMA}")
            table.execute("INSERT INTO about VALUES (?)", (msgspec.json.encode(about).decode(),))
            table.execute("COMMIT")
        except sqlite3.Error as error:
            raise cannot_write_index(path, error) from None
        return cls(path, table, about)

    def close(self) -> None:
        """Close its files."""
        self.table.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that the block reads is of one state, whatever is written meanwhile.

        Raises:
            IndexFileError: the index is damaged.
        """
        try:
            self.table.execute("BEGIN")
            try:
                self.about = _about(self.path, self.table)
                yield
            finally:
                self.table.execute("COMMIT")
        except sqlite3.Error as error:
            raise damaged(self.path, error) from None

    def vectors(self) -> Array:
        """All rows, float16 [n, D], mapped from the disk.

        Raises:
            IndexFileError: the file is missing or shorter than the table says.
        """
        count, width = self.count(), self.about.dim
        if not count:
            return np.zeros((0, width), np.float16)
        path = self.path / self.about.vectors
        try:
            size = path.stat().st_size
            if size < 2 * count * width:
                raise IndexFileError(
                    f"{path} has {size:,} bytes instead of {2 * count * width:,}; copy the index again, or make it "
                    "anew with --overwrite.",
                    code="index_damaged",
                )
            return np.memmap(path, "<f2", "r", shape=(count, width))
        except OSError as error:
            raise damaged(self.path, error) from None

    def count(self) -> int:
        """Number of rows of vectors."""
        ((count,),) = self.table.execute("SELECT coalesce(max(row) + 1, 0) FROM contents")
        return int(count)

    def rows(self, folder: bytes = b"") -> Array:
        """The rows, int64 and ascending, that have an image in ``folder``, which is below the indexed one."""
        query = "SELECT DISTINCT row FROM images WHERE row IS NOT NULL"
        arguments: tuple[bytes, ...] = ()
        if folder:
            # Slash is followed by 0, so these are all names that begin with the folder and a slash.
            query += " AND path >= ? AND path < ?"
            arguments = (folder + b"/", folder + b"0")
        found = np.fromiter((row for (row,) in self.table.execute(query, arguments)), np.int64)
        found.sort()
        return found

    def paths(self, row: int, folder: bytes = b"") -> list[bytes]:
        """The images of a row in ``folder``, ascending."""
        found = self.table.execute("SELECT path FROM images WHERE row = ? ORDER BY path", (row,))
        return [path for (path,) in found if not folder or path.startswith(folder + b"/")]

    def row_of(self, path: bytes) -> int | None:
        """The row of an image; None if it is not in the index or cannot be read."""
        found = self.table.execute("SELECT row FROM images WHERE path = ?", (path,)).fetchone()
        return None if found is None else found[0]

    def content(self, row: int) -> Content | None:
        """The content of a row; None if there is none."""
        query = "SELECT row, width, height, bucket FROM contents WHERE row = ?"
        found = self.table.execute(query, (row,)).fetchone()
        return None if found is None else Content(*found)

    def digest(self, row: int) -> bytes | None:
        """The digest of the content of a row, SHA-256; None if there is none."""
        found = self.table.execute("SELECT digest FROM contents WHERE row = ?", (row,)).fetchone()
        return None if found is None else bytes(found[0])

    def entries(self) -> Iterator[Entry]:
        """All files, in the order of their paths."""
        for values in self.table.execute("SELECT path, size, modified, row, code, error FROM images ORDER BY path"):
            yield Entry(*values)

    def counts(self) -> tuple[int, int]:
        """Number of images that have a vector, and of those that cannot be read."""
        ((readable, unreadable),) = self.table.execute("SELECT count(row), count(*) - count(row) FROM images")
        return int(readable), int(unreadable)


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are begun by name. The lock of whoever shares the connection keeps its threads apart.
    table = sqlite3.connect(path / TABLE, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    table.execute("PRAGMA synchronous = FULL")
    return table


def _about(path: Path, table: sqlite3.Connection) -> About:
    (text,) = table.execute("SELECT description FROM about").fetchone() or ("",)
    try:
        document = msgspec.json.decode(text)
        version = document["format_version"]
        if document["format"] == FORMAT and type(version) is int and version > FORMAT_VERSION:
            raise IndexFileError(
                f"{path} has format version {version}, and this fgclip-rt reads {FORMAT_VERSION}; upgrade fgclip-rt.",
                code="index_newer",
            )
        return msgspec.convert(document, About)
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError) as error:
        raise damaged(path, error) from None


def check_origin(path: Path, origin: Origin, now: Origin, bundle: Path | str) -> None:
    """Refuse vectors of another space than those of an index.

    Args:
        path: the index.
        origin: what made its vectors.
        now: what makes the others.
        bundle: the bundle of these, for the message.

    Raises:
        IndexFileError: the spaces differ; the message names both.
    """
    names = origin.unlike(now)
    if names is not None:
        raise IndexFileError(
            f"{path} was made with {names[0]}, and {bundle} is {names[1]}; name the bundle that made it, ask "
            f"'fgclip-rt compare {path} {bundle}' how far apart they are, or index anew with --overwrite.",
            code="index_mismatch",
        )


def damaged(path: Path, error: Exception | str) -> IndexFileError:
    """The error for a file of an index that cannot be used."""
    return IndexFileError(
        f"{path} is damaged ({error}); copy it again, or make it anew with 'fgclip-rt index --overwrite'.",
        code="index_damaged",
    )


def cannot_write_index(path: Path, error: Exception) -> OutputError:
    """The error for an index that could not be written; SQLite says of a full disk that the disk is full."""
    if isinstance(error, sqlite3.Error) and "full" in str(error):
        return OutputError(f"{path} cannot be written because the disk is full; free some space.", code="disk_full")
    return cannot_write(path, error)
