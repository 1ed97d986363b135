"""Image files below folders, found by name and by content. Nothing is passed over without being counted."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping

import msgspec
from PIL import Image

from .errors import ImageError
from .image_files import HEIF_BRANDS, read_formats
from .packages import missing_packages

#: Reasons for passing over, besides the formats that are not read: links that lead nowhere, or to what is found without
#: them; pipes, sockets and devices; and files that are no images.
HIDDEN, BROKEN_LINKS, LINKED_AGAIN, SPECIAL, OTHER = "hidden", "broken links", "linked again", "special", "other"

_HEIC, _AVIF, _JPEG_XL, _RAW, _VIDEO = "HEIC", "AVIF", "JPEG XL", "RAW", "video"

#: By kind, suffixes of images and films that are not read, or only with a library that may be missing.
_KINDS = {
    _HEIC: "heic heics heif heifs hif",
    _AVIF: "avif avifs",
    _JPEG_XL: "jxl",
    _RAW: "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw "
    "x3f",
    _VIDEO: "3gp avi flv insv m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv",
    # These lie beside images by the million, and are not worth a look at their content.
    OTHER: "aae csv html json jsonl md npy npz parquet tar tsv txt xml xmp yaml yml zip",
}
_SUFFIXES = {f".{suffix}": kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}

#: Names beside those that begin with a dot under which systems keep thumbnails, settings and what was deleted.
_SYSTEM = frozenset(
    {
        "#recycle",
        "$RECYCLE.BIN",
        "@Recycle",
        "@eaDir",
        "System Volume Information",
        "Thumbs.db",
        "__MACOSX",
        "desktop.ini",
        "lost+found",
    }
)

#: Names of formats in plugins of Pillow, by our own.
_PLUGINS = {_HEIC: "HEIF", _JPEG_XL: "JXL"}

#: First bytes of a file that tell its format.
_PREFIX = 32
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00\x10\x00\x00\x00CR", _RAW),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"8BPS\x00\x01", "PSD"),
    (b"qoif", "QOI"),
    (b"\xff\x0a", _JPEG_XL),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", _JPEG_XL),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"IIU\x00", _RAW),
    (b"FOVb", _RAW),
    (b"\x1aE\xdf\xa3", _VIDEO),
)

#: Kinds of ISO base media files, by their brand. Any other brand is a film's.
_BRANDS: Mapping[bytes, str] = {
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    **dict.fromkeys(HEIF_BRANDS, _HEIC),
    b"crx ": _RAW,
}

#: Sizes of the header that follows that of a BMP file, whose first two bytes many texts share.
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


class Found(msgspec.Struct):
    """The image files below folders, and what else lies there.

    Attributes:
        files: paths in the order of their parts.
        passed_over: number of files, folders and links that were passed over, by reason.
        unreadable: folders and files that could not be looked into.
    """

    files: list[str] = []
    passed_over: dict[str, int] = {}
    unreadable: list[str] = []

    def add(self, other: Found) -> None:
        """Join what was found elsewhere to this."""
        self.files += other.files
        self.passed_over = _by_name(Counter(self.passed_over) + Counter(other.passed_over))
        self.unreadable += other.unreadable


def search_folder(folder: str | os.PathLike[str]) -> Found:
    """Find the image files below ``folder``; none of them is decoded.

    The suffix decides, and the first bytes where the suffix says nothing. Hidden files and folders are passed over, and
    so are pipes, sockets and devices, which are never opened. A link is followed if it leads to a file or folder that
    is not found without it, so that a loop ends and no file is listed twice; a hard link is a file of its own.

    Raises:
        ImageError: the files of ``folder`` itself cannot be listed.
    """
    path = os.fspath(folder)
    try:
        with os.scandir(path):
            pass
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    return _Search().below(path)


class _Search:
    """One walk below a folder."""

    def __init__(self) -> None:
        self._formats = read_formats()
        self._suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in self._formats}
        self._formats |= {kind for kind, plugin in _PLUGINS.items() if plugin in self._formats}
        # It need not be registered with Pillow.
        if not missing_packages(["pillow_heif"]):
            self._formats.add(_HEIC)
        self._files: list[str] = []
        self._passed_over: Counter[str] = Counter()
        self._unreadable: list[str] = []
        #: Device and number of every folder that was entered.
        self._entered: set[tuple[int, int]] = set()
        self._links: list[str] = []

    def below(self, folder: str) -> Found:
        """The image files below ``folder``."""
        self._enter(folder)
        # Folders under their own names come first, then linked ones, and linked files last, because only then is it
        # known whether a link leads to anything new.
        to_files: list[str] = []
        while self._links:
            links, self._links = sorted(self._links), []
            to_files += [link for link in links if not self._follow_to_folder(link)]
        known = set(map(_identity, self._files)) if to_files else set()
        for link in sorted(to_files):
            identity = _identity(link)
            if identity in known:
                self._passed_over[LINKED_AGAIN] += 1
            elif self._take(link):
                known.add(identity)
        return Found(_in_order(self._files, folder), _by_name(self._passed_over), _in_order(self._unreadable, folder))

    def _enter(self, folder: str) -> None:
        """List the files of a folder and of those below it, and note their links."""
        waiting = [folder]
        while waiting:
            path = waiting.pop()
            try:
                identity = _identity(path)
                if identity in self._entered:
                    self._passed_over[LINKED_AGAIN] += 1
                    continue
                with os.scandir(path) as entries:
                    self._entered.add(identity)
                    waiting += [entry.path for entry in entries if self._is_folder(entry)]
            except OSError:
                self._unreadable.append(path)

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder to enter; anything else is dealt with."""
        if entry.name.startswith(".") or entry.name in _SYSTEM:
            self._passed_over[HIDDEN] += 1
            return False
        try:
            if entry.is_symlink():
                self._links.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                return True
            elif entry.is_file(follow_symlinks=False):
                self._take(entry.path)
            else:
                self._passed_over[SPECIAL] += 1
        except OSError:
            self._unreadable.append(entry.path)
        return False

    def _follow_to_folder(self, link: str) -> bool:
        """Deal with a link unless it leads to a file, and say whether that is done."""
        try:
            mode = os.stat(link).st_mode  # noqa: PTH116 (a million paths)
        except PermissionError:
            self._unreadable.append(link)
            return True
        except OSError:
            self._passed_over[BROKEN_LINKS] += 1
            return True
        if stat.S_ISREG(mode):
            return False
        if stat.S_ISDIR(mode):
            self._enter(link)
        else:
            self._passed_over[SPECIAL] += 1
        return True

    def _take(self, path: str) -> bool:
        """List a file if it is an image that can be read, or count it, and say whether it is listed."""
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 (a million paths)
        if suffix not in self._suffixes:
            try:
                kind = _kind(path, suffix)
            except OSError:
                self._unreadable.append(path)
                return False
            if kind not in self._formats:
                self._passed_over[kind] += 1
                return False
        self._files.append(path)
        return True


def _kind(path: str, suffix: str) -> str:
    """Format of a file whose suffix is none that is read."""
    named = _SUFFIXES.get(suffix)
    # Most raw files are TIFF files by their first bytes, and hold a small image of the large one.
    if named in (_RAW, OTHER):
        return named
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (a million paths)
        return _kind_of_content(file.read(_PREFIX)) or named or OTHER


def _kind_of_content(start: bytes) -> str | None:
    """Pillow's name of a format, or the kind of what it does not read, by a file's first bytes; None if unknown."""
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    if start[4:8] == b"ftyp":
        # Both kinds of images may have a general brand first, and their own among those that follow.
        return _AVIF if b"avif" in start[16:] else _BRANDS.get(start[8:12], _VIDEO)
    if start[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": _VIDEO}.get(start[8:12])
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    # White space follows the number of a PNM file.
    if start[:1] == b"P" and start[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and start[2:3].isspace():
        return "PPM"
    return None


def _by_name(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _in_order(paths: list[str], folder: str) -> list[str]:
    """Paths in the order of their parts, and below the working folder without its dot."""
    if folder == os.curdir:
        paths = [path.removeprefix(os.path.join(folder, "")) for path in paths]  # noqa: PTH118 (a million paths)
    return sorted(paths, key=lambda path: path.replace(os.sep, "\0"))


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 (a million paths)
    return status.st_dev, status.st_ino
