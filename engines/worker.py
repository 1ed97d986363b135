"""A process that builds plans: the libraries build one at a time in each, print as they like, and may crash.

It reads tasks from standard input and answers on standard output, one JSON object a line: any number of
:class:`Share`, and then :class:`Done`, :class:`Failed` or :class:`Unwritable`. It ends with its input.
"""

from __future__ import annotations

import os
import sys
from time import perf_counter

import msgspec

from fgclip_rt.errors import FgclipError

from .builder import TensorRtBuilder
from .ep_context import EpContextBuilder
from .libraries import LIBRARIES, TensorRtLibrary
from .task import Answer, Builder, Done, Failed, Share, Task, Unwritable


def make_builder(name: str) -> Builder:
    """The builder of a library.

    Raises:
        MissingDependencyError: the library is not installed.
        EngineError: it cannot be loaded.
    """
    library = LIBRARIES[name]()
    return TensorRtBuilder(library) if isinstance(library, TensorRtLibrary) else EpContextBuilder()


def main(library: str) -> None:
    """Build until the input ends."""
    # The libraries write to standard output, so what is left of it for them is standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: Answer) -> None:
        answers.write(msgspec.json.encode(value).decode() + "\n")
        answers.flush()

    builder = None
    for line in sys.stdin:
        try:
            start = perf_counter()
            builder = builder or make_builder(library)
            layers = builder.build(msgspec.json.decode(line, type=Task), lambda percent: answer(Share(percent)))
        except FgclipError as error:
            answer(Failed(str(error)))
        except OSError as error:
            answer(Unwritable(error.strerror or str(error)))
        except MemoryError:
            answer(Failed("memory ran out while the engine was built; build with a smaller --batch or fewer --jobs."))
        else:
            answer(Done(layers, perf_counter() - start))


if __name__ == "__main__":
    main(sys.argv[1])
