"""Bundles on disk: opening one checks that it is whole, unaltered and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from .errors import ArgumentError, BundleError
from .manifest import FORMAT, FORMAT_VERSION, FileInfo, Manifest, SquareSpec

MANIFEST = "manifest.json"
#: A cache of built engines that may come and go; the only thing in a bundle that the manifest does not list.
ENGINES = "engines"

_CHUNK = 1 << 20


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

    @classmethod
    def open(cls, folder: Path, *, check_hashes: bool = True) -> Bundle:
        """Open the bundle at ``folder``.

        Args:
            folder: its path.
            check_hashes: compare every file's SHA-256 with the manifest. Without it only names and sizes are
                compared, which is faster for large bundles and trusts the disk.

        Raises:
            BundleError: the folder is not a bundle, a file is missing, extra or altered, or the manifest is not as
                specified.
        """
        if not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            raise BundleError(
                f"{folder} {state}; give a bundle's folder, as 'fgclip-rt export' makes it.", code="bundle_missing"
            )
        path = folder / MANIFEST
        try:
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
        bundle._check_files(check_hashes)
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

        Raises:
            BundleError: the folder was replaced or removed since.
        """
        try:
            unchanged = sha256(self.path / MANIFEST) == self.manifest_sha256
        except OSError:
            unchanged = False
        if not unchanged:
            raise BundleError(
                f"{self.path} was replaced or removed since it was opened; load it again.", code="bundle_replaced"
            )

    @property
    def size(self) -> int:
        """Bytes of all listed files."""
        return sum(info.size for info in self.manifest.files.values())

    def _check_files(self, check_hashes: bool) -> None:
        listed = self.manifest.files
        for name in listed:
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name or name in ("", MANIFEST):
                raise BundleError(
                    f"{self.path / MANIFEST} lists {name!r}, not a path inside the bundle; export it again."
                )
        for name in list_files(self.path):
            if name not in listed:
                raise BundleError(
                    f"{self.path} holds {name}, which its manifest does not list; remove that file.",
                    code="bundle_extra_file",
                )
        for name, expected in listed.items():
            path = self.path / name
            try:
                size = path.stat().st_size
                altered = size != expected.size or (check_hashes and sha256(path) != expected.sha256)
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


def list_files(folder: Path) -> list[str]:
    """Names of the files that make up a bundle, relative and with slashes: all but the manifest and the engines."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [name.as_posix() for name in names if name.parts[0] not in (MANIFEST, ENGINES)]


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
    image = manifest.image
    if isinstance(image, SquareSpec) and image.image_size % image.patch_size:
        raise BundleError(
            f"{where} cuts images of {image.image_size} pixels into patches of {image.patch_size}; "
            "export the bundle again."
        )
    named = [manifest.text.tokenizer, manifest.parity.probe]
    named += [entry.file for graph in manifest.graphs.values() for entry in graph.values()]
    for file in named:
        if file not in manifest.files:
            raise BundleError(f"{where} names {file} but does not list it under files; export the bundle again.")
    if not manifest.graphs or not manifest.precisions:
        raise BundleError(f"{where} lists no precision that every graph has; export the bundle again.")
    if ("region" in manifest.graphs) != (manifest.box_shares is not None):
        raise BundleError(
            f"{where} has box_shares without a graph of regions, or the graph without them; export the bundle again."
        )
    for precision in manifest.precisions:
        if precision not in manifest.parity.limits:
            raise BundleError(f"{where} has no parity limits for {precision}; export the bundle again.")
    for precision in manifest.lowering:
        if precision not in manifest.precisions:
            raise BundleError(
                f"{where} says how {precision} was made but lists no such precision; export the bundle again."
            )
