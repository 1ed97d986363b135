"""A checkpoint's JSON files as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from fgclip_rt.errors import CheckpointError

_T = TypeVar("_T")


def read_options(document: Mapping[str, Any], kind: type[_T], file: str) -> _T:
    """The options of a parsed JSON file that ``kind`` names; the others are passed over.

    Args:
        document: what the file holds.
        kind: a dataclass.
        file: the file's name, for messages.

    Raises:
        CheckpointError: an option is missing or has a value of another type.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{file} is not as it must be: {error}; restore the original file.") from None
