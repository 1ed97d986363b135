"""The images that an agent may name: files below folders that the user gave, and bytes in base64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fgclip_rt.errors import ImageError


class Sources:
    """Finds the images that an agent names."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Allow the files below folders.

        Args:
            roots: the folders; none allows no file.
        """
        self._roots = [root.resolve() for root in roots]

    def read(self, image: str) -> Path | bytes:
        """An image by its path, absolute or below one of the folders, or by a data URI.

        Raises:
            ImageError: the path is outside of all folders or leads to no file, or the data cannot be read.
        """
        if image.startswith("data:"):
            try:
                return msgspec.convert(image.partition(",")[2], bytes)
            except msgspec.ValidationError:
                raise ImageError("the data URI is not base64; encode the image's file.", code="image_damaged") from None
        if image.startswith(("http://", "https://")):
            raise ImageError(f"{image} is a URL, and this server fetches none; give a file or a data URI.")
        if not self._roots:
            raise ImageError(
                f"{image} cannot be read, because no folder is allowed; start the server with --root, or give a "
                "data URI."
            )
        for root in self._roots:
            # Links are followed first, so that none leads out of the folder.
            path = (root / image).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        allowed = ", ".join(map(str, self._roots))
        raise ImageError(f"{image} is no file below {allowed}; name one that is, or give a data URI.")

    def shown(self, image: str) -> str:
        """The name of an image in answers: its path, or what stands for bytes."""
        return "image data" if image.startswith("data:") else image
