"""Files that ``torch.save`` wrote, read so that no code of theirs can run.

Training scripts save numbers of NumPy, paths and options beside the weights. They are data, so a file may name the
types of such data; but nobody reads them, and so none is made: each becomes an empty stand-in.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from fgclip_rt.errors import CheckpointError


class _Data:
    """Stands in for an object beside the weights; it takes any arguments and any state, and keeps neither."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _dictionary(*_: Any) -> dict[Any, Any]:
    """Stands in for a ``defaultdict``, whose entries the unpickler sets afterwards."""
    return {}


def _list(*_: Any) -> list[Any]:
    """Stands in for a ``deque``, whose entries the unpickler appends afterwards."""
    return []


_NUMBERS = (
    *("bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "longlong"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128", "str_", "bytes_", "void"),
    *("datetime64", "timedelta64"),
)
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
#: Names of data, by the place in Python or NumPy that pickles call them by; some places moved between versions.
_DATA = (
    *(f"numpy.{core}.multiarray.{maker}" for core in ("core", "_core") for maker in ("scalar", "_reconstruct")),
    *("numpy.ndarray", "numpy.dtype"),
    *(f"numpy.{name}" for name in _NUMBERS),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "frozenset", "int", "list", "range", "slice", "str")),
    *("argparse.Namespace", "builtins.tuple", "decimal.Decimal", "fractions.Fraction", "types.SimpleNamespace"),
)
_STAND_INS: list[Any] = [
    *((_Data, name) for name in _DATA),
    (_dictionary, "collections.defaultdict"),
    (_list, "collections.deque"),
]
_REMEDY = "save the weights alone, by torch.save(model.state_dict(), path)"


def load(path: Path) -> Any:
    """The document of a file that ``torch.save`` wrote, with empty stand-ins for data that are no tensors.

    Raises:
        CheckpointError: the file is damaged, or names anything whose loading could run code.
    """
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path} is not a file of tensors, or holds other Python objects{f' ({named[1]})' if named else ''}, whose "
            f"loading could run code; {_REMEDY}.",
            code="checkpoint_unsafe",
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); restore the file.", code="checkpoint_damaged"
        ) from None
    except MemoryError:
        raise
    except Exception:  # damage raises any error of the unpickler or the archive, with no useful message
        raise CheckpointError(
            f"{path} is damaged, or not a file that torch.save wrote; restore it, or {_REMEDY}.",
            code="checkpoint_damaged",
        ) from None
