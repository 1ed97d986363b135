"""Settings of a repository, and the names that its models and their callers share."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from fgclip_rt.errors import ArgumentError, check_positive

from .advice import BatchAdvice

#: What runs the graphs: ``fgclip_rt`` in the Python backend, or another backend of Triton's.
Mode: TypeAlias = Literal["in-process", "onnxruntime", "tensorrt"]
MODES: tuple[Mode, ...] = ("in-process", "onnxruntime", "tensorrt")

#: Name of the model that is asked, of its inputs and of its outputs.
MODEL, IMAGE, TEXT, BOXES, VECTOR, VECTORS = "fgclip", "IMAGE", "TEXT", "BOXES", "EMBEDDING", "REGION_EMBEDDING"

#: Folder of the bundle, or of its manifest and tokenizer, beside ``model.py``.
BUNDLE = "bundle"


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a repository.

    Attributes:
        mode: what runs the graphs.
        precision: the precision that runs; None takes the bundle's first.
        gpu: whether graphs run on a GPU, as those of the mode ``tensorrt`` always do.
        regions: whether boxes are answered too.
        instances: processes that decode and tokenise, and in the mode ``in-process`` run the model; on a GPU, those of
            each. None takes one if they run the model, and two otherwise: one prepares while the other waits.
        threads: CPU threads of each instance of a model that runs graphs; None takes all cores.
        max_batch_size: most items of a batch.
        advice: sizes of batches that were measured; None takes 16,384 patches or tokens on a GPU, and 2,048 on a CPU.
        delay: seconds that a request waits for others at most.
        max_queue: requests of a model that may wait; more are rejected at once.
    """

    mode: Mode = "in-process"
    precision: str | None = None
    gpu: bool = False
    regions: bool = False
    instances: int | None = None
    threads: int | None = None
    max_batch_size: int = 32
    advice: BatchAdvice | None = None
    delay: float = 0.005
    max_queue: int = 256

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            ArgumentError: one is.
        """
        if self.mode not in MODES:
            raise ArgumentError(f"--mode is {self.mode}; choose {', '.join(MODES[:-1])} or {MODES[-1]}.")
        for name in ("instances", "threads", "max_batch_size", "max_queue"):
            check_positive(f"--{name.replace('_', '-')}", getattr(self, name))
        if not 0 <= self.delay <= 60:
            raise ArgumentError(f"--max-wait is {self.delay:g}; give seconds from 0 to 60.")

    @property
    def on_gpu(self) -> bool:
        """Whether graphs run on a GPU."""
        return self.gpu or self.mode == "tensorrt"

    @property
    def fronts(self) -> int:
        """Instances of the model that is asked."""
        return self.instances or (1 if self.mode == "in-process" else 2)
