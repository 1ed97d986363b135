"""Tasks for builders, and the answers of the processes that build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec

from fgclip_rt.engine_files import Profile
from fgclip_rt.manifest import Strict


class Task(Strict, frozen=True):
    """One engine to build.

    Attributes:
        graph: path of the ONNX file.
        fixed: size by the name of the axis.
        profiles: one or several, each by input.
        targets: as the library calls them.
        strip: whether to leave the weights out, and to write beside the plan a graph that finds them again.
        plan: path to write.
        timing_cache: path of a cache to begin with and to add to; None for none.
    """

    graph: str
    fixed: Mapping[str, int]
    profiles: Sequence[Mapping[str, Profile]]
    targets: Sequence[str]
    strip: bool
    plan: str
    timing_cache: str | None


class Builder(Protocol):
    """Builds engines in this process, one at a time."""

    def build(self, task: Task, report: Callable[[int], None]) -> int | None:
        """Write the plan of ``task``.

        Args:
            task: the engine to build.
            report: is told how much is done, in percent, whenever that is more.

        Returns:
            The number of the network's layers; None if the library does not say.

        Raises:
            EngineError: the library cannot build it; the message holds its reason.
            OSError: a file cannot be read or written.
        """


class Share(msgspec.Struct, frozen=True, tag=True):
    """How much of a build is done, in percent."""

    percent: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """The plan is written.

    Attributes:
        layers: of its network; None if the library does not say.
        seconds: that it took.
    """

    layers: int | None
    seconds: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The library cannot build the plan."""

    message: str


class Unwritable(msgspec.Struct, frozen=True, tag=True):
    """A file cannot be read or written."""

    reason: str


Answer: TypeAlias = Share | Done | Failed | Unwritable
