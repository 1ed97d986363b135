"""The process of one contender, which answers each request once."""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import partial
from time import perf_counter

import msgspec
import numpy as np

from fgclip_rt.arrays import Array
from fgclip_rt.children import serve
from fgclip_rt.errors import FgclipError
from fgclip_rt.turns import timed

from .memory import peak_memory, reset_peak_memory, resident_memory
from .task import (
    Again,
    Answer,
    Case,
    Clocked,
    Contender,
    Prepare,
    Prepared,
    Problem,
    Ran,
    Request,
    Run,
    Runner,
    UnableError,
)

#: Module and class of each kind of contender.
RUNNERS = {
    "fgclip-rt": ("runtime", "Runtime"),
    "onnxruntime provider": ("gpu", "Provider"),
    "engines": ("gpu", "Engines"),
    "engines enqueued": ("gpu", "EnginesEnqueued"),
    "engines back to back": ("gpu", "EnginesBackToBack"),
    "products": ("products", "Products"),
    "products on a GPU": ("products", "GpuProducts"),
    "pytorch": ("peers", "PyTorch"),
    "pytorch compiled": ("peers", "Compiled"),
    "pytorch autocast": ("peers", "Autocast"),
    "pytorch autocast compiled": ("peers", "AutocastCompiled"),
    "pytorch graphs autocast compiled": ("peers", "GraphsCompiled"),
    "transformers": ("peers", "Transformers"),
    "onnxruntime": ("plain", "OnnxRuntime"),
    "openvino": ("plain", "OpenVino"),
}


class Process:
    """Answers requests for one contender, which is made at the first request."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._runner: Runner | None = None
        self._run: Run | None = None

    def answer(self, request: Request) -> Answer:
        """Do as asked. An error becomes the answer, because it goes into the results."""
        try:
            return self._prepare(request.case) if isinstance(request, Prepare) else self._again(request)
        except MemoryError:
            return Problem("memory ran out")
        except (UnableError, FgclipError) as reason:
            return Problem(str(reason).rstrip("."))
        except Exception as error:  # it goes into the results
            lines = str(error).strip().splitlines()
            return Problem(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")

    def _prepare(self, case: Case) -> Prepared | Problem:
        self._run = None
        if self._contender.problem:
            raise UnableError(self._contender.problem)
        if self._runner is None:
            module, name = RUNNERS[self._contender.kind]
            self._runner = getattr(importlib.import_module(f".{module}", __package__), name)(self._contender)
        assert self._runner is not None
        self._run = self._runner.prepare(case)
        loaded = resident_memory() if self._contender.device == "cpu" else 0
        reset_peak_memory()
        start = perf_counter()
        result = self._run()
        seconds = perf_counter() - start
        vector = _first_vector(result)
        return Prepared(seconds, vector, loaded) if np.isfinite(vector).all() else Problem("its numbers are not finite")

    def _again(self, request: Again) -> Ran:
        assert self._run is not None
        clock = self._run.seconds if isinstance(self._run, Clocked) else partial(timed, self._run)
        if request.warm_up:
            clock(request.runs)
        return Ran(clock(request.runs), peak_memory() if self._contender.device == "cpu" else 0)


def _first_vector(result: Array) -> list[float]:
    """The first vector along the last axis, as numbers."""
    numbers: list[float] = np.asarray(result, np.float64).reshape(-1, result.shape[-1])[0].tolist()
    return numbers


def main(contender: str) -> None:
    """Answer requests until the input ends."""
    warnings.simplefilter("ignore")
    process = Process(msgspec.json.decode(contender, type=Contender))
    serve(Request, lambda request, answer: answer(process.answer(request)))


if __name__ == "__main__":
    main(sys.argv[1])
