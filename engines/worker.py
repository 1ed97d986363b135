"""A process that builds plans: the libraries build one at a time in each, print as they like, and may crash.

It is given a :class:`Task` and answers with any number of :class:`Share`, and then :class:`Done`, :class:`Failed` or
:class:`Unwritable`; then comes the next task.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter

from fgclip_rt.children import serve
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
    """Build until there is no more to build."""
    builder = None

    def build(task: Task, answer: Callable[[Answer], None]) -> None:
        nonlocal builder
        try:
            start = perf_counter()
            builder = builder or make_builder(library)
            layers = builder.build(task, lambda percent: answer(Share(percent)))
        except FgclipError as error:
            answer(Failed(str(error)))
        except OSError as error:
            answer(Unwritable(error.strerror or str(error)))
        except MemoryError:
            answer(Failed("memory ran out while the engine was built; build with a smaller --batch or fewer --jobs."))
        else:
            answer(Done(layers, perf_counter() - start))

    serve(Task, build)


if __name__ == "__main__":
    main(sys.argv[1])
