"""A checkpoint's settings of images: where they stand, and which of them are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fgclip_rt.errors import CheckpointError

from .files import PREPROCESSOR, PROCESSOR, Checkpoint

_NESTED = "image_processor"
#: Keys that name classes, or say how arrays come and go. They change no pixel.
_BOOKKEEPING = frozenset(
    {
        "_processor_class",
        "_valid_processor_keys",
        "auto_map",
        "data_format",
        "default_to_square",
        "device",
        "disable_grouping",
        "feature_extractor_type",
        "input_data_format",
        "processor_class",
        "return_tensors",
    }
)
_TYPE = "image_processor_type"


@dataclass(frozen=True)
class ImageSettings:
    """The settings of images, and their place for messages.

    Attributes:
        values: by key, as they stand in the file.
        file: name of the file, with the key under which they are nested, if they are.
    """

    values: Mapping[str, Any]
    file: str = PREPROCESSOR


def read_image_settings(checkpoint: Checkpoint) -> ImageSettings:
    """The settings of images: nested in ``processor_config.json`` as transformers 5 saves them, or in their own file.

    If both are there, the nested ones are taken, as transformers does, and a difference is noted.

    Raises:
        CheckpointError: neither is there, or one is damaged.
    """
    whole = checkpoint.json(PROCESSOR) if checkpoint.has(PROCESSOR) else {}
    nested = whole.get(_NESTED)
    if nested is None:
        return ImageSettings(checkpoint.json(PREPROCESSOR))
    if not isinstance(nested, dict):
        raise CheckpointError(
            f"{checkpoint.where(PROCESSOR)}: {_NESTED} is no object; restore the file.", code="checkpoint_damaged"
        )
    others = sorted(key for key in whole if key != _NESTED and key not in _BOOKKEEPING and whole[key] is not None)
    if others:
        checkpoint.note(
            f"{PROCESSOR} of {checkpoint.path} has {', '.join(others)} beside {_NESTED}; they were passed over."
        )
    if checkpoint.has(PREPROCESSOR) and checkpoint.where(PREPROCESSOR) != checkpoint.where(PROCESSOR):
        other = checkpoint.json(PREPROCESSOR)
        keys = sorted(key for key in {*nested, *other} if nested.get(key) != other.get(key))
        if keys:
            checkpoint.note(
                f"{PROCESSOR} and {PREPROCESSOR} of {checkpoint.path} differ in {', '.join(keys)}; the former was "
                "taken, as transformers does."
            )
    return ImageSettings(nested, f"{PROCESSOR}: {_NESTED}")


def note_unread(
    checkpoint: Checkpoint,
    settings: ImageSettings,
    read: frozenset[str],
    moot: Mapping[str, Any],
    processors: tuple[str, ...],
) -> None:
    """Note the settings that are not read, and those that are and change nothing.

    Args:
        checkpoint: whose settings they are.
        settings: the settings.
        read: keys that are read.
        moot: values that are read and change nothing, by key.
        processors: names of the classes that read the family's settings, without endings such as ``Fast``.
    """
    unread = {
        key: value
        for key, value in settings.values.items()
        if value is not None and key not in read and key not in _BOOKKEEPING and key != _TYPE
    }
    if not str(settings.values.get(_TYPE) or processors[0]).startswith(processors):
        unread[_TYPE] = settings.values[_TYPE]
    found = unread | dict(moot)
    if found:
        pairs = ", ".join(f"{key} {value!r}" for key, value in sorted(found.items()))
        checkpoint.note(
            f"{settings.file} of {checkpoint.path} has settings that change nothing here ({pairs}); images are "
            f"prepared as the family's {processors[0]} does without them."
        )
