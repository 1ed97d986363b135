"""Bundles on disk: opening one checks that all that its manifest lists is there and unaltered.

Other files in its folder are none of our business: those that a hub, a version control, a file manager or a mount adds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import msgspec

from . import interface
from .errors import ArgumentError, BundleError
from .manifest import FORMAT, FORMAT_VERSION, MOST_AREA, MOST_PATCHES, FileInfo, ImageSpec, Manifest, SquareSpec
from .shipped import locate, names

MANIFEST = "manifest.json"
#: A cache of built engines that may come and go; the manifest does not list it.
ENGINES = "engines"

_CHUNK = 1 << 20

#: Size in bytes, and time of modification in nanoseconds.
Stamp: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Bundle:
    """A folder of graphs, tokenizer, probe and manifest that has been checked.

    Attributes:
        path: the folder.
        manifest: its contents, decoded.
        manifest_sha256: digest of the manifest's file; a replaced bundle has another digest.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    _stamps: dict[str, Stamp] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, *, check_hashes: bool = True, graphs: bool = True) -> Bundle:
        """Open the bundle at ``folder``.

        Args:
            folder: its path, or the name of a bundle that comes with the package (:mod:`fgclip_rt.shipped`).
            check_hashes: compare every file's SHA-256 with the manifest. Without it only names and sizes are
                compared, which is faster for large bundles and trusts the disk.
            graphs: False for a folder that has the manifest and the tokenizer only, because its graphs run elsewhere.

        Raises:
            BundleError: the folder is not a bundle, a listed file is missing or altered, or the manifest is not as
                specified.
        """
        folder = locate(folder)
        path = folder / MANIFEST
        try:
            if not folder.is_dir():
                state = "is a file" if folder.exists() else "does not exist"
                raise BundleError(
                    f"{folder} {state}; give a bundle's folder, as 'fgclip-rt export' makes it, or "
                    f"{' or '.join(names())}, which comes with the package.",
                    code="bundle_missing",
                )
            text = path.read_bytes()
        except FileNotFoundError:
            raise BundleError(
                f"{folder} has no {MANIFEST}, so it is no bundle; make one with 'fgclip-rt export'.",
                code="bundle_missing",
            ) from None
        except OSError as error:
            raise BundleError(
                f"{path} cannot be read ({error.strerror}); check its permissions.", code="bundle_unreadable"
            ) from None
        bundle = cls(folder, decode_manifest(text, str(path)), hashlib.sha256(text).hexdigest())
        bundle._check_files(bundle.manifest.files if graphs else (bundle.manifest.text.tokenizer,), check_hashes)
        return bundle

    def check_precision(self, name: str) -> None:
        """Refuse a precision that no graph was exported in.

        Raises:
            ArgumentError: ``name`` is none of the manifest's.
        """
        available = self.manifest.precisions
        if name not in available:
            raise ArgumentError(
                f"this bundle has no precision {name!r}; choose from {', '.join(available)}.", code="precision_missing"
            )

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name

    def read_text(self, name: str) -> str:
        """Text of one of the bundle's files.

        Raises:
            BundleError: the file cannot be read or is not UTF-8.
        """
        try:
            return self.file(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{self.file(name)} cannot be read ({error}); export the bundle again.", code="bundle_unreadable"
            ) from None

    def check_unchanged(self) -> None:
        """Make sure that this is still the bundle that was opened: graphs are read when they are first needed.

        A file is read again only if its size or its time of modification is another than when the bundle was opened.

        Raises:
            BundleError: the folder was replaced or removed since, or a file was changed in place.
        """
        try:
            unchanged = sha256(self.path / MANIFEST) == self.manifest_sha256 and all(
                map(self._is_unchanged, self._stamps)
            )
        except OSError:
            unchanged = False
        if not unchanged:
            raise BundleError(
                f"{self.path} was replaced, changed or removed since it was opened; load it again.",
                code="bundle_replaced",
            )

    def other_files(self) -> Iterator[str]:
        """Names of what else the folder holds, as :func:`other_files`.

        Raises:
            BundleError: the folder cannot be read.
        """
        try:
            yield from other_files(self.path, self.manifest.files)
        except OSError as error:
            raise BundleError(
                f"{self.path} cannot be read ({error.strerror}); check its permissions.", code="bundle_unreadable"
            ) from None

    @property
    def size(self) -> int:
        """Bytes of all listed files."""
        return sum(info.size for info in self.manifest.files.values())

    def _check_files(self, names: Iterable[str], check_hashes: bool) -> None:
        for name in names:
            path, expected = self.path / name, self.manifest.files[name]
            try:
                state = path.stat()
                # Whoever opens a pipe waits for a writer.
                altered = not stat.S_ISREG(state.st_mode) or state.st_size != expected.size
                altered = altered or (check_hashes and sha256(path) != expected.sha256)
            except FileNotFoundError:
                raise BundleError(
                    f"{self.path} lacks {name}; copy the bundle again, or export it again.", code="bundle_incomplete"
                ) from None
            except OSError as error:
                raise BundleError(
                    f"{path} cannot be read ({error.strerror}); check its permissions.", code="bundle_unreadable"
                ) from None
            if altered:
                raise BundleError(
                    f"{path} is not the file that was exported; copy the bundle again, or export it again.",
                    code="bundle_altered",
                )
            self._stamps[name] = stamp(state)

    def _is_unchanged(self, name: str) -> bool:
        path, expected = self.path / name, self.manifest.files[name]
        state = path.stat()
        if stamp(state) == self._stamps[name]:
            return True
        unchanged = state.st_size == expected.size and sha256(path) == expected.sha256
        if unchanged:
            self._stamps[name] = stamp(state)
        return unchanged


def stamp(state: os.stat_result) -> Stamp:
    """Size and time of modification of a file; a write changes it."""
    return state.st_size, state.st_mtime_ns


def decode_manifest(text: bytes, where: str) -> Manifest:
    """Decode the text of a ``manifest.json``.

    Args:
        text: the file's bytes.
        where: its path, for messages.

    Raises:
        BundleError: it is not JSON, from another version, or not as specified.
    """
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON ({error}); export the bundle again.") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{where} is not the manifest of an fgclip-rt bundle; point at a folder made by export.")
    version = document.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleError(
            f"{where} has format version {version}, and this fgclip-rt reads {FORMAT_VERSION}; "
            "upgrade fgclip-rt, or export the bundle with this version.",
            code="bundle_newer",
        )
    if type(version) is int and 1 <= version < FORMAT_VERSION:
        raise BundleError(
            f"{where} has format version {version} of an earlier fgclip-rt, and this one reads {FORMAT_VERSION}; "
            "export the bundle again.",
            code="bundle_older",
        )
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{where} is not as specified: {error}; export the bundle again.") from None
    _check_references(manifest, where)
    return manifest


def listed_files(text: bytes) -> Collection[str] | None:
    """Names of the files that a manifest of any version lists; None if the text is no manifest."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    files = document.get("files")
    return list(files) if isinstance(files, dict) else None


def other_files(folder: Path, listed: Collection[str]) -> Iterator[str]:
    """Names of all in a bundle's folder but the manifest, the engines and the ``listed`` files.

    Args:
        folder: the bundle's.
        listed: names of the manifest's files, relative and with slashes.

    Yields:
        Names like those, in their order; a folder that holds no listed file is one name, which ends in a slash.

    Raises:
        OSError: a folder cannot be read that holds a listed file.
    """
    return _others(folder, "", {MANIFEST, ENGINES, *listed})


def _others(folder: Path, prefix: str, known: Collection[str]) -> Iterator[str]:
    for entry in sorted(folder.iterdir()):
        name = prefix + entry.name
        if name in known:
            continue
        if any(other.startswith(f"{name}/") for other in known):
            yield from _others(entry, f"{name}/", known)
        else:
            # A folder that we may not enter is a folder still.
            yield f"{name}/" if entry.is_dir() else name


def file_info(path: Path) -> FileInfo:
    """Size and digest of a file."""
    return FileInfo(size=path.stat().st_size, sha256=sha256(path))


def sha256(*paths: Path) -> str:
    """Hexadecimal SHA-256 over the bytes of files, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _check_references(manifest: Manifest, where: str) -> None:
    """Make sure that the parts of a manifest fit one another.

    Raises:
        BundleError: they do not.
    """
    for problem in _contradictions(manifest):
        raise BundleError(f"{where} {problem}; export the bundle again.")
    interface.check(manifest, where)


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """How parts of a manifest contradict one another, each as the end of a sentence whose subject is the manifest."""
    for name in manifest.files:
        pure = PurePosixPath(name)
        inside = not (pure.is_absolute() or ".." in pure.parts or "\\" in name or name in ("", ".", MANIFEST))
        if not inside or not name.isprintable():
            yield f"lists {name!r}, not a path inside the bundle"
    for name in (*manifest.text.walk_types, *(name for graph in manifest.graphs.values() for name in graph)):
        if not name.isprintable():
            yield f"gives a walk type or a precision the name {name!r}"
    yield from _image_contradictions(manifest.image)
    if "short" not in manifest.text.walk_types:
        yield "lists no walk type 'short', which every model has"
    named = [manifest.text.tokenizer, *manifest.parity.files]
    named += [entry.file for graph in manifest.graphs.values() for entry in graph.values()]
    for file in named:
        if file not in manifest.files:
            yield f"names {file!r} but does not list it under files"
    if not manifest.graphs or not manifest.precisions:
        yield "lists no precision that every graph has"
        return
    if ("region" in manifest.graphs) != (manifest.box_shares is not None):
        yield "has box_shares without a graph of regions, or the graph without them"
    for precision in manifest.precisions:
        if precision not in manifest.parity.limits:
            yield f"has no parity limits for {precision!r}"
    by_precision: dict[str, Collection[str]] = {
        "lowering": manifest.lowering,
        "parity.limits": manifest.parity.limits,
        "parity.measured": manifest.parity.measured,
    }
    for key, part in by_precision.items():
        for precision in part:
            if precision not in manifest.precisions:
                yield f"has {precision!r} under {key} but lists no such precision"


def _image_contradictions(image: ImageSpec) -> Iterator[str]:
    if image.channels != 3:
        yield f"gives pixels {image.channels} channels, and images are RGB"
    if isinstance(image, SquareSpec):
        if image.image_size % image.patch_size:
            yield f"cuts images of {image.image_size} pixels into patches of {image.patch_size}"
    elif list(image.buckets) != sorted(set(image.buckets)):
        yield f"lists the buckets {', '.join(map(str, image.buckets))}, which do not ascend"
    largest = image.buckets[-1]
    if largest > image.max_num_patches:
        yield f"lists a bucket of {largest} patches, more than max_num_patches ({image.max_num_patches})"
    if largest > MOST_PATCHES or largest * image.patch_size**2 > MOST_AREA:
        yield f"prepares images of {largest:,} patches of {image.patch_size} pixels, which would fill the memory"
