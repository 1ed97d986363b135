"""Bringing an index to the state of its folder: only what is new or changed is read, and what is gone goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from ..ahead import map_ahead
from ..batching import Failure, Item
from ..errors import ImageError, IndexFileError
from ..folders import Found, search_folder
from ..model import Model
from ..names import spell_path
from ..outputs import first_change
from ..packages import require
from ..preparation import Patches
from ..progress import BeginStage, silent
from .approximate import TEXTS
from .files import About, Entry, check_origin
from .writer import NewContent, Writer, digest


class Updated(msgspec.Struct, frozen=True):
    """An update that has ended.

    Attributes:
        images: number of images that can be searched.
        added: number of files that are new.
        changed: number of files whose content is another.
        removed: number of files that are gone.
        unchanged: number of files that were not read, because their size and time of change are those of before.
        embedded: number of contents that the model ran on; copies and moved files need no run.
        unreadable: files that cannot be read, with their errors.
        found: what the search of the folder found.
        recall: that of the graph for approximate searches; None if there is none.
    """

    images: int
    added: int
    changed: int
    removed: int
    unchanged: int
    embedded: int
    unreadable: list[Entry]
    found: Found
    recall: float | None


def update(
    model: Model,
    folder: Path,
    output: Path,
    *,
    bundle: str,
    max_num_patches: int | None = None,
    exif_transpose: bool | None = None,
    anew: bool = False,
    interchangeable: bool = False,
    approximate: bool | None = None,
    begin: BeginStage = silent,
) -> Updated:
    """Index the images below ``folder``, or bring their index up to date.

    A file counts as unchanged if its size and its time of change are. Vectors are kept batch by batch, so that an
    update that is stopped loses no more than a batch; the images that a search finds change in one step at the end.

    Args:
        model: embeds the images.
        folder: the folder.
        output: folder of the index.
        bundle: the bundle's folder or name, for those who search later.
        max_num_patches: as for :meth:`Model.embed_images`.
        exif_transpose: likewise.
        anew: replace an index of another folder, space or settings.
        interchangeable: take a bundle or a precision of another space, so that the index holds vectors of both;
            searches use the new one from then on.
        approximate: whether the index has a graph for approximate searches, which needs the extra ``approximate``;
            None leaves it as it is, and makes none for a new index.
        begin: begins progress bars.

    Raises:
        IndexFileError: the index is of another folder, space or settings, or damaged, or another process updates it.
        ImageError: the folder cannot be read.
        MissingDependencyError: the graph needs a package that is not installed.
        OutputError: the index cannot be written.
    """
    root = os.path.realpath(folder)
    about = About(
        bundle=bundle,
        manifest_sha256=model.bundle.manifest_sha256,
        space_sha256=model.space_sha256,
        model=model.manifest.model.name,
        precision=model.precision,
        dim=model.dim,
        max_num_patches=max_num_patches,
        exif_transpose=exif_transpose,
        root=root,
    )
    found = search_folder(root)
    with Writer(output, about, anew=anew) as writer:
        _check_same(output, writer.files.about, about, interchangeable=interchangeable)
        if approximate is None:
            approximate = writer.files.about.approximate
        if approximate:
            require("approximate", ("usearch",), "an approximate search needs {}, which is not installed")
        before = {entry.path: entry for entry in writer.files.entries()}
        paths = [os.fsencode(os.path.relpath(path, root)) for path in found.files]
        embedding = _Embedding(model, writer, about)
        changed: list[tuple[int, Entry]] = []
        for number, path in enumerate(paths):
            entry, old = _stat(root, path), before.get(path)
            if entry is None:
                continue
            if old is not None and _is_unchanged(old, entry):
                embedding.done[number] = old
            else:
                changed.append((number, entry))
        embedding.run(changed, begin("images", len(changed)))
        entries = [entry for _, entry in sorted(embedding.done.items())]
        writer.finish(entries, about, approximate=approximate)
        if approximate:
            writer.renew_graph(model.embed_texts(TEXTS), begin)
        graph = writer.files.about.graph
        return Updated(
            images=writer.files.counts()[0],
            added=sum(entry.path not in before for _, entry in changed),
            changed=sum(entry.path in before for _, entry in changed),
            removed=len(before.keys() - {entry.path for entry in entries}),
            unchanged=len(entries) - len(changed),
            embedded=embedding.embedded,
            unreadable=[entry for entry in entries if entry.row is None],
            found=found,
            recall=None if graph is None else graph.recall,
        )


class _File(msgspec.Struct, frozen=True):
    """A file on its way to its vector.

    Attributes:
        number: among all files.
        entry: its entry, without a row.
        digest: of its bytes.
        content: its bytes, the image that they became, or the error that they cannot be read.
    """

    number: int
    entry: Entry
    digest: bytes
    content: bytes | Patches | ImageError


class _Embedding:
    """The embedding of files that are new or changed.

    Attributes:
        done: by number, the entry of each file.
        embedded: number of contents that the model ran on.
    """

    def __init__(self, model: Model, writer: Writer, about: About) -> None:
        self.done: dict[int, Entry] = {}
        self.embedded = 0
        self._model, self._writer, self._about = model, writer, about
        #: Files whose images wait for their batch, by number.
        self._waiting: dict[int, _File] = {}

    def run(self, entries: Iterable[tuple[int, Entry]], step: Callable[[], None]) -> None:
        """Embed files, given by their numbers and entries; ``step`` is called as each is read."""
        new = (file for file in map_ahead(self._read, entries) if not self._is_done(file, step))
        for batch in self._model.iter_patches(self._queued(map_ahead(self._prepare, new))):
            assert not isinstance(batch, Failure)
            files = [self._waiting.pop(number) for number in batch.indices]
            contents = [_sized(file) for file in files]
            for file, row in zip(files, self._writer.add(contents, batch.vectors), strict=True):
                self.done[file.number] = msgspec.structs.replace(file.entry, row=row)
            self.embedded += len(files)

    def _read(self, queued: tuple[int, Entry]) -> _File:
        """Read a file and compute its digest."""
        number, entry = queued
        name = self._name(entry)
        try:
            with open(name, "rb", buffering=0) as file:  # noqa: PTH123 (a million paths)
                data = file.read()
        except OSError as error:
            refused = ImageError(f"{name} cannot be read ({error.strerror}); check its permissions.")
            return _File(number, entry, b"", refused)
        return _File(number, entry, digest(data), data)

    def _is_done(self, file: _File, step: Callable[[], None]) -> bool:
        """Whether a file needs no more work, because its content has a vector."""
        step()
        known = self._writer.known(file.digest)
        if known is None:
            return False
        self.done[file.number] = msgspec.structs.replace(file.entry, row=known)
        return True

    def _prepare(self, file: _File) -> _File:
        """Decode and resize the image of a file that was read."""
        if not isinstance(file.content, bytes):
            return file
        patches: Patches | ImageError
        try:
            patches = self._model.prepare(
                file.content,
                self._about.max_num_patches,
                self._name(file.entry),
                exif_transpose=self._about.exif_transpose,
            )
        except ImageError as error:
            patches = error.with_traceback(None)
        return msgspec.structs.replace(file, content=patches)

    def _queued(self, files: Iterable[_File]) -> Iterator[Item[Patches]]:
        """The images of files as items; a file that cannot be read is done."""
        for file in files:
            if isinstance(file.content, Patches):
                self._waiting[file.number] = file
                yield Item(file.number, file.content.bucket, len(file.content.pixels), file.content)
            elif isinstance(file.content, ImageError):
                refused = file.content
                self.done[file.number] = msgspec.structs.replace(file.entry, code=refused.code, error=str(refused))

    def _name(self, entry: Entry) -> str:
        return os.path.join(self._about.root, os.fsdecode(entry.path))  # noqa: PTH118 (a million paths)


def _sized(file: _File) -> NewContent:
    assert isinstance(file.content, Patches)
    height, width = file.content.image_size
    return NewContent(file.digest, width, height, file.content.bucket)


def _stat(root: str, path: bytes) -> Entry | None:
    """The entry of a file as it is now, without a row; None if it is gone."""
    try:
        state = os.stat(os.path.join(os.fsencode(root), path))  # noqa: PTH116, PTH118 (a million paths)
    except OSError:
        return None
    return Entry(path, state.st_size, state.st_mtime_ns, None)


def _is_unchanged(old: Entry, now: Entry) -> bool:
    # A file that could not be opened may be open now, without having changed.
    return (old.size, old.modified) == (now.size, now.modified) and old.code != "image_unreadable"


def _check_same(output: Path, then: About, now: About, *, interchangeable: bool) -> None:
    """Refuse to bring an index up to date with another folder, space or settings.

    Raises:
        IndexFileError: they are other ones; the message names the first that differs.
    """
    if interchangeable:
        if then.dim != now.dim:
            raise IndexFileError(
                f"{output} has vectors of {then.dim} numbers, and {now.bundle} makes {now.dim}; index anew with "
                "--overwrite.",
                code="index_mismatch",
            )
        then = msgspec.structs.replace(then, precision=now.precision)
    elif then.precision == now.precision:
        check_origin(output, then.origin, now.origin, now.bundle)
    change = first_change(_named(then), _named(now), lambda setting: spell_path(str(setting)))
    if change is not None:
        raise IndexFileError(
            f"{output} was made {change}, or replace the index with --overwrite.", code="index_mismatch"
        )


def _named(about: About) -> dict[str, object]:
    """The settings that make one index unlike another, by the names that users know."""
    return {
        "the folder": about.root,
        "--precision": about.precision,
        "--max-num-patches": about.max_num_patches,
        "--exif-transpose": about.exif_transpose,
    }
