"""A shard to its rows and dead letters. It gives the same files whoever does it, and however often."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from .. import __version__
from ..ahead import map_ahead
from ..arrays import Array
from ..batching import Failure, Item
from ..errors import FgclipError, ImageError, ShardError
from ..model import Model
from ..outputs import cannot_write
from ..preparation import Patches
from .job import Job, Marker, Shard
from .layouts import BLOCK, Letter, Rows, RowWriter, read_letters, read_rows, row_writer, write_letters
from .records import Record, read_records
from .storage import Store

#: Codes of dead letters that no second reading helps.
_FINAL = ("item_duplicate",)


def embed_shard(
    model: Model,
    job: Job,
    shard: Shard,
    store: Store,
    *,
    retry: Marker | None = None,
    step: Callable[[int, int], None] = lambda *_: None,
) -> Marker:
    """Embed the images of a shard, and put its files into the output, the marker last.

    Args:
        model: embeds the images.
        job: which rows are made.
        shard: the shard.
        store: the output.
        retry: the marker of the shard, if it is done and only its dead letters are to be read again.
        step: called as images are done, with the number of new rows and of new dead letters.

    Raises:
        ShardError: the shard cannot be opened or read on.
        OutputError: the output cannot be written; what it had of the shard is still there, or the shard has no marker.
    """
    begun = time.perf_counter()
    with store.workspace() as folder:
        try:
            embedding = _Embedding(model, job, row_writer(job, shard.name, folder), step)
            if retry is not None and retry.errors:
                embedding.take_up(store, shard, folder, retry)
            embedding.run(shard, read_records(shard, job.columns))
            files = embedding.close(shard.name, folder)
        except OSError as error:
            raise cannot_write(Path(store.root), error) from None
        seconds = time.perf_counter() - begun
        marker = Marker(
            shard=shard.name,
            source=shard.source,
            stamp=shard.stamp,
            rows=embedding.rows,
            errors=dict(sorted(Counter(letter.code for letter in embedding.letters).items())),
            unrotated=embedding.unrotated,
            seconds=seconds,
            images_per_second=embedding.done / seconds,
            manifest_sha256=job.manifest_sha256,
            precision=job.precision,
            fgclip_rt=__version__,
            space_sha256=job.space_sha256,
        )
        store.commit(folder, marker, files)
    return marker


class _Prepared(msgspec.Struct, frozen=True):
    """A record on its way to its vector: the patches of its image, or its dead letter."""

    id: str
    caption: str | None
    result: Patches | Letter


class _Embedding:
    """The rows and dead letters of a shard as they come.

    Attributes:
        letters: the dead letters.
        rows: number of rows, those from before among them.
        done: number of items that this run embedded or refused.
        unrotated: number of images with a rotation that was not applied.
    """

    def __init__(self, model: Model, job: Job, writer: RowWriter, step: Callable[[int, int], None]) -> None:
        self.letters: list[Letter] = []
        self.rows = self.done = self.unrotated = 0
        self._model, self._job, self._writer, self._step = model, job, writer, step
        self._block = Rows()
        self._waiting: dict[int, _Prepared] = {}
        #: Ids that came already.
        self._seen: set[str] = set()
        #: The dead letters to read again, by their ids; None if all items are to be read.
        self._wanted: dict[str, Letter] | None = None

    def take_up(self, store: Store, shard: Shard, folder: Path, before: Marker) -> None:
        """Keep the rows of a shard that is done, so that only its dead letters are read again.

        A shard that broke off is read as a whole, since nobody knows what was in the rest.
        """
        letters = read_letters(store, shard.name, folder)
        if any(letter.id is None for letter in letters):
            return
        for rows in read_rows(store, self._job, shard.name, folder):
            self._writer.write(rows)
            self.rows += len(rows.ids)
        self.unrotated = before.unrotated
        self.letters = [letter for letter in letters if letter.code in _FINAL]
        self._wanted = {letter.id: letter for letter in letters if letter.id is not None and letter.code not in _FINAL}

    def run(self, shard: Shard, records: Iterable[Record]) -> None:
        """Embed what is wanted of the records."""
        prepared = map_ahead(self._prepare, self._new(shard, records))
        for batch in self._model.iter_patches(self._queued(prepared)):
            assert not isinstance(batch, Failure)
            for index, vector in zip(batch.indices, batch.vectors, strict=True):
                self._add(self._waiting.pop(index), vector)
            self._step(len(batch.indices), 0)

    def close(self, name: str, folder: Path) -> dict[str, Path | None]:
        """End the files, and name them by their place in the output."""
        # Items that the shard no longer has stay what they were.
        self.letters += (self._wanted or {}).values()
        self._flush()
        return {**self._writer.close(), **write_letters(self.letters, name, folder)}

    def _new(self, shard: Shard, records: Iterable[Record]) -> Iterator[Record]:
        """The records to read; ids that came before are dead letters."""
        for record in records:
            if record.id is None:
                assert record.error is not None
                self._refuse(_letter(record.id, record.error, None))
                continue
            if self._wanted is not None:
                if self._wanted.pop(record.id, None) is not None:
                    yield record
            elif record.id in self._seen:
                error = ShardError(
                    f"{record.id} came before in {shard.source}; give each item an id of its own.",
                    code="item_duplicate",
                )
                self._refuse(_letter(record.id, error, None))
            else:
                self._seen.add(record.id)
                yield record

    def _prepare(self, record: Record) -> _Prepared:
        """Read, decode and resize an image."""
        assert record.id is not None
        data: bytes | None = None
        try:
            data = record.read()
            patches = self._model.prepare(
                data, self._job.max_num_patches, record.id, exif_transpose=self._job.exif_transpose
            )
            return _Prepared(record.id, record.caption, patches)
        except (ImageError, ShardError) as error:
            return _Prepared(record.id, record.caption, _letter(record.id, error, data))

    def _queued(self, prepared: Iterable[_Prepared]) -> Iterator[Item[Patches]]:
        """The images as items; a dead letter is done."""
        for number, each in enumerate(prepared):
            if isinstance(each.result, Letter):
                self._refuse(each.result)
                continue
            patches = each.result
            self._waiting[number] = each
            yield Item(number, patches.bucket, len(patches.pixels), patches)

    def _refuse(self, letter: Letter) -> None:
        self.letters.append(letter)
        self.done += 1
        self._step(0, 1)

    def _add(self, prepared: _Prepared, vector: Array) -> None:
        assert isinstance(prepared.result, Patches)
        height, width = prepared.result.image_size
        block = self._block
        block.ids.append(prepared.id)
        block.vectors.append(vector)
        block.widths.append(width)
        block.heights.append(height)
        block.captions.append(prepared.caption)
        self.unrotated += prepared.result.orientation != 1
        self.rows += 1
        self.done += 1
        if len(block.ids) == BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self._block.ids:
            self._writer.write(self._block)
            self._block = Rows()


def _letter(id_: str | None, error: FgclipError, data: bytes | None) -> Letter:
    digest = None if data is None else hashlib.sha256(data).hexdigest()
    return Letter(id_, error.code, str(error), digest)
