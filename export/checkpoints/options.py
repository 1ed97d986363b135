"""A checkpoint's JSON files as dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from fgclip_rt.errors import CheckpointError

from .files import Checkpoint
from .processors import ImageSettings, note_unread

_T = TypeVar("_T")

#: Mean and deviation of pixels, which are numbers up to 1 or up to 255.
Level = Annotated[float, msgspec.Meta(ge=-255, le=255)]
Spread = Annotated[float, msgspec.Meta(gt=0, le=255)]


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
    """Settings of images that change pixels; the defaults are SigLIP 2's.

    Attributes:
        processors: names of the classes that read these settings, without endings such as ``Fast``.
    """

    processors: ClassVar[tuple[str, ...]]

    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: float = 1 / 255
    image_mean: tuple[Level, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[Spread, ...] = (0.5, 0.5, 0.5)
    do_convert_rgb: bool | None = None

    def check_pixels(self, channels: int, file: str) -> None:
        """Make sure that a patch projection can hold this normalisation.

        Args:
            channels: number of channels of a pixel.
            file: the file's name, for messages.

        Raises:
            CheckpointError: pixels are not divided by 255 and normalised by ``channels`` means and deviations.
        """
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

    def moot(self) -> dict[str, Any]:
        """Values that change nothing here although they are not the family's own, by key."""
        # Images are always made RGB, as the examples of all families do before they call the processor.
        return {"do_convert_rgb": False} if self.do_convert_rgb is False else {}

    def note(self, checkpoint: Checkpoint, settings: ImageSettings) -> None:
        """Note which of a checkpoint's settings change nothing."""
        read = frozenset(field.name for field in dataclasses.fields(self))
        note_unread(checkpoint, settings, read, self.moot(), self.processors)
