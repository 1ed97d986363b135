"""Changes to an index: vectors that are added batch by batch, and images that are replaced in one step."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from ..arrays import Array, FloatArray
from ..errors import IndexFileError, OutputError
from ..outputs import cannot_write
from ..progress import BeginStage, silent
from .approximate import Graph, extend, measure_recall
from .files import LOCK, TABLE, About, Entry, GraphFile, IndexFiles, cannot_write_index

#: Rows that are copied at once; 25 MB at 768 dimensions.
_MOVED = 16384

#: Files of which an index has the one that its description names.
_NUMBERED = ("vectors-*.f16", "graph-*.usearch")


#: Parts of a description that are those of the last update. Its bundle may be another export of the same space.
_OF_UPDATE = ("root", "bundle", "manifest_sha256", "space_sha256", "model", "precision")


class NewContent(msgspec.Struct, frozen=True):
    """An image that gets a vector: digest of its file, width and height in pixels, and bucket of patches."""

    digest: bytes
    width: int
    height: int
    bucket: int


class Writer:
    """Changes an index. Another process that would is refused until the block ends; readers go on.

    A new index, or one that replaces another, is made in a hidden folder beside it and takes its name at the end. If
    the process dies before that, the next one to make the same index goes on from the vectors that are there.

    Attributes:
        files: the index.
    """

    def __init__(self, path: Path, about: About, *, anew: bool) -> None:
        """Lock the index at ``path``, and open or make it.

        Args:
            path: its folder.
            about: describes an index that is made.
            anew: make it even if one is there.

        Raises:
            IndexFileError: another process changes it, it is damaged, or it has a newer format.
            OutputError: something else stands at ``path``, or writing failed.
        """
        self._path = path
        self._folder = path if path.exists() and not anew else path.with_name(f".{path.name}.unfinished")
        self._locks: list[BinaryIO] = []
        try:
            if path.exists():
                if anew:
                    _check_index(path)
                self._locks.append(_hold(path))
            if self._folder != path:
                self._folder.mkdir(exist_ok=True)
                self._locks.append(_hold(self._folder))
            self.files = self._open(about)
            self._vectors = (self._folder / self.files.about.vectors).open("ab", buffering=0)
            # Of an interrupted run: rows that the table does not name, and files that took no name.
            self._vectors.truncate(2 * self.files.count() * self.files.about.dim)
            self._clean()
        except OSError as error:
            self._unlock()
            raise cannot_write(path, error) from None
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._vectors.close()
        self.files.close()
        self._unlock()

    def known(self, digest: bytes) -> int | None:
        """The row of the content of a digest; None if it has no vector yet."""
        found = self.files.table.execute("SELECT row FROM contents WHERE digest = ?", (digest,)).fetchone()
        return None if found is None else int(found[0])

    def add(self, contents: Sequence[NewContent], vectors: FloatArray) -> list[int]:
        """Keep the vectors of a batch; they are safe when this returns.

        Args:
            contents: the images; one that has a vector already keeps that.
            vectors: float32 [b, D], of length one.

        Returns:
            The row of each.

        Raises:
            OutputError: writing failed.
        """
        count = self.files.count()
        rows: dict[bytes, int] = {}
        new: list[int] = []
        for index, content in enumerate(contents):
            known = self.known(content.digest)
            if known is not None:
                rows[content.digest] = known
            elif content.digest not in rows:
                rows[content.digest] = count + len(new)
                new.append(index)
        data = memoryview(np.ascontiguousarray(vectors[new], "<f2").tobytes())
        with self._writing() as table:
            while data:
                data = data[self._vectors.write(data) :]
            os.fsync(self._vectors.fileno())
            table.executemany(
                "INSERT INTO contents VALUES (?, ?, ?, ?, ?)",
                [(rows[contents[index].digest], *msgspec.structs.astuple(contents[index])) for index in new],
            )
        return [rows[content.digest] for content in contents]

    def finish(self, entries: Iterable[Entry], made_with: About, *, approximate: bool) -> None:
        """Replace the images by ``entries`` in one step.

        If over half of the rows have no image any more, the others move to a new file of vectors.

        Args:
            entries: the images.
            made_with: the folder of the images, and the bundle that embedded the last of them.
            approximate: whether the index is to have a graph; :meth:`renew_graph` makes it.

        Raises:
            OutputError: writing failed; the images are those of before.
        """
        old = self.files.about
        graph = old.graph if approximate else None
        about = msgspec.structs.replace(
            old,
            generation=old.generation + 1,
            approximate=approximate,
            graph=graph,
            **{name: getattr(made_with, name) for name in _OF_UPDATE},
        )
        with self._writing() as table:
            table.execute("DELETE FROM images")
            table.executemany(
                "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)",
                ((each.path, each.size, each.modified, each.row, each.code, each.error) for each in entries),
            )
            kept = self.files.rows()
            if 2 * len(kept) < self.files.count():
                # The rows get new numbers, which the graph does not know.
                about = msgspec.structs.replace(about, vectors=f"vectors-{about.generation + 1}.f16", graph=None)
                self._move(table, kept, self._folder / about.vectors)
            _describe(table, about)
        self.files.about = about
        try:
            self._clean()
            if self._folder != self._path:
                self._take_name()
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def renew_graph(self, texts: FloatArray, begin: BeginStage = silent) -> None:
        """Bring the graph of a finished index to the state of its rows, in one step.

        Args:
            texts: float32 [m, D], vectors of texts to measure its recall with.
            begin: begins progress bars.

        Raises:
            IndexFileError: the graph that is there is damaged.
            OutputError: writing failed; the graph is that of before.
        """
        old, vectors = self.files.about, self.files.vectors()
        if not len(vectors) or (old.graph is not None and old.graph.rows == len(vectors)):
            return
        generation = old.generation + 1
        name = f"graph-{generation}.usearch"
        path = self._folder / name
        extend(path, vectors, None if old.graph is None else self._folder / old.graph.file, begin)
        made = GraphFile(file=name, size=path.stat().st_size, rows=len(vectors), recall=0.0)
        recall = measure_recall(Graph(self._folder, made), vectors, texts, begin)
        graph = msgspec.structs.replace(made, recall=recall)
        about = msgspec.structs.replace(old, generation=generation, graph=graph)
        with self._writing() as table:
            _describe(table, about)
        self.files.about = about
        self._clean()

    def _clean(self) -> None:
        """Remove files that are no part of the index any more. Readers that have mapped one keep it."""
        about = self.files.about
        kept = {about.vectors, None if about.graph is None else about.graph.file}
        for pattern in _NUMBERED:
            for file in self._folder.glob(pattern):
                if file.name not in kept:
                    file.unlink()

    def _open(self, about: About) -> IndexFiles:
        """The index to change: the one that is there, the same one that an interrupted run has begun, or a new one."""
        if self._folder == self._path:
            return IndexFiles.open(self._path)
        # A run that found the disk full may have left a table of nothing.
        with suppress(IndexFileError):
            begun = IndexFiles.open(self._folder)
            if _same_vectors(begun.about, about):
                return begun
            begun.close()
        _check_index(self._folder)
        for entry in self._folder.iterdir():
            if entry.name != LOCK:
                entry.unlink()
        return IndexFiles.create(self._folder, about)

    def _take_name(self) -> None:
        """Give the finished index its name. The table is closed first: it finds its files by their names."""
        self.files.close()
        replaced = self._path.with_name(f".{self._path.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if self._path.exists():
            self._path.rename(replaced)
        self._folder.rename(self._path)
        self._folder = self._path
        shutil.rmtree(replaced, ignore_errors=True)
        self.files = IndexFiles.open(self._path)

    def _move(self, table: sqlite3.Connection, kept: Array, path: Path) -> None:
        """Write the rows ``kept``, and no others, to a file, and number them anew."""
        vectors = self.files.vectors()
        with path.open("wb") as file:
            for begin in range(0, len(kept), _MOVED):
                file.write(vectors[kept[begin : begin + _MOVED]].tobytes())
            file.flush()
            os.fsync(file.fileno())
        table.execute("CREATE TEMP TABLE moved (new INTEGER PRIMARY KEY, old INTEGER NOT NULL UNIQUE)")
        table.executemany("INSERT INTO moved VALUES (?, ?)", enumerate(kept.tolist()))
        table.execute("DELETE FROM contents WHERE row NOT IN (SELECT old FROM moved)")
        # In ascending order, so that no row takes the number of one that has not moved yet.
        table.executemany("UPDATE contents SET row = ? WHERE row = ?", enumerate(kept.tolist()))
        table.execute("UPDATE images SET row = (SELECT new FROM moved WHERE old = row) WHERE row IS NOT NULL")
        table.execute("DROP TABLE moved")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: its block's changes are there whole or not at all.

        Raises:
            OutputError: writing failed.
        """
        table = self.files.table
        try:
            table.execute("BEGIN IMMEDIATE")
            try:
                yield table
                table.execute("COMMIT")
            except BaseException:
                # A full disk has ended the transaction already.
                if table.in_transaction:
                    table.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            raise cannot_write_index(self._path, error) from None

    def _unlock(self) -> None:
        for lock in self._locks:
            lock.close()


def digest(data: bytes) -> bytes:
    """The digest by which a content is known: SHA-256."""
    return hashlib.sha256(data).digest()


def _describe(table: sqlite3.Connection, about: About) -> None:
    table.execute("UPDATE about SET description = ?", (msgspec.json.encode(about).decode(),))


def _same_vectors(one: About, other: About) -> bool:
    """Whether two indexes hold the same vector for the same content."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("space_sha256", "precision", "dim", "max_num_patches", "exif_transpose")
    )


def _check_index(path: Path) -> None:
    """Refuse a folder that holds anything besides an index, before it is replaced.

    Raises:
        OutputError: it does.
    """
    for entry in path.iterdir():
        if not (entry.name.startswith((TABLE, LOCK)) or any(map(entry.match, _NUMBERED))):
            raise OutputError(
                f"{path} holds {entry.name}, which is no part of an index; choose another --output.",
                code="output_exists",
            )


def _hold(folder: Path) -> BinaryIO:
    """Take the lock of an index; it ends with the process.

    Raises:
        IndexFileError: another process holds it.
    """
    lock = (folder / LOCK).open("ab")
    try:
        import fcntl
    except ImportError:  # Windows
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise IndexFileError(
            f"{folder} is being updated by another process; wait for it, or choose another --output.",
            code="index_locked",
        ) from None
    return lock
