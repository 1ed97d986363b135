"""The command line: ``fgclip-rt``, and the same as ``python -m fgclip_rt``.

``app`` names the commands, which lie in ``commands`` and are imported when they are asked for. ``options`` holds what
several of them take, ``status`` how an error ends them, and ``output``, ``progress`` and ``parity`` how they speak.
"""

from __future__ import annotations

import gc
import importlib.util
import sys

from .interrupt import stopping_at_once

#: Packages of the extra ``cli``, by the names that they are imported by.
_PACKAGES = ("click", "rich")


def main() -> None:
    """Entry point of the ``fgclip-rt`` command."""
    # Imported objects stay: looking for garbage among them takes a fortieth of a start.
    gc.disable()
    with stopping_at_once():
        missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            are = "are" if len(missing) > 1 else "is"
            sys.exit(
                f"fgclip-rt: the command line needs {' and '.join(missing)}, which {are} not installed; "
                "run pip install 'fgclip-rt[cli]'."
            )
        from .app import run

        try:
            run()
        finally:
            gc.enable()
