"""The output of an export: a folder that appears whole or not at all, and replaces a bundle only.

Files beside the bundle's own, such as a README or a ``.git`` folder, are kept when it is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgclip_rt.bundle import MANIFEST, listed_files, other_files
from fgclip_rt.errors import OutputError
from fgclip_rt.outputs import existing_parent, folder_written_whole, output_exists


def check_new_folder(output: Path, overwrite: bool = False) -> Path:
    """Make sure, before any work is done, that ``output`` may become a new folder.

    Returns:
        The path without links.

    Raises:
        OutputError: ``output`` exists and is not to be overwritten, or is no bundle, or lies below a file.
    """
    if output.is_symlink() and not output.exists():
        raise OutputError(f"{output} is a link to nothing; remove it, or choose another --output.")
    output = output.resolve()
    if output.exists():
        if not overwrite:
            raise output_exists(output)
        if _other_files(output) is None:
            raise OutputError(
                f"{output} is not a bundle, so it will not be replaced; choose another --output, or remove it.",
                code="output_exists",
            )
    parent = existing_parent(output)
    if not parent.is_dir():
        raise OutputError(f"{output} cannot be written because {parent} is not a folder; choose another --output.")
    return output


@contextmanager
def new_folder(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside ``output`` that takes its name when the block ends well, and vanishes otherwise.

    Raises:
        OutputError: ``output`` exists and is not to be overwritten, or is no bundle, or cannot be written.
    """
    output = check_new_folder(output, overwrite)

    def kept() -> list[str]:
        # Somebody else may have made the folder since the first check, because an export takes long.
        others = _other_files(output) if overwrite else None
        if others is None:
            raise OutputError(
                f"{output} was made while the export ran, so it is kept; choose another --output.", code="output_exists"
            )
        return others

    with folder_written_whole(output, kept) as folder:
        yield folder


def _other_files(folder: Path) -> list[str] | None:
    """Names of the files and folders beside a bundle's own, whole or not, of any version; None if it is no bundle."""
    try:
        listed = listed_files((folder / MANIFEST).read_bytes())
        return None if listed is None else [name.rstrip("/") for name in other_files(folder, listed)]
    except OSError:
        return None
