"""A checkpoint's JSON files as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from fgclip_rt.errors import CheckpointError

_T = TypeVar("_T")


def read_options(document: Mapping[str, Any], kind: type[_T], file: str) -> _T:
    """The options of a parsed JSON file that ``kind`` names; other options are ignored.

    Args:
        document: the file's contents.
        kind: a dataclass.
        file: the file's name, for messages.

    Raises:
        CheckpointError: an option is missing or has a value of another type.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{file} is not as it must be: {error}; restore the original file.") from None


@dataclass(frozen=True)
class PixelOptions:
    """Options of a ``preprocessor_config.json`` that change pixels; the defaults are SigLIP 2's."""

    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[Annotated[float, msgspec.Meta(gt=0)], ...] = (0.5, 0.5, 0.5)

    def check_pixels(self, channels: int) -> None:
        """Make sure that a patch projection can hold this normalisation.

        Raises:
            CheckpointError: pixels are not divided by 255 and normalised by ``channels`` means and deviations.
        """
        file = "preprocessor_config.json"
        for name in ("do_rescale", "do_normalize"):
            if not getattr(self, name):
                raise CheckpointError(
                    f"{file}: {name} is False, and this model is prepared with True; restore the original file."
                )
        if not abs(self.rescale_factor * 255 - 1) <= 1e-6:
            raise CheckpointError(
                f"{file}: rescale_factor is {self.rescale_factor!r}, and this model is prepared with 1/255; "
                "restore the original file."
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != channels:
                raise CheckpointError(
                    f"{file}: {name} has {len(getattr(self, name))} numbers, and images have {channels} "
                    "channels; restore the original file."
                )
