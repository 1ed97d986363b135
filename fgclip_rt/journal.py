"""Vectors of a run that has not ended, in a hidden folder beside its output, from which a later run can go on.

``vectors`` holds them as float32, in the order in which batches were done. Each line of ``journal`` is JSON that names
the inputs of a batch and holds its checksum, so that a batch that was not written whole is known. ``work`` says which
work it is.
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeAlias

import msgspec
import numpy as np

from .arrays import FloatArray, IntArray
from .errors import OutputError
from .outputs import cannot_write, first_change

#: Size in bytes and time of change in nanoseconds of an input's file; None if it has none.
Stamp: TypeAlias = tuple[int, int] | None

Setting: TypeAlias = str | int | bool | None


class Work(msgspec.Struct, frozen=True):
    """The work that vectors are for. Vectors of other work are of no use.

    Attributes:
        settings: by the name that a user knows, everything besides the inputs that vectors depend on.
        inputs: digest of the inputs in their order.
        count: number of vectors in all.
        width: D of each.
    """

    settings: dict[str, Setting]
    inputs: str
    count: int
    width: int


class _Batch(msgspec.Struct, frozen=True):
    """A line of the journal: the inputs of a batch, their files, and the CRC-32 of their vectors' bytes.

    ``unrotated`` lists those of the inputs that are images with a rotation that was not applied.
    """

    items: list[int]
    files: list[Stamp]
    unrotated: list[int]
    crc: int


def check_no_journal(output: Path) -> None:
    """Refuse an output that an interrupted run has begun.

    Raises:
        OutputError: the vectors of such a run are there.
    """
    if _folder(output).exists():
        raise OutputError(
            f"{output} was begun by a run that did not end; go on with --resume, or begin anew with --overwrite.",
            code="output_unfinished",
        )


def digest(inputs: Iterable[str]) -> str:
    """Digest of inputs in their order, for :class:`Work`."""
    total = hashlib.sha256()
    for text in inputs:
        data = text.encode()
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.hexdigest()


def stamp(path: str) -> Stamp:
    """The stamp of a file; None if it is not there."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class Journal:
    """The vectors of a run, each batch safe once it is added. As a context, it is removed when the block ends well.

    If the block ends by an error, the vectors stay for a later run, if there are any.

    Attributes:
        folder: its folder, which may also take what the run writes besides.
        positions: int32 [count]; for each input, the row of its vector in :meth:`vectors`, -1 if it has none yet.
        unrotated: the inputs that are images with a rotation that was not applied.
    """

    def __init__(
        self,
        output: Path,
        work: Work,
        stamp_of: Callable[[int], Stamp],
        *,
        resume: bool,
        option: str = "--output",
    ) -> None:
        """Begin anew, or go on if ``resume`` is set and vectors are there.

        Args:
            output: the output of the run.
            work: which work it is.
            stamp_of: gives the stamp of an input's file as it is now. A vector of another file is not taken up.
            resume: whether to go on.
            option: the option that names the output, in messages.

        Raises:
            OutputError: the vectors are those of other work, another run writes them now, or the folder cannot be
                written.
        """
        self.folder = _folder(output)
        self.positions: IntArray = np.full(work.count, -1, np.int32)
        self.unrotated: set[int] = set()
        self._output, self._work, self._end = output, work, 0
        self._remedy = f"choose another {option}"
        try:
            self.folder.mkdir(exist_ok=True)
            # Unbuffered, so that a batch is in the system's hands once it is added, whatever becomes of this process.
            self._vectors = (self.folder / "vectors").open("ab", buffering=0)
            self._journal = (self.folder / "journal").open("ab", buffering=0)
            _lock(self._journal, output, option)
            begun = self._begun() if resume else None
            if begun is None:
                self._truncate(0, 0)
                (self.folder / "work").write_bytes(msgspec.json.encode(work))
            else:
                _check_same(output, begun, work)
                self._truncate(*self._take_up(stamp_of))
        except OSError as error:
            if not resume:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise cannot_write(output, error, self._remedy) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._vectors.close()
        self._journal.close()
        if kind is None or not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def kept(self) -> int:
        """Number of inputs whose vectors are there."""
        return int(np.count_nonzero(self.positions >= 0))

    def missing(self, first: int, count: int) -> list[int]:
        """The inputs without a vector among ``count`` from ``first`` on."""
        return (first + np.flatnonzero(self.positions[first : first + count] < 0)).tolist()

    def add(
        self, items: Sequence[int], vectors: FloatArray, files: Sequence[Stamp], unrotated: Sequence[int] = ()
    ) -> None:
        """Keep the vectors of a batch.

        Args:
            items: the inputs, by their number in the work.
            vectors: float32 [b, D].
            files: the stamp of each input's file before it was read.
            unrotated: those of the inputs that are images with a rotation that was not applied.

        Raises:
            OutputError: writing failed.
        """
        data = np.ascontiguousarray(vectors, np.float32).tobytes()
        line = msgspec.json.encode(_Batch(list(items), list(files), list(unrotated), zlib.crc32(data))) + b"\n"
        try:
            _write(self._vectors, data)
            _write(self._journal, line)
        except OSError as error:
            raise cannot_write(self._output, error, self._remedy) from None
        self._place(items)
        self.unrotated.update(unrotated)

    def vectors(self) -> FloatArray:
        """All vectors, float32 [n, D], mapped from the disk, in the order of :attr:`positions`."""
        shape = (self._end, self._work.width)
        if not self._end:
            return np.zeros(shape, np.float32)
        return np.memmap(self.folder / "vectors", np.float32, "r", shape=shape)

    def _place(self, items: Sequence[int]) -> None:
        self.positions[items] = np.arange(self._end, self._end + len(items), dtype=np.int32)
        self._end += len(items)

    def _begun(self) -> Work | None:
        """The work that was begun; None if the run was ended before it could write that down."""
        try:
            return msgspec.json.decode((self.folder / "work").read_bytes(), type=Work)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _take_up(self, stamp_of: Callable[[int], Stamp]) -> tuple[int, int]:
        """Take up the batches before the first that is not whole; returns the bytes of their vectors and lines."""
        size = used = 0
        with (self.folder / "journal").open("rb") as lines, (self.folder / "vectors").open("rb") as vectors:
            for line in lines:
                batch = _decode(line, self._work.count)
                if batch is None:
                    break
                expected = 4 * self._work.width * len(batch.items)
                data = vectors.read(expected)
                if len(data) < expected or zlib.crc32(data) != batch.crc:
                    break
                self._place(batch.items)
                self.unrotated.update(batch.unrotated)
                for item, file in zip(batch.items, batch.files, strict=True):
                    if stamp_of(item) != file:
                        self.positions[item] = -1
                        self.unrotated.discard(item)
                size, used = size + expected, used + len(line)
        return size, used

    def _truncate(self, vectors: int, journal: int) -> None:
        self._vectors.truncate(vectors)
        self._journal.truncate(journal)


def _folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.unfinished")


def _decode(line: bytes, count: int) -> _Batch | None:
    """A line of the journal; None if it was not written whole."""
    try:
        batch = msgspec.json.decode(line, type=_Batch)
    except msgspec.DecodeError:
        return None
    whole = line.endswith(b"\n") and len(batch.items) == len(batch.files)
    return batch if whole and all(0 <= item < count for item in batch.items) else None


def _check_same(output: Path, begun: Work, work: Work) -> None:
    names = sorted(begun.settings | work.settings)
    then, now = ({name: each.settings.get(name) for name in names} for each in (begun, work))
    change = first_change(then, now)
    if change is not None:
        raise OutputError(f"{output} was begun {change}, or begin anew with --overwrite.", code="output_unfinished")
    if begun != work:
        raise OutputError(
            f"{output} was begun for other inputs ({begun.count:,} then, {work.count:,} now); restore them, or begin "
            "anew with --overwrite.",
            code="output_unfinished",
        )


def _lock(file: BinaryIO, output: Path, option: str) -> None:
    """Make sure that no other run writes this journal; the lock ends with the process.

    Raises:
        OutputError: another run does.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"{output} is being written by another run; wait for it, or choose another {option}."
        ) from None


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``; an unbuffered file may take less at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
