"""The account that TensorRT-RTX's builder gives of an engine: its kernels, and the memory of its activations.

``python builder_log.py``, as :func:`builder_log` runs it, builds by our own builder, so with the flags of real engines.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgclip_rt.engine_files import Profile
from fgclip_rt.engines.task import Task


@dataclass(frozen=True)
class BuilderLog:
    """Everything that the builder says of one engine."""

    text: str

    @property
    def activations(self) -> int:
        """Bytes of the memory that a run of the largest shapes takes."""
        (size,) = re.findall(r"Total Activation Memory: (\d+) bytes", self.text)
        return int(size)

    @property
    def allocations(self) -> int:
        """Number of layers that take memory of their own while the engine runs."""
        return len(re.findall(r"LayerType: allocate", self.text))

    @property
    def attentions(self) -> int:
        """Number of attentions that are one kernel."""
        return len(re.findall(r"^Name: _gem[mv]_mha_v\d\w*, LayerType", self.text, re.MULTILINE))

    @property
    def copies(self) -> int:
        """Number of kernels that do nothing but copy queries, keys or values to where an attention reads them."""
        return len(re.findall(r"^Name: __myl_\w*Move_myl\w+, LayerType: kgen", self.text, re.MULTILINE))

    @property
    def products(self) -> list[tuple[str, str]]:
        """The types that each plain product reads and writes: its first input's and its output's."""
        pattern = r"LayerType: gemm, Inputs: \[ \{.*?Datatype: (\w+).*?Outputs: \[ \{.*?Datatype: (\w+)"
        return [(read, written) for read, written in re.findall(pattern, self.text)]

    def kernels(self, operations: str) -> int:
        """Number of kernels whose operations, as the builder writes them one after the other, are these."""
        return len(re.findall(rf"^Name: __myl_{operations}_myl\d+_\d+, LayerType", self.text, re.MULTILINE))


def builder_log(
    graph: Path, fixed: dict[str, int], profiles: dict[str, Profile], targets: tuple[str, ...] = ("sm89",)
) -> BuilderLog:
    """Build an engine in a process of its own, because the library keeps the first logger that a process gives it."""
    import msgspec

    task = Task(str(graph), fixed, [profiles], targets, False, "/dev/null", None)
    command = [sys.executable, __file__, msgspec.json.encode(task).decode()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return BuilderLog(result.stdout)


def _main(document: str) -> None:
    import msgspec

    from fgclip_rt.engines import logger
    from fgclip_rt.engines.builder import TensorRtBuilder
    from fgclip_rt.engines.libraries import TensorRtRtx

    class Detailed(TensorRtRtx):
        def set_targets(self, config: Any, targets: Any) -> None:
            super().set_targets(config, targets)
            config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED

    library = Detailed()
    said = type(logger.make_logger(library.trt, []))
    said.log = lambda _, __, message: print(message)  # type: ignore[attr-defined]
    TensorRtBuilder(library).build(msgspec.json.decode(document, type=Task), lambda _: None)


if __name__ == "__main__":
    _main(sys.argv[1])
