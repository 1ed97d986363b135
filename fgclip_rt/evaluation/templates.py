"""Templates of the texts of classes, such as "a photo of a {}.", whose vectors are averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import BenchmarkError
from .files import read_lines


class OfficialTemplates(Struct, frozen=True):
    """The templates of a benchmark, which users bring.

    Attributes:
        count: number of them.
        source: where they are published.
        sha256: digest by :func:`digest`; None if it is not known.
        opening: text before the texts that begin with "a" or "the".
    """

    count: int
    source: str
    sha256: str | None = None
    opening: str = ""

    def are(self, templates: Sequence[str]) -> bool:
        """Whether templates are these, in any order."""
        return self.sha256 is not None and digest(templates) == self.sha256


#: OpenAI's for ImageNet, which FG-CLIP's scripts take for boxes too.
IMAGENET = OfficialTemplates(
    80,
    "CLIP's notebook Prompt_Engineering_for_ImageNet.ipynb",
    "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467",
)

#: ViLD's, which CLIPSelf's and FineCLIP's scripts take for COCO's panoptic categories.
VILD = OfficialTemplates(63, "generate_text_embeddings.py of CLIPSelf", opening="This is ")


def read_templates(file: Path) -> tuple[str, ...]:
    """The templates of a text file, one a line, each with ``{}`` for the class.

    Raises:
        BenchmarkError: the file cannot be read, is empty, or a line has no ``{}``.
    """
    templates = tuple(read_lines(file))
    if not templates:
        raise BenchmarkError(f"{file} has no templates; write one a line, such as 'a photo of a {{}}.'")
    lacking = next((template for template in templates if "{}" not in template), None)
    if lacking is not None:
        raise BenchmarkError(
            f"{file} has the template {lacking!r}, which has no {{}}; write it where the class stands."
        )
    return templates


def digest(templates: Sequence[str]) -> str:
    """SHA-256 of templates in alphabetical order, one a line."""
    return hashlib.sha256("\n".join(sorted(templates)).encode()).hexdigest()


def fill(template: str, name: str, opening: str = "") -> str:
    """A template with the name of a class, and "a" or "an" by its first letter for ``{article}``."""
    article = "an" if name[:1] in tuple("aeiou") else "a"
    text = template.replace("{article}", article).replace("{}", name)
    return opening + text if text.startswith(("a", "the")) else text
