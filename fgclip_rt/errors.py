"""Every error that fgclip-rt raises on purpose.

Each message is one sentence that names the thing at fault and the remedy. The command line prints it and exits
with status 1; a library user can catch :class:`FgclipError` or one of its kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifest import ParityRow


class FgclipError(Exception):
    """Base of all errors below."""


class ArgumentError(FgclipError, ValueError):
    """An argument has a value that cannot be used: a walk type, a patch count, a precision."""


class ImageError(FgclipError, ValueError):
    """An image cannot be read or prepared."""


class BoxError(FgclipError, ValueError):
    """A box is empty, reversed, not finite or outside its image."""


class MaskError(FgclipError, ValueError):
    """A mask is not of its image's size, holds other numbers than 0 to 1, or is empty."""


class TextError(FgclipError, ValueError):
    """A text cannot be tokenised."""


class BundleError(FgclipError):
    """A bundle is incomplete, altered or from a newer version."""


class DeviceError(FgclipError):
    """A device was asked for and this machine does not have it, or its memory ran out."""


class EngineError(FgclipError):
    """An engine cannot be built or run, or is damaged or stale."""


class CheckpointError(FgclipError):
    """A checkpoint cannot be found, or is not what its configuration says."""


class ParityError(FgclipError):
    """A graph does not give the reference's numbers.

    Attributes:
        measured: by precision that failed, every comparison that was made.
        kept: the precisions that were written all the same.
    """

    def __init__(self, message: str, measured: Mapping[str, Sequence[ParityRow]], kept: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.measured = {precision: tuple(rows) for precision, rows in measured.items()}
        self.kept = tuple(kept)

    @property
    def rows(self) -> tuple[ParityRow, ...]:
        """The comparisons of all precisions that failed, one after another."""
        return tuple(row for rows in self.measured.values() for row in rows)


class BenchmarkError(FgclipError):
    """A benchmark cannot be run, or a file holds none of its results."""


class OutputError(FgclipError):
    """An output path exists already or cannot be written."""


class MissingDependencyError(FgclipError, ImportError):
    """A package of one of the extras is not installed."""


def check_positive(name: str, value: int | None, most: int = 2**31 - 1) -> None:
    """Make sure that an option is a whole number from 1 to ``most``, or None, which leaves the choice to us.

    Raises:
        ArgumentError: it is not.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if value is not None and not (whole and 1 <= value <= most):
        raise ArgumentError(f"{name} is {value!r}; pass a whole number from 1 to {most}, or None to have it chosen.")
