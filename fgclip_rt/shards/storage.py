"""Files of a job, on disks and in object stores; a URL takes fsspec, and a path needs nothing."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import msgspec

from ..errors import FgclipError, OutputError, ShardError, reason
from ..outputs import cannot_write
from ..packages import require
from .job import Job, Marker, check_same_job

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::|://)", re.IGNORECASE)

#: Bytes of an input that are read at once.
_BUFFER = 1 << 18

_T = TypeVar("_T")

#: Suffix of a marker; ``job.json`` has it too.
_MARKER, JOB = ".json", "job.json"

#: Folder of a local output for files that are not whole.
_UNFINISHED = ".unfinished"


def is_url(location: str) -> bool:
    """Whether a location is a URL for fsspec and not a path."""
    return _URL.match(location) is not None


def open_url(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        MissingDependencyError: fsspec, or the package of this kind of store, is not installed.
        ShardError: no store is known for the URL, or it refuses.
    """
    require("fsspec", ["fsspec"], "URLs of files need {}, which is not installed")
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ShardError(f"{url} cannot be opened ({reason(error)}); install the package of this store.") from None
    except Exception as error:  # the stores' libraries have errors of their own
        raise cannot_open(url, error) from None
    return found


def opened(location: str) -> IO[bytes]:
    """A file to read, by its path or URL.

    Raises:
        ShardError: it cannot be opened, or later, not be read.
    """
    try:
        file = _open(location)
    except FgclipError:
        raise
    except Exception as error:  # as above
        raise cannot_open(location, error) from None
    return io.BufferedReader(_Source(file, location), _BUFFER)


def _open(location: str) -> IO[bytes]:
    if is_url(location):
        system, path = open_url(location)
        file: IO[bytes] = system.open(path, "rb")
        return file
    return Path(location).open("rb", buffering=0)


class _Source(io.RawIOBase):
    """A file that tells a disk or a store that fails from content that is damaged, at which its decoder fails."""

    def __init__(self, file: IO[bytes], location: str) -> None:
        self._file, self._location = file, location

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._try(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._try(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._try(self._file.tell)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _try(self, function: Callable[..., _T], *arguments: int) -> _T:
        try:
            return function(*arguments)
        except Exception as error:  # as above
            raise ShardError(
                f"{self._location} cannot be read ({_why(error)}); repeat the command, for images with --retry-errors."
            ) from None


def cannot_open(location: str, error: Exception) -> ShardError:
    """The error for an input that cannot be opened."""
    return ShardError(f"{location} cannot be opened ({_why(error)}); check the path and the permissions.")


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else reason(error)


class Store(Protocol):
    """The output of a job. Its files appear whole or not at all.

    Attributes:
        root: path or URL of the folder.
    """

    root: str

    def claim(self, job: Job) -> None:
        """Make the folder one of ``job``.

        Raises:
            ShardError: it is another job's, or no job's.
            OutputError: it cannot be written.
        """

    def job(self) -> Job:
        """The job whose output this is.

        Raises:
            ShardError: it is no job's, or damaged.
        """

    def markers(self) -> dict[str, Marker]:
        """The markers of the shards that are done, by their names."""

    def marker(self, name: str) -> Marker | None:
        """The marker of a shard; None if it is not done."""

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A local folder for files that are not whole yet."""

    def fetch(self, name: str, folder: Path) -> Path:
        """A local copy, in ``folder``, of a file of the output; or the file itself."""

    def commit(self, folder: Path, marker: Marker, files: dict[str, Path | None]) -> None:
        """Put the files of a shard in place, and then its marker.

        Args:
            folder: the workspace.
            marker: the marker.
            files: by their names below the folder, the local files, which are used up; None removes one of that name.

        Raises:
            OutputError: writing failed.
        """


def open_store(root: str) -> Store:
    """The output at a path or URL."""
    return _RemoteStore(root) if is_url(root) else _LocalStore(root)


class _LocalStore:
    def __init__(self, root: str) -> None:
        self.root = root
        self._path = Path(root)

    def claim(self, job: Job) -> None:
        path = self._path / JOB
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(entry.name != _UNFINISHED for entry in self._path.iterdir()):
                    raise _not_a_job(self.root)
                with self.workspace() as folder:
                    new = folder / JOB
                    new.write_bytes(_encode(job))
                    # Of several runs that begin at once, the first makes it.
                    with contextlib.suppress(FileExistsError):
                        os.link(new, path)
            check_same_job(self.root, _decode_job(self.root, path.read_bytes()), job)
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def job(self) -> Job:
        try:
            return _decode_job(self.root, (self._path / JOB).read_bytes())
        except OSError as error:
            raise cannot_open(f"{self.root}/{JOB}", error) from None

    def markers(self) -> dict[str, Marker]:
        names = (path.name.removesuffix(_MARKER) for path in self._path.glob(f"*{_MARKER}") if path.name != JOB)
        found = ((name, self.marker(name)) for name in names)
        # Another run may be about to replace one.
        return {name: marker for name, marker in found if marker is not None}

    def marker(self, name: str) -> Marker | None:
        path = self._path / f"{name}{_MARKER}"
        try:
            return _decode_marker(str(path), path.read_bytes())
        except FileNotFoundError:
            return None

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder on the same disk. Those of processes that died are removed."""
        parent = self._path / _UNFINISHED
        folder = parent / uuid.uuid4().hex
        with contextlib.ExitStack() as held:
            try:
                parent.mkdir(parents=True, exist_ok=True)
                # A folder that is new and not held yet must not be taken for one that was left behind.
                with _lock(parent, wait=True):
                    for other in parent.iterdir():
                        with _lock(other) as free:
                            if free:
                                shutil.rmtree(other, ignore_errors=True)
                    folder.mkdir()
                    held.enter_context(_lock(folder))
            except OSError as error:
                raise cannot_write(self._path, error) from None
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            yield folder

    def fetch(self, name: str, folder: Path) -> Path:  # noqa: ARG002 (others copy it)
        return self._path / name

    def commit(self, folder: Path, marker: Marker, files: dict[str, Path | None]) -> None:
        place = self._path / f"{marker.shard}{_MARKER}"
        try:
            # While the others change, the shard is not done.
            place.unlink(missing_ok=True)
            for name, file in files.items():
                target = self._path / name
                if file is None:
                    target.unlink(missing_ok=True)
                    continue
                target.parent.mkdir(exist_ok=True)
                _sync(file)
                file.replace(target)
            partial = folder / place.name
            partial.write_bytes(_encode(marker))
            _sync(partial)
            partial.replace(place)
        except OSError as error:
            raise cannot_write(self._path, error) from None


class _RemoteStore:
    """A folder of an object store, in which each upload of a whole file is one step."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._system, self._path = open_url(self.root)

    def claim(self, job: Job) -> None:
        path = self._name(JOB)
        with self._writing():
            self._system.makedirs(self._path, exist_ok=True)
            if not self._system.exists(path):
                if self._system.ls(self._path, detail=False, refresh=True):
                    raise _not_a_job(self.root)
                self._system.pipe_file(path, _encode(job))
            check_same_job(self.root, _decode_job(self.root, self._system.cat_file(path)), job)

    def job(self) -> Job:
        try:
            data = self._system.cat_file(self._name(JOB))
        except Exception as error:  # the stores' libraries have errors of their own
            raise cannot_open(f"{self.root}/{JOB}", error) from None
        return _decode_job(self.root, data)

    def markers(self) -> dict[str, Marker]:
        try:
            listed = self._system.ls(self._path, detail=False, refresh=True)
            paths = [path for path in listed if path.endswith(_MARKER) and not path.endswith("/" + JOB)]
            # One call, since a store answers many at once and takes tenths of a second for each.
            found = self._system.cat(paths) if len(paths) > 1 else {path: self._system.cat_file(path) for path in paths}
        except Exception as error:  # the stores' libraries have errors of their own
            raise cannot_open(self.root, error) from None
        return {
            path.rsplit("/", 1)[-1].removesuffix(_MARKER): _decode_marker(path, data) for path, data in found.items()
        }

    def marker(self, name: str) -> Marker | None:
        path = self._name(f"{name}{_MARKER}")
        try:
            return _decode_marker(path, self._system.cat_file(path))
        except FileNotFoundError:
            return None
        except FgclipError:
            raise
        except Exception as error:  # as above
            raise cannot_open(self.root, error) from None

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder of this machine."""
        with tempfile.TemporaryDirectory(prefix="fgclip-rt-") as folder:
            yield Path(folder)

    def fetch(self, name: str, folder: Path) -> Path:
        copy = folder / f"old-{name.rsplit('/', 1)[-1]}"
        try:
            self._system.get_file(self._name(name), str(copy))
        except Exception as error:  # as above
            raise cannot_open(f"{self.root}/{name}", error) from None
        return copy

    def commit(self, folder: Path, marker: Marker, files: dict[str, Path | None]) -> None:  # noqa: ARG002 (as above)
        with self._writing():
            place = self._name(f"{marker.shard}{_MARKER}")
            self._remove(place)
            for name, file in files.items():
                if file is None:
                    self._remove(self._name(name))
                else:
                    self._system.makedirs(self._name(name).rsplit("/", 1)[0], exist_ok=True)
                    self._system.put_file(str(file), self._name(name))
            self._system.pipe_file(place, _encode(marker))

    def _name(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _remove(self, path: str) -> None:
        if self._system.exists(path):
            self._system.rm_file(path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except FgclipError:
            raise
        except Exception as error:  # as above
            raise OutputError(f"{self.root} cannot be written ({reason(error)}); choose another --output.") from None


def _not_a_job(root: str) -> OutputError:
    return OutputError(
        f"{root} has files and no {JOB}, so it is no output of embed-shards; choose another --output.",
        code="output_exists",
    )


def _encode(document: Job | Marker) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _decode_job(root: str, data: bytes) -> Job:
    try:
        return msgspec.json.decode(data, type=Job)
    except msgspec.DecodeError as error:
        raise _damaged(f"{root}/{JOB}", error) from None


def _decode_marker(path: str, data: bytes) -> Marker:
    try:
        return msgspec.json.decode(data, type=Marker)
    except msgspec.DecodeError as error:
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> ShardError:
    return ShardError(f"{path} is damaged ({error}); remove it to have the shard done again.", code="shard_mismatch")


def _sync(path: Path) -> None:
    """Have a file on the disk before another can say that it is there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _lock(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a folder, at most until the process ends; yields whether it is held."""
    try:
        import fcntl
    except ImportError:  # Windows, where the folders of processes that died stay
        yield False
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # its process has removed it
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
