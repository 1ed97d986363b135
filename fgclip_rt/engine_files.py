"""Built engines on disk: their record ``engine.json``, and whether an engine fits a bundle, a library and a GPU.

Every engine lies in a folder of its own below the bundle's ``engines/``: the library's own file, called the plan, and
``engine.json``. The record's key says all that the plan depends on, and its digest ends the folder's name. So an engine
that was built already is found again, and a stale engine never is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from .bundle import ENGINES, Bundle, sha256
from .errors import EngineError
from .manifest import FileInfo, Natural, Strict, TensorSpec

FORMAT: Literal["fgclip-rt-engine"] = "fgclip-rt-engine"
#: The version that this package writes, and the only one that it reads.
FORMAT_VERSION: Literal[1] = 1

RECORD = "engine.json"

#: In the folder of a stripped engine, the graph that its weights are found by; they lie beside the bundle's graphs.
REFIT = "refit.onnx"

#: Changes when the same key would make another plan, because this package makes networks in another way.
RECIPE = 3

#: The reason that lies in the machine: the engine itself may be the right one.
NO_GPU = "there is no NVIDIA GPU"

#: GPUs of any model from Ampere (sm80) on.
AMPERE_PLUS = "ampere+"


class Profile(Strict, frozen=True):
    """Shapes of an input: the smallest, the one that kernels are chosen for, and the largest."""

    min: tuple[Natural, ...]
    opt: tuple[Natural, ...]
    max: tuple[Natural, ...]


class Library(Strict, frozen=True):
    """The library that builds and runs an engine."""

    name: Literal["tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt"]
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class EngineKey(Strict, frozen=True):
    """All that a plan depends on.

    Attributes:
        graph: name of the graph.
        precision: one of the bundle's; the first of them if several share the graph's file.
        files: SHA-256 of the graph's file and of every file of weights that it reads.
        library: the library that built it, and the only one that runs it.
        targets: compute capabilities that it runs on, such as ``sm89``, or :data:`AMPERE_PLUS`.
        gpu: name of the GPU that it was tuned on and for; None if the library tunes nothing, or not for one GPU.
        profiles: profile of each input, by its name.
        stripped: whether the plan lacks its weights, which are read from the bundle when it is loaded.
        recipe: value of :data:`RECIPE` at the build.
    """

    graph: str
    precision: str
    files: dict[str, str]
    library: Library
    targets: tuple[str, ...]
    gpu: str | None
    profiles: dict[str, Profile]
    stripped: bool
    recipe: int

    @property
    def digest(self) -> str:
        """SHA-256 of the key."""
        text = json.dumps(msgspec.to_builtins(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class EngineRecord(Strict, frozen=True):
    """The whole ``engine.json``.

    Attributes:
        key: all that the plan depends on.
        sha256: the key's digest.
        plan: name of the file to load.
        files: size and digest of every other file in the folder.
        seconds: seconds that the build took.
        layers: number of the network's layers before the library fuses them; None if it does not say.
    """

    format: Literal["fgclip-rt-engine"]
    format_version: Literal[1]
    key: EngineKey
    sha256: str
    plan: str
    files: dict[str, FileInfo]
    seconds: float
    layers: Natural | None


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: its name, and its compute capability, such as ``sm89``."""

    name: str
    capability: str

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"

    @property
    def slug(self) -> str:
        """The name in small letters, digits and hyphens, for names of files."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Engine:
    """A folder that holds an engine, and its record."""

    path: Path
    record: EngineRecord

    @property
    def key(self) -> EngineKey:
        return self.record.key

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(info.size for info in self.record.files.values())

    def check(self) -> None:
        """Compare every file with its digest.

        Raises:
            EngineError: a file is missing or is not the one that was built.
        """
        for name, info in self.record.files.items():
            path = self.path / name
            try:
                intact = sha256(path) == info.sha256
            except OSError as error:
                raise EngineError(
                    f"{path} cannot be read ({error.strerror}); {_REMEDY}.", code="engine_damaged"
                ) from None
            if not intact:
                raise EngineError(f"{path} is not the file that was built; {_REMEDY}.", code="engine_damaged")


_REMEDY = "build it again with 'fgclip-rt build', or remove its folder"


def has_engines(bundle: Bundle) -> bool:
    """Whether a bundle may have engines. It reads none, so it is cheap."""
    return (bundle.path / ENGINES).is_dir()


def find_engines(bundle: Bundle) -> list[Engine]:
    """The engines in a bundle's folder, whether they fit or not, in the order of their names.

    Raises:
        EngineError: a folder holds no engine, or one that is damaged.
    """
    if not has_engines(bundle):
        return []
    # An unfinished build has a hidden name, and files here are caches of the libraries.
    folder = bundle.path / ENGINES
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise EngineError(
            f"{folder} cannot be read ({error.strerror}); check its permissions, or remove it.", code="engine_damaged"
        ) from None
    return [read_engine(path) for path in entries if path.is_dir() and path.name[0] != "."]


def read_engine(folder: Path) -> Engine:
    """Read the record of the engine in ``folder``, and compare the sizes of its files.

    Raises:
        EngineError: the folder holds no engine, or one that is damaged.
    """
    path = folder / RECORD
    try:
        record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); {_REMEDY}.", code="engine_damaged") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"{path} is not as specified ({error}); {_REMEDY}.", code="engine_damaged") from None
    if record.sha256 != record.key.digest or not folder.name.endswith(_suffix(record.key)):
        raise EngineError(
            f"{path} was altered or moved, for its key has another digest; {_REMEDY}.", code="engine_damaged"
        )
    if record.plan not in record.files:
        raise EngineError(
            f"{path} names {record.plan} but does not list it under files; {_REMEDY}.", code="engine_damaged"
        )
    for name, info in record.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise EngineError(
                f"{folder / name} cannot be read ({error.strerror}); {_REMEDY}.", code="engine_damaged"
            ) from None
        if size != info.size:
            raise EngineError(f"{folder / name} is not the file that was built; {_REMEDY}.", code="engine_damaged")
    return Engine(folder, record)


def folder_name(key: EngineKey) -> str:
    """Name of an engine's folder: a description for readers, and the key's digest for certainty."""
    sizes = "-".join(str(size) for size in dict.fromkeys(_fixed_sizes(key)))
    parts = [key.graph, key.precision, sizes, key.library.name]
    return "-".join(part for part in parts if part) + _suffix(key)


def _suffix(key: EngineKey) -> str:
    return f"-{key.digest[:12]}"


def _fixed_sizes(key: EngineKey) -> list[int]:
    """Second axis of the first input: the number of patches or tokens."""
    first = next(iter(key.profiles.values()))
    return [first.opt[1]] if len(first.opt) > 1 else []


def axes(profiles: Mapping[str, Profile], inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, int, int]]:
    """Range (min, opt, max) of every named axis of a graph's inputs, by the axis's name."""
    ranges = {}
    for spec in inputs:
        profile = profiles[spec.name]
        for axis, *sizes in zip(spec.shape, profile.min, profile.opt, profile.max, strict=True):
            if isinstance(axis, str):
                ranges[axis] = (sizes[0], sizes[1], sizes[2])
    return ranges


def misfit(key: EngineKey, bundle: Bundle, installed: Mapping[str, str], gpu: Gpu | None) -> str | None:
    """The reason why an engine does not fit, as part of a sentence; None if it fits.

    Args:
        key: the engine's key.
        bundle: the bundle to run.
        installed: version of every installed library, by its name.
        gpu: the GPU; None if there is none.
    """
    if key.recipe != RECIPE:
        return f"it was built in the way of another fgclip-rt (recipe {key.recipe}, here {RECIPE})"
    files = bundle.manifest.files
    for name, digest in key.files.items():
        if name not in files or files[name].sha256 != digest:
            return f"it was built from another bundle, whose {name} differs"
    library = key.library
    if library.name not in installed:
        return f"it needs {library}, which is not installed"
    if installed[library.name] != library.version:
        return f"it was built with {library}, and {installed[library.name]} is installed"
    if gpu is None:
        return NO_GPU
    if gpu.capability not in key.targets and not (AMPERE_PLUS in key.targets and _is_ampere_plus(gpu)):
        return f"it was built for {', '.join(key.targets)}, and this GPU is {gpu}"
    if key.gpu not in (None, gpu.name):
        return f"it was tuned on {key.gpu}, and this GPU is {gpu}"
    return None


def _is_ampere_plus(gpu: Gpu) -> bool:
    return int(gpu.capability.removeprefix("sm")) >= 80
