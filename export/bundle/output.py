"""Where an export goes: a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fgclip_rt.bundle import MANIFEST, decode_manifest, list_files
from fgclip_rt.errors import BundleError, OutputError
from fgclip_rt.outputs import existing_parent, is_disk_full


def check_new_folder(output: Path, overwrite: bool = False) -> Path:
    """Make sure, before any work is done, that ``output`` may become a new folder.

    Returns:
        The path without links.

    Raises:
        OutputError: it exists and is not to be overwritten, or is no bundle, or lies below what is no folder.
    """
    if output.is_symlink() and not output.exists():
        raise OutputError(f"{output} is a link to nothing; remove it, or choose another --output.")
    output = output.resolve()
    if output.exists():
        if not overwrite:
            raise OutputError(f"{output} exists already; choose another --output, or replace it with --overwrite.")
        if not _is_only_a_bundle(output):
            raise OutputError(
                f"{output} is not a bundle or holds other files too, so it will not be replaced; "
                "choose another --output, or remove it."
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
    partial = output.parent / f".{output.name}.partial-{uuid.uuid4().hex}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror}); choose another --output.") from None
    try:
        yield partial
        _open_permissions(partial)
        _put_in_place(partial, output, overwrite)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Reading a checkpoint raises CheckpointError, so these two come from writing.
        if isinstance(error, (OSError, SafetensorError)):
            if is_disk_full(error):
                raise OutputError(f"{output} cannot be written because the disk is full; free some space.") from None
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise OutputError(f"{output} cannot be written ({reason}); choose another --output.") from None
        raise


def _is_only_a_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, whole or not, and holds nothing else that replacing it would lose."""
    try:
        manifest = decode_manifest((folder / MANIFEST).read_bytes(), MANIFEST)
    except (OSError, BundleError):
        return False
    return all(name in manifest.files for name in list_files(folder))


def _put_in_place(folder: Path, output: Path, overwrite: bool) -> None:
    """Rename ``folder`` to ``output``, in the place of the bundle there, which is kept when that fails."""
    if not output.exists():
        folder.rename(output)
        return
    # An export takes long enough for somebody else to have made the folder since it was first looked for.
    if not overwrite or not _is_only_a_bundle(output):
        raise OutputError(f"{output} was made while the export ran, so it is kept; choose another --output.")
    replaced = folder.with_name(f".{output.name}.replaced-{uuid.uuid4().hex}")
    output.rename(replaced)
    try:
        folder.rename(output)
    except BaseException:
        replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _open_permissions(folder: Path) -> None:
    """Give every file the mode of a newly made one; safetensors writes for the owner only."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)
