"""Vectors of an evaluation on disk, from which the same evaluation goes on after it was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from .. import __version__
from ..journal import Journal, Setting, Stamp, Work, digest
from ..model import Model
from ..outputs import cannot_write


class Keeping:
    """Makes the journals of an evaluation, which stay until its end.

    Attributes:
        found: number of vectors that an earlier run has left.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Keep vectors in a folder.

        Args:
            folder: an existing folder.
            stack: closes the journals; they are removed if it ends well.
        """
        self.found = 0
        self._folder, self._stack = folder, stack

    def journal(
        self,
        model: Model,
        name: str,
        inputs: Iterable[str],
        count: int,
        stamp_of: Callable[[int], Stamp] = lambda _: None,
        **settings: Setting,
    ) -> Journal:
        """The vectors of some inputs, of which an earlier run may have left a part.

        Args:
            model: the model that makes them.
            name: begins the name of their files.
            inputs: texts that tell what they are made of, in order.
            count: number of vectors.
            stamp_of: gives the stamp of an input's file as it is now.
            settings: all else that the vectors depend on.

        Raises:
            OutputError: another run writes them now, or the folder cannot be written.
        """
        made: dict[str, Setting] = {
            "fgclip-rt": __version__,
            "bundle": model.bundle.manifest_sha256,
            "precision": model.precision,
            "backend": str(model.backend),
            **settings,
        }
        work = Work(made, digest(inputs), count, model.dim)
        # Other work has another name, so that nothing that was changed in between is taken up.
        key = hashlib.sha256(msgspec.json.encode(work)).hexdigest()[:16]
        journal = Journal(self._folder / f"{name}-{key}", work, stamp_of, resume=True, option="--work")
        self.found += journal.kept
        return self._stack.enter_context(journal)


@contextmanager
def kept(folder: Path | None = None) -> Iterator[Keeping]:
    """Vectors in a folder, which keeps those of a run that does not end well; None takes a temporary folder.

    Raises:
        OutputError: the folder cannot be made.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="fgclip-rt-")))
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error, "choose another --work") from None
        yield Keeping(folder, stack)
