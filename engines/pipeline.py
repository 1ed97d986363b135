"""Bundle to engines: build those that are missing, each in a folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fgclip_rt.bundle import ENGINES, Bundle, file_info
from fgclip_rt.engine_files import (
    FORMAT,
    FORMAT_VERSION,
    RECIPE,
    RECORD,
    Engine,
    EngineKey,
    EngineRecord,
    Gpu,
    folder_name,
    read_engine,
)
from fgclip_rt.errors import ArgumentError, EngineError, check_positive
from fgclip_rt.outputs import cannot_write
from fgclip_rt.progress import BeginStage, silent
from fgclip_rt.shipped import is_shipped

from .cuda import find_gpu
from .libraries import CURRENT, LIBRARIES, EngineLibrary, needs_gpu, this_gpu
from .profiles import EngineSpec, Shapes, plan
from .task import Done, Task
from .workers import build_all


@dataclass(frozen=True)
class Built:
    """An engine that is there now, and whether it was there already."""

    engine: Engine
    cached: bool


def build(
    bundle: Bundle,
    backend: str,
    precisions: Sequence[str],
    *,
    targets: Sequence[str] = (),
    graphs: Sequence[str] | None = None,
    shapes: Shapes | None = None,
    strip_weights: bool = False,
    jobs: int = 1,
    rebuild: bool = False,
    begin: BeginStage = silent,
) -> list[Built]:
    """Build the engines of a bundle that are not there yet, in its folder ``engines/``.

    An engine is there when its key is: the same graph and weights, library, targets and shapes. When it ends early,
    whatever the reason, the engines that are finished stay and no other file does.

    Args:
        bundle: an opened bundle.
        backend: ``tensorrt``, ``tensorrt-rtx`` or ``onnxruntime-tensorrt``.
        precisions: of the bundle's.
        targets: targets to build for, by the library's names; none takes the library's default.
        graphs: names of graphs; None takes all.
        shapes: which shapes; None takes all that the bundle's preparation makes.
        strip_weights: leave the weights out of the engines, which then read them from the bundle when they are loaded.
        jobs: engines to build at the same time, each in a process of its own.
        rebuild: build the engines that are there too.
        begin: is told how far the build is.

    Returns:
        One per engine, in the order in which they are planned.

    Raises:
        ArgumentError: an argument cannot be used.
        MissingDependencyError: the library is not installed.
        EngineError: the library refused, crashed, or lacks the GPU that the target needs.
        DeviceError: CUDA cannot use the GPU that the target needs.
        OutputError: the folder cannot be written.
    """
    if is_shipped(bundle.path):
        raise ArgumentError(
            f"{bundle.path.name} comes with the package, whose folder is not written to; copy it with "
            f"'cp -r {bundle.path} FOLDER', and build engines for the copy."
        )
    if backend not in LIBRARIES:
        raise ArgumentError(f"backend {backend!r} is unknown; choose from {', '.join(LIBRARIES)}.")
    check_positive("jobs", jobs, most=256)
    if not precisions:
        raise ArgumentError(f"no precision was asked for; choose from {', '.join(bundle.manifest.precisions)}.")
    try:
        str(bundle.path.absolute()).encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{bundle.path} is not UTF-8, as the libraries need it; rename the folder.") from None
    specs = plan(bundle.manifest, precisions, graphs, shapes)
    library = LIBRARIES[backend]()
    asked = library.check_targets(targets)
    by_spec = [asked or library.default_targets(spec.precision) for spec in specs]
    if strip_weights:
        for each in by_spec:
            library.check_strippable(each)
    local = next(filter(needs_gpu, by_spec), None)
    gpu = None if local is None else this_gpu(local, find_gpu)
    folder = _Folder(bundle, library, gpu)
    wanted = [
        _Wanted(spec, each, _key(bundle, spec, _Target(library, each, gpu, strip_weights)))
        for spec, each in zip(specs, by_spec, strict=True)
    ]
    found = {} if rebuild else {entry.name: engine for entry in wanted if (engine := folder.find(entry.name))}
    missing = [entry for entry in wanted if entry.name not in found]
    built = folder.build(missing, jobs, begin) if missing else {}
    return [Built({**found, **built}[entry.name], entry.name in found) for entry in wanted]


@dataclass(frozen=True)
class _Target:
    """The library of an engine, and the GPUs that it is built for.

    Attributes:
        library: the library.
        asked: the targets, by the library's names.
        gpu: the GPU of this machine, if the targets need it.
        stripped: whether weights are left out.
    """

    library: EngineLibrary
    asked: Sequence[str]
    gpu: Gpu | None
    stripped: bool

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets as they stand in a key."""
        if CURRENT in self.asked:
            assert self.gpu is not None
            return (self.gpu.capability,)
        return tuple(self.asked)

    @property
    def tuned_on(self) -> str | None:
        """Name of the GPU that the engine is tuned on and for; None if it runs on others as well."""
        return self.gpu.name if self.gpu is not None and self.library.tunes and CURRENT in self.asked else None


@dataclass(frozen=True)
class _Wanted:
    """An engine that was asked for, and its targets by the library's names."""

    spec: EngineSpec
    targets: Sequence[str]
    key: EngineKey

    @property
    def name(self) -> str:
        """Of its folder."""
        return folder_name(self.key)


def _key(bundle: Bundle, spec: EngineSpec, target: _Target) -> EngineKey:
    # Imported here because running engines does not need onnx.
    from .network import weight_files

    files, weights = bundle.manifest.files, weight_files(bundle.file(spec.file))
    return EngineKey(
        graph=spec.graph,
        precision=spec.precision,
        files={name: files[name].sha256 for name in (spec.file, *weights)},
        library=target.library.identity,
        targets=target.targets,
        gpu=target.tuned_on,
        profiles=dict(spec.profiles),
        stripped=target.stripped and bool(weights),
        recipe=RECIPE,
    )


class _Folder:
    """The folder ``engines/`` of a bundle."""

    def __init__(self, bundle: Bundle, library: EngineLibrary, gpu: Gpu | None) -> None:
        self._bundle = bundle
        self._library = library
        self._gpu = gpu
        self._path = bundle.path / ENGINES

    def find(self, name: str) -> Engine | None:
        """The engine in the folder ``name`` if it is there and intact; one that is damaged counts as missing."""
        path = self._path / name
        if not path.is_dir():
            return None
        try:
            engine = read_engine(path)
            engine.check()
        except EngineError:
            return None
        return engine

    def build(self, wanted: Sequence[_Wanted], jobs: int, begin: BeginStage) -> dict[str, Engine]:
        """Build engines, instead of any that are there, and return them by the names of their folders."""
        partial = self._path / f".partial-{uuid.uuid4().hex}"
        keys = {entry.name: entry.key for entry in wanted}
        built: dict[str, Engine] = {}

        def finished(task: Task, done: Done) -> None:
            folder = Path(task.plan).parent
            built[folder.name] = self._put_in_place(folder, keys[folder.name], Path(task.plan).name, done)

        try:
            tasks = [self._task(entry, partial / entry.name) for entry in wanted]
            for task in tasks:
                Path(task.plan).parent.mkdir(parents=True)
            progress = begin(f"build {_counted(len(tasks))}", 100 * len(tasks))
            build_all(self._library.name, tasks, jobs, finished, progress)
        except OSError as error:
            remedy = "check the disk's space and the folder's permissions"
            raise cannot_write(self._path, error, remedy, _kept(built)) from None
        except EngineError as error:
            raise EngineError(f"{str(error).rstrip('.')}; {_kept(built)}.", code=error.code) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_kept(built)) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._path.rmdir()  # it is empty if nothing was finished
        return built

    def _task(self, wanted: _Wanted, folder: Path) -> Task:
        cache = self._library.timing_cache(self._gpu)
        return Task(
            graph=str(self._bundle.file(wanted.spec.file)),
            fixed=wanted.spec.fixed,
            profiles=self._library.profiles(wanted.spec),
            targets=wanted.targets,
            strip=wanted.key.stripped,
            plan=str(folder / self._library.plan_name),
            timing_cache=None if cache is None else str(self._path / cache),
        )

    def _put_in_place(self, partial: Path, key: EngineKey, plan: str, done: Done) -> Engine:
        record = EngineRecord(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            key=key,
            sha256=key.digest,
            plan=plan,
            files={path.name: file_info(path) for path in sorted(partial.iterdir())},
            seconds=round(done.seconds, 3),
            layers=done.layers,
        )
        (partial / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        # The graph may have been another's while the library read it.
        self._bundle.check_unchanged()
        folder = self._path / partial.name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another build of the same was quicker.
            return read_engine(folder)
        return Engine(folder, record)


def _kept(built: Mapping[str, Engine]) -> str:
    return f"{_counted(len(built))} finished before and kept" if built else "no engine was built"


def _counted(engines: int) -> str:
    return f"{engines} engine{'' if engines == 1 else 's'}"
