"""Every error that fgclip-rt raises on purpose.

::

    FgclipError
    ├── ArgumentError (ValueError)             an argument cannot be used
    ├── ImageError (ValueError)                an image cannot be read or prepared
    ├── BoxError (ValueError)                  a box is no part of its image
    ├── MaskError (ValueError)                 a mask is no mask of its image
    ├── TextError (ValueError)                 a text cannot be tokenised
    ├── BundleError                            a bundle is missing, altered or of another version
    ├── DeviceError                            a device is missing, fails or lacks memory
    ├── NativeError                            the C library is missing, or refuses a call
    ├── EngineError                            an engine is missing, damaged, stale or refused
    ├── CheckpointError                        a checkpoint cannot be found or exported
    ├── ParityError                            a graph does not give the reference's numbers
    ├── BenchmarkError                         a benchmark cannot be run or read
    ├── OutputError                            a file or folder cannot be written
    ├── IndexFileError                         an index is missing, damaged or of another bundle
    ├── ShardError                             a shard, or an item of it, cannot be read
    ├── ServingError                           a server cannot take or answer a request now
    └── MissingDependencyError (ImportError)   a package of an extra is not installed

There is one warning too, :class:`SpecialTokenWarning`.

Each message is one sentence that names the fault and the remedy, for people. Each error has a ``code``, for programs:
one of :data:`CODES`, which tells apart all that a caller would act on differently. The command line prints the message
and exits with status 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .manifest import ParityRow

#: Every code, and what it means.
CODES: Mapping[str, str] = MappingProxyType(
    {
        "argument_invalid": "An argument has a value that cannot be used.",
        "precision_missing": "The bundle has no graphs in this precision.",
        "graph_missing": "The model lacks this graph, so it cannot answer this question.",
        "walk_type_missing": "The model has no such kind of text.",
        "image_unreadable": "The image's file cannot be opened.",
        "image_unsupported": "The image is of a format, type or range that is not read.",
        "image_damaged": "The image's file is empty or damaged.",
        "image_too_large": "The image has more pixels than the limit allows.",
        "box_invalid": "A box is not four finite numbers.",
        "box_reversed": "A box's second corner lies left of or above its first.",
        "box_empty": "A box has no width or no height.",
        "box_outside": "A box has no part of its image inside.",
        "box_units": "Boxes are in other units than the call says.",
        "mask_invalid": "A mask holds other values than 0 to 1.",
        "mask_misshaped": "A mask has neither the image's size nor its grid's.",
        "mask_empty": "A mask is zero everywhere.",
        "text_invalid": "A text is no valid Unicode string, or the tokenizer fails on it.",
        "text_too_long": "A text is so long that its first tokens cannot be told from its start.",
        "bundle_missing": "There is no bundle at this path.",
        "bundle_unreadable": "A file of the bundle cannot be opened.",
        "bundle_incomplete": "A file of the bundle is missing.",
        "bundle_altered": "A file of the bundle is not the one that was exported.",
        "bundle_newer": "The bundle has a newer format than this version reads.",
        "bundle_older": "The bundle has a format that this version no longer reads.",
        "bundle_invalid": "The bundle's manifest, graphs, tokenizer or probe are not as specified.",
        "bundle_replaced": "The bundle was replaced, changed or removed after it was opened.",
        "device_missing": "The device, or the library that drives it, is not on this machine.",
        "device_failed": "The device is there and failed.",
        "device_lost": "The device failed, and no call of this process reaches it any more.",
        "precision_unsupported": "The device has no kernels for this precision.",
        "out_of_memory": "The memory of the device or the machine ran out.",
        "engine_failed": "An engine could not be built, loaded or run.",
        "engine_missing": "The bundle has no such engine.",
        "engine_damaged": "A file of the engine is missing or altered.",
        "engine_stale": "The engine was built for another bundle, library or GPU.",
        "checkpoint_missing": "There is no checkpoint of this name or at this path.",
        "checkpoint_incomplete": "A file of the checkpoint is missing.",
        "checkpoint_damaged": "A file of the checkpoint cannot be read.",
        "checkpoint_invalid": "The checkpoint's files contradict each other or the model.",
        "checkpoint_unsafe": "The file of weights holds more than tensors, and loading it could run code.",
        "checkpoint_unsupported": "The checkpoint's model cannot be exported.",
        "download_failed": "A file could not be downloaded.",
        "parity_failed": "A graph does not give the reference's numbers.",
        "precision_refused": "A lower precision would change vectors, or answers, more than its limits allow.",
        "space_differs": "The old vectors and the new ones must not share an index.",
        "benchmark_failed": "A benchmark could not be run, or its results cannot be read.",
        "overloaded": "The server has as much work waiting as it may; ask again later.",
        "work_too_large": "The request is more work than the server ever lets wait.",
        "deadline_passed": "The request's time was over before it could run.",
        "shutting_down": "The server takes no more requests.",
        "index_missing": "There is no index at this path.",
        "index_damaged": "A file of the index is missing, cut off or altered.",
        "index_newer": "The index has a newer format than this version reads.",
        "index_mismatch": "The index is of another space, folder or settings.",
        "index_locked": "Another process updates the index.",
        "index_empty": "The index holds no image that could be found.",
        "shard_unreadable": "A shard cannot be opened or read on, or there is none at this path.",
        "shard_damaged": "A shard breaks off, or its file is damaged.",
        "shard_mismatch": "The output is of another space, other settings or other shards.",
        "item_missing": "An item of a shard has no image.",
        "item_duplicate": "An item of a shard has an id that came before.",
        "worker_died": "A worker process ended before its work was done.",
        "output_exists": "The output exists and was not to be replaced.",
        "output_unfinished": "An interrupted run has begun the output, and this run is not to go on with it.",
        "output_unwritable": "The output cannot be written.",
        "disk_full": "The disk is full.",
        "dependency_missing": "A package that an extra installs is not installed.",
        "native_missing": "The C library is not on this machine, or is of another version.",
        "runtime_missing": "There is no libonnxruntime for the C library, or only one that is too old.",
        "buffer_too_small": "The memory for a result of the C library is too small.",
        "cancelled": "Another thread cancelled a call of the C library.",
        "forked": "The process was forked after the C library opened a model.",
        "internal": "A fault of the C library itself.",
    }
)


class FgclipError(Exception):
    """Base of all errors below.

    Attributes:
        code: one of :data:`CODES`; each class has its own for errors that give none.
    """

    code: str

    def __init__(self, message: str, *, code: str | None = None) -> None:
        """Make an error with a message of one sentence.

        Args:
            message: the fault and the remedy.
            code: one of :data:`CODES`; None for that of the class.
        """
        super().__init__(message)
        if code is not None:
            self.code = code
        assert self.code in CODES, self.code


class ArgumentError(FgclipError, ValueError):
    """An argument has a value that cannot be used: a walk type, a patch count, a precision."""

    code = "argument_invalid"


class ImageError(FgclipError, ValueError):
    """An image cannot be read or prepared."""

    code = "image_unreadable"


class BoxError(FgclipError, ValueError):
    """A box is empty, reversed, not finite, outside its image or in other units than the call says."""

    code = "box_invalid"


class MaskError(FgclipError, ValueError):
    """A mask is not of its image's size, holds other numbers than 0 to 1, or is empty."""

    code = "mask_invalid"


class TextError(FgclipError, ValueError):
    """A text cannot be tokenised."""

    code = "text_invalid"


class SpecialTokenWarning(UserWarning):
    """A text holds characters that the tokenizer reads as a special token, such as ``<eos>``."""


class BundleError(FgclipError):
    """A bundle is missing, incomplete, altered or of another version."""

    code = "bundle_invalid"


class DeviceError(FgclipError):
    """A device was asked for and this machine does not have it, or it failed, or its memory ran out."""

    code = "device_failed"


class NativeError(FgclipError):
    """The C library cannot be opened, or it refused a call.

    Attributes:
        status: the number that the library answered; zero if it was not opened.
        index: position in the call of the image, text, box or mask at fault; -1 if it is none.
        needed: with ``buffer_too_small``, the capacity that the call needs; else zero.
    """

    code = "native_missing"

    def __init__(
        self, message: str, *, code: str | None = None, status: int = 0, index: int = -1, needed: int = 0
    ) -> None:
        """Make an error from what the library answered."""
        super().__init__(message, code=code)
        self.status = status
        self.index = index
        self.needed = needed


class EngineError(FgclipError):
    """An engine cannot be built or run, or is missing, damaged or stale."""

    code = "engine_failed"


class CheckpointError(FgclipError):
    """A checkpoint cannot be found or exported, or is not what its configuration says."""

    code = "checkpoint_invalid"


class ParityError(FgclipError):
    """A graph does not give the reference's numbers.

    Attributes:
        measured: by precision that failed, every comparison that was made.
        kept: the precisions that were written all the same.
    """

    code = "parity_failed"

    def __init__(
        self,
        message: str,
        measured: Mapping[str, Sequence[ParityRow]],
        kept: Sequence[str] = (),
        *,
        code: str | None = None,
    ) -> None:
        """Make an error from the comparisons that failed.

        Args:
            message: the fault and the remedy.
            measured: by precision that failed, every comparison that was made.
            kept: the precisions that were written all the same.
            code: one of :data:`CODES`; None for ``parity_failed``.
        """
        super().__init__(message, code=code)
        self.measured = {precision: tuple(rows) for precision, rows in measured.items()}
        self.kept = tuple(kept)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all arguments: an exception's own way knows of the message only."""
        return type(self), (str(self), self.measured, self.kept), self.__dict__

    @property
    def rows(self) -> tuple[ParityRow, ...]:
        """The comparisons of all precisions that failed, one after another."""
        return tuple(row for rows in self.measured.values() for row in rows)


class BenchmarkError(FgclipError):
    """A benchmark cannot be run, or a file holds none of its results."""

    code = "benchmark_failed"


class OutputError(FgclipError):
    """An output path exists already or cannot be written."""

    code = "output_unwritable"


class IndexFileError(FgclipError):
    """An index is missing, damaged, in use, or of another bundle."""

    code = "index_damaged"


class ShardError(FgclipError):
    """A shard, or an item of it, cannot be read, or is of another job than the output."""

    code = "shard_unreadable"


class ServingError(FgclipError):
    """A server cannot take a request, or could not answer it in time."""

    code = "overloaded"


class MissingDependencyError(FgclipError, ImportError):
    """A package of one of the extras is not installed."""

    code = "dependency_missing"


def reason(error: BaseException) -> str:
    """The first sentence of another library's error, without its full stop, as part of a sentence of ours."""
    first, *_ = str(error).strip().splitlines() or [""]
    return first.split(". ")[0].rstrip(".") or type(error).__name__


def check_positive(name: str, value: int | None, most: int = 2**31 - 1) -> None:
    """Make sure that an option is a whole number from 1 to ``most``, or None, which leaves the choice to us.

    Raises:
        ArgumentError: it is not.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if value is not None and not (whole and 1 <= value <= most):
        raise ArgumentError(f"{name} is {value!r}; pass a whole number from 1 to {most}, or None to have it chosen.")
