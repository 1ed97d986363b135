"""Opening image files: which formats are read, and by which decoder."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from .errors import ArgumentError, ImageError, reason

#: Pillow's names of the formats whose pixels are decoded inside this process. Others start a program (EPS runs
#: Ghostscript), open any format that they contain (IPTC), draw by the system (WMF) or have no decoder at all (BUFR,
#: GRIB, HDF5, MPEG). JXL and HEIF are formats of plugins.
_FORMATS = {
    *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FPX", "FTEX", "GBR", "GIF", "HEIF", "ICNS"),
    *("ICO", "IM", "IMT", "JPEG", "JPEG2000", "JXL", "MCIDAS", "MIC", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG"),
    *("PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB"),
}

#: Brands of HEIC files, which phones write.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: Chunks of PNG files that Pillow refuses above a size, which guards against files that would fill the memory.
_PNG_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")


def allow_image_format(name: str) -> None:
    """Read images of one more format, in this process.

    By default only formats are read whose pixels are decoded inside the process, so that no file starts a program.

    Args:
        name: Pillow's name of the format, such as ``EPS``, whose decoder runs Ghostscript, or that of a plugin.

    Raises:
        ArgumentError: Pillow knows no such format.
    """
    Image.init()
    if not isinstance(name, str) or name.upper() not in Image.OPEN:
        raise ArgumentError(
            f"Pillow knows no image format {name!r}; register its plugin first, or choose from "
            f"{', '.join(sorted(Image.OPEN))}."
        )
    _FORMATS.add(name.upper())


def read_formats() -> set[str]:
    """Pillow's names of the formats that are read here; this imports all of its plugins, which takes 40 ms."""
    Image.init()
    return Image.OPEN.keys() & _FORMATS


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[IO[bytes]]:
    """A path or the bytes of an image file as an open file.

    Raises:
        ImageError: it is empty.
    """
    if isinstance(source, bytes):
        if not source:
            raise _empty(name)
        yield io.BytesIO(source)
        return
    # Opened here and not by Pillow, so that the file is closed when decoding fails half-way.
    path = Path(os.fsdecode(source))
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0 and path.is_file():
            raise _empty(name)
        yield file


def identify(file: IO[bytes], name: str) -> Image.Image:
    """Open an image file of one of the formats that are read. Its pixels are not decoded yet.

    Raises:
        ImageError: the file is of no such format.
    """
    # Pillow's five usual formats first, because importing the plugins of all others takes 40 ms.
    for register in (Image.preinit, Image.init):
        register()
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(file, formats=[each for each in Image.ID if each in _FORMATS])
    file.seek(0)
    prefix = file.read(16)
    file.seek(0)
    if prefix[4:8] == b"ftyp" and prefix[8:12] in HEIF_BRANDS:
        return _open_heif(file, name)
    other = _unread_format(prefix)
    if other is not None:
        raise _not_allowed(name, other)
    raise ImageError(
        f"{name} is not an image that Pillow can read; convert it to PNG or JPEG.", code="image_unsupported"
    )


def check_format(image: Image.Image, name: str) -> None:
    """Make sure that decoding a Pillow image, if it is still to be decoded, starts no program.

    Raises:
        ImageError: its format is none of those that are read.
    """
    undecoded = isinstance(image, ImageFile.ImageFile) and bool(image.tile)
    if undecoded and image.format is not None and image.format not in _FORMATS:
        raise _not_allowed(name, image.format)


def without_large_metadata(file: IO[bytes]) -> io.BytesIO | None:
    """A PNG file without the chunks of metadata that Pillow refuses for their size; None if it has none of them.

    Colour profiles and texts change no pixel. Other texts stay, because one may hold the orientation.
    """
    from PIL.PngImagePlugin import PngStream

    file.seek(0)
    data = file.read()
    if not data.startswith(_PNG_SIGNATURE):
        return None
    kept = [_PNG_SIGNATURE]
    dropped = False
    stream = PngStream(io.BytesIO(data))
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if kind in _PNG_METADATA and not _is_read(stream, kind, position + 8, length):
            dropped = True
        else:
            kept.append(data[position:end])
        position = end
    return io.BytesIO(b"".join(kept)) if dropped else None


def _is_read(stream: Any, kind: bytes, position: int, length: int) -> bool:
    stream.fp.seek(position)
    try:
        stream.call(kind, position, length)
    except ValueError:
        return False
    return True


def _unread_format(prefix: bytes) -> str | None:
    """A format that Pillow knows and that is not read, if a file that begins so is of one."""
    for name, (_, accepts) in tuple(Image.OPEN.items()):
        if name not in _FORMATS and accepts is not None:
            with contextlib.suppress(Exception):  # plugins raise nearly anything on too few bytes
                accepted = accepts(prefix)
                if accepted and not isinstance(accepted, str):  # a string says why not
                    return name
    return None


def _open_heif(file: IO[bytes], name: str) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            f"{name} is a HEIC photo, which Pillow alone cannot read; install its decoder with "
            "pip install 'fgclip-rt[heif]', or convert it to JPEG.",
            code="image_unsupported",
        ) from None
    try:
        # Not registered with Pillow, whose list of formats belongs to the whole process.
        image: Image.Image = HeifImageFile(file)
    except SyntaxError as error:
        raise ImageError(f"{name} is damaged ({reason(error)}); restore or remove it.", code="image_damaged") from None
    return image


def _empty(name: str) -> ImageError:
    return ImageError(f"{name} is empty; restore or remove it.", code="image_damaged")


def _not_allowed(name: str, kind: str) -> ImageError:
    return ImageError(
        f"{name} is of the format {kind}, which is not read because its decoder may start a program or is none of "
        f"Pillow's own; convert it to PNG, or allow it with fgclip_rt.allow_image_format({kind!r}) if you trust it.",
        code="image_unsupported",
    )
