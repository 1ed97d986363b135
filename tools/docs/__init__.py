"""The pages and files of ``docs/`` that are made from the code: ``python -m tools.docs`` (part of ``make docs``)."""

from __future__ import annotations

from fgclip_rt.text import Tokenizer

from .commands import commands_page
from .schemas import schemas
from .vectors import vectors


def generate(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Contents of every generated file, by its path in ``docs/``.

    Args:
        tokenizer: the one of ``fg-clip2-pocket``.
    """
    return {
        "commands.md": commands_page().encode(),
        **{f"bundle/{name}": data for name, data in (schemas() | vectors(tokenizer)).items()},
    }
