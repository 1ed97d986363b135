"""The output of an export: a folder that appears whole or not at all, and replaces a bundle only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgclip_rt.bundle import MANIFEST, decode_manifest, list_files
from fgclip_rt.errors import BundleError, OutputError
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
        if not _is_only_a_bundle(output):
            raise OutputError(
                f"{output} is not a bundle or holds other files too, so it will not be replaced; "
                "choose another --output, or remove it.",
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

    def check_replaceable() -> None:
        # Somebody else may have made the folder since the first check, because an export takes long.
        if not overwrite or not _is_only_a_bundle(output):
            raise OutputError(
                f"{output} was made while the export ran, so it is kept; choose another --output.", code="output_exists"
            )

    with folder_written_whole(output, check_replaceable) as folder:
        yield folder


def _is_only_a_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, whole or not, and holds nothing else that replacing it would lose."""
    try:
        manifest = decode_manifest((folder / MANIFEST).read_bytes(), MANIFEST)
    except (OSError, BundleError):
        return False
    return all(name in manifest.files for name in list_files(folder))
