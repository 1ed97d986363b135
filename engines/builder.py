"""One graph to one plan, by TensorRT's builder: a strongly typed network, whose types are those of the graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fgclip_rt.engine_files import REFIT, Profile
from fgclip_rt.errors import EngineError

from .libraries import TensorRtLibrary
from .logger import make_logger, ran_out_of_memory, reason
from .network import parser_input
from .progress import Progress
from .task import Task


class TensorRtBuilder:
    """Builds plans in this process, one at a time: the library knows one logger, whoever passes which."""

    def __init__(self, library: TensorRtLibrary) -> None:
        self._library = library
        self._errors: list[str] = []
        self._logger = make_logger(library.trt, self._errors)

    def build(self, task: Task, report: Callable[[int], None]) -> int | None:
        """As :meth:`Builder.build`."""
        trt = self._library.trt
        self._errors.clear()
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        graph = parser_input(Path(task.graph), task.fixed)
        # The path is where the parser looks for the weights.
        if not parser.parse(graph, task.graph):
            reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise EngineError(self._failure(task, reasons))

        config = builder.create_builder_config()
        # It rounds float32 products to three decimal digits, and parity would not hold.
        config.clear_flag(trt.BuilderFlag.TF32)
        # Otherwise a run of any shape takes as much memory as the profile's largest. TensorRT has it from 10.10 on.
        if hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
            config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
        if task.strip:
            # An engine that may be given other weights can lose a bias (TensorRT 11.3); one for the same cannot.
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        config.progress_monitor = _monitor(trt, report)
        for profiles in task.profiles:
            config.add_optimization_profile(_profile(builder, network, profiles))
        self._library.set_targets(config, task.targets)
        cache = TimingCache(config, task.timing_cache)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(self._failure(task, self._errors))
        cache.save()
        Path(task.plan).write_bytes(plan)
        if task.strip:
            Path(task.plan).with_name(REFIT).write_bytes(graph)
        return int(network.num_layers)

    def _failure(self, task: Task, reasons: list[str]) -> str:
        why = reason(reasons)
        if ran_out_of_memory(why):
            return f"memory ran out in {self._library} ({why}); build with a smaller --batch or fewer --jobs."
        return (
            f"{self._library} refused {Path(task.graph).name} for {', '.join(task.targets)} ({why}); try "
            "another target or precision."
        )


def _monitor(trt: Any, report: Callable[[int], None]) -> Any:
    progress = Progress(report)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress.start(name, parent, steps)

        def phase_finish(self, name: str) -> None:
            progress.finish(name)

        def step_complete(self, name: str, step: int) -> bool:
            progress.step(name, step)
            return True

    return Monitor()


def _profile(builder: Any, network: Any, profiles: Mapping[str, Profile]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        if -1 in tuple(value.shape):
            shapes = profiles[value.name]
            profile.set_shape(value.name, shapes.min, shapes.opt, shapes.max)
    return profile


class TimingCache:
    """A file with timings of kernels, for a library that can use them; without a path it does nothing."""

    def __init__(self, config: Any, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        self._config = config
        self._cache = config.create_timing_cache(self._read())
        if not config.set_timing_cache(self._cache, ignore_mismatch=False):
            # The timings are those of another GPU or driver, so begin anew.
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, ignore_mismatch=False)

    def save(self) -> None:
        """Write the file anew, together with what others have added since, if it is of this GPU."""
        if self._path is None:
            return
        self._cache.combine(self._config.create_timing_cache(self._read()), ignore_mismatch=False)
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        partial.write_bytes(self._cache.serialize())
        partial.replace(self._path)

    def _read(self) -> bytes:
        assert self._path is not None
        return self._path.read_bytes() if self._path.exists() else b""
