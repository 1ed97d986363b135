"""How a command ends: with status 0, or with one sentence on standard error and another status."""

from __future__ import annotations

import errno
import gc
import signal
import sys
import warnings
from typing import Any, NoReturn

import click

from ..errors import FgclipError, SpecialTokenWarning
from .interrupt import raising_interrupts
from .output import say_error, warn


class Command(click.Command):
    """A command that turns the errors that we raise into one sentence and status 1, and Ctrl-C into status 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        gc.enable()
        raising_interrupts()
        # Commands report such texts themselves, by their place in the command or the file.
        warnings.simplefilter("ignore", SpecialTokenWarning)
        # A service manager stops a process by SIGTERM; as an exception it cleans up like Ctrl-C.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return super().invoke(ctx)
        except Failed as failed:
            # The document has been printed with its error.
            warn(f"fgclip-rt: {failed.error}")
            ctx.exit(1)
        except FgclipError as error:
            _end(ctx, error.code, str(error))
        except KeyboardInterrupt as stop:
            _end(ctx, "interrupted", f"interrupted; {str(stop) or 'nothing was written'}.", 130)
        except OSError as error:
            # A reader of our output that has gone away is the affair of the shell.
            if error.errno == errno.EPIPE:
                raise
            reason = f"{error.filename or 'input or output'} failed ({error.strerror or error}); try again."
            _end(ctx, "io_failed", reason)
        except MemoryError:
            _end(ctx, "out_of_memory", "memory ran out; use fewer patches or smaller batches.")


class Failed(Exception):  # noqa: N818 (it is the outcome of a command, not an error of its own)
    """Ends a command that has said its answer, in which ``error`` stands too."""

    def __init__(self, error: FgclipError) -> None:
        super().__init__(str(error))
        self.error = error


def _end(ctx: click.Context, code: str, message: str, status: int = 1) -> NoReturn:
    warn(f"fgclip-rt: {message}")
    if ctx.params.get("json"):
        say_error(code, message)
    ctx.exit(status)
