"""Plans and executions over a library that is simulated: its names are those of the real one."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_gpu import make_engine

from fgclip_rt.bundle import Bundle, file_info
from fgclip_rt.engine_files import Engine, EngineRecord
from fgclip_rt.engines.cuda import SETUP
from fgclip_rt.engines.execution import TensorRtPlan
from fgclip_rt.engines.libraries import TensorRt, TensorRtRtx
from fgclip_rt.engines.profiles import Shapes, plan
from fgclip_rt.engines.runtime_cache import RuntimeCache
from fgclip_rt.errors import DeviceError, EngineError
from helpers import assert_one_sentence

real = pytest.importorskip("tensorrt_rtx")

SHAPES = {"input_ids": (2, 64)}
#: The batches of each profile.
PROFILES = [(1, 1), (2, 8), (9, 32)]


class Cache:
    """A runtime cache that holds words; the word ``other`` makes it one of another GPU."""

    def __init__(self) -> None:
        self.words: set[bytes] = set()

    def deserialize(self, data: bytes) -> bool:
        words = set(data.split())
        if b"other" in words:
            return False
        self.words = words
        return True

    def serialize(self) -> memoryview:
        return memoryview(b" ".join(sorted(self.words)))


class Context:
    """An execution context, which refuses the calls that the library's state names."""

    def __init__(self, state: SimpleNamespace) -> None:
        self.state = state
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        assert hasattr(real.IExecutionContext, name)

        def call(*arguments: Any) -> bool:
            self.calls.append((name, *arguments))
            if name in self.state.refuses:
                self.state.logger.log(real.ILogger.ERROR, "Error Code 3: no such thing. In f at /a.cpp:1")
            return name not in self.state.refuses

        return call

    def update_device_memory_size_for_shapes(self) -> int:
        return 1000


def make_library(kind: type[TensorRt] | type[TensorRtRtx]) -> tuple[Any, SimpleNamespace]:
    """A library whose module is simulated, and its state, which tests change and look at."""
    state = SimpleNamespace(refuses=set(), contexts=[], configs=[], cache=Cache(), logger=None)

    def context(*_: Any) -> Context:
        state.contexts.append(Context(state))
        return state.contexts[-1]

    def config() -> SimpleNamespace:
        made = SimpleNamespace(
            caches=[],
            create_runtime_cache=lambda: state.cache,
            set_execution_context_allocation_strategy=lambda _: None,
        )
        made.set_runtime_cache = made.caches.append
        state.configs.append(made)
        return made

    engine = SimpleNamespace(
        create_execution_context=context,
        create_runtime_config=config,
        num_optimization_profiles=len(PROFILES),
        get_tensor_shape=lambda _: (-1, 64),
        get_tensor_profile_shape=lambda _, index: [(PROFILES[index][0], 64), (1, 64), (PROFILES[index][1], 64)],
    )

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = state.logger = logger

        def deserialize_cuda_engine(self, _: bytes) -> Any:
            # No graph may be captured meanwhile.
            assert SETUP._is_owned()
            if state.refuses == {"deserialize_cuda_engine"}:
                self.logger.log(real.ILogger.ERROR, state.reason)
                return None
            return engine

    library: Any = object.__new__(kind)
    library.version = "1.2.3"
    library.trt = SimpleNamespace(
        __name__=f"simulated {kind.name}",
        ILogger=real.ILogger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=real.ExecutionContextAllocationStrategy,
        CudaGraphStrategy=real.CudaGraphStrategy,
    )
    return library, state


@pytest.fixture
def engine(bundle_path: Path, tmp_path: Path) -> Engine:
    """An engine of the text graph whose plan is four bytes."""
    bundle = Bundle.open(bundle_path, check_hashes=False)
    (spec,) = plan(bundle.manifest, ["fp32"], ["text"], Shapes(text_lengths=[64]))
    (tmp_path / "engine.plan").write_bytes(b"plan")
    files = {"engine.plan": file_info(tmp_path / "engine.plan")}
    return Engine(tmp_path, msgspec.structs.replace(make_engine(bundle, spec).record, files=files))


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (2, 1), (8, 1), (9, 2), (32, 2)])
def test_the_profile_that_takes_the_batch_is_set_on_the_stream_that_runs(
    engine: Engine, batch: int, profile: int
) -> None:
    library, state = make_library(TensorRt)
    TensorRtPlan(library, engine, "gpu").execution({"input_ids": (batch, 64)}, np.int64(77))
    *before, shape = state.contexts[0].calls
    # A context has the first by itself.
    assert before == ([("set_optimization_profile_async", profile, 77)] if profile else [])
    assert shape == ("set_input_shape", "input_ids", (batch, 64))


@pytest.mark.parametrize(
    ("call", "error", "part"),
    [
        ("set_optimization_profile_async", EngineError, "profile 1"),
        ("set_input_shape", EngineError, "[2, 64]"),
        ("set_tensor_address", DeviceError, "memory for input_ids"),
        ("execute_async_v3", DeviceError, "could not be run"),
    ],
)
def test_what_the_library_refuses_is_told_with_its_reason(
    engine: Engine, call: str, error: type[Exception], part: str
) -> None:
    library, state = make_library(TensorRt)
    state.refuses = {call}

    def run() -> None:
        execution = TensorRtPlan(library, engine, "gpu").execution(SHAPES, 7)
        execution.bind({"input_ids": 4096}, 8192, 1000)
        execution.enqueue(7)

    with pytest.raises(error) as info:
        run()
    assert_one_sentence(info.value, part, "no such thing")


@pytest.mark.parametrize(
    ("why", "error", "code"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 9 bytes.)", DeviceError, "out_of_memory"),
        ("Error Code 1: the plan is of another version.", EngineError, "engine_failed"),
    ],
)
def test_a_plan_that_is_refused(engine: Engine, why: str, error: type[Exception], code: str) -> None:
    library, state = make_library(TensorRt)
    state.refuses, state.reason = {"deserialize_cuda_engine"}, why
    with pytest.raises(error) as info:
        TensorRtPlan(library, engine, "gpu")
    assert_one_sentence(info.value, "engine.plan", code=code)


def test_weights_that_cannot_be_given_back_are_told_with_the_parsers_reason(engine: Engine) -> None:
    """It keeps its reasons, and tells the logger nothing."""
    library, state = make_library(TensorRt)

    class Parser:
        num_errors = 1

        def __init__(self, *_: Any) -> None:
            assert hasattr(real.OnnxParserRefitter, "num_errors")

        def refit_from_bytes(self, *_: Any) -> bool:
            return False

        def get_error(self, index: int) -> Any:
            assert index == 0
            return SimpleNamespace(desc=lambda: "weight fc1 has another shape")

    library.trt.Refitter = lambda *_: SimpleNamespace(refit_cuda_engine=lambda: True)
    library.trt.OnnxParserRefitter = Parser
    (engine.path / "refit.onnx").write_bytes(b"graph")
    stripped: EngineRecord = msgspec.structs.replace(
        engine.record, key=msgspec.structs.replace(engine.key, stripped=True)
    )
    with pytest.raises(EngineError) as info:
        TensorRtPlan(library, Engine(engine.path, stripped), "gpu")
    assert_one_sentence(info.value, "weight fc1 has another shape", "--strip-weights")
    assert state.contexts == []


def test_kernels_that_were_compiled_are_there_in_the_next_process(engine: Engine) -> None:
    file = engine.path / "runtime-gpu-13000.cache"
    library, state = make_library(TensorRtRtx)
    made = TensorRtPlan(library, engine, "gpu-13000")
    made.execution(SHAPES, 7)
    assert state.configs[-1].caches == [state.cache]
    state.cache.words.add(b"first")
    # A process that is killed keeps what was compiled before the latest shape.
    made.execution({"input_ids": (4, 64)}, 7)
    assert file.read_bytes() == b"first"
    state.cache.words.add(b"second")
    del made
    gc.collect()
    assert file.read_bytes() == b"first second"
    assert sorted(path.name for path in engine.path.iterdir()) == ["engine.plan", file.name]
    library, state = make_library(TensorRtRtx)
    TensorRtPlan(library, engine, "gpu-13000")
    assert state.cache.words == {b"first", b"second"}


def test_kernels_of_another_gpu_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "runtime.cache"
    file.write_bytes(b"other old")
    _, state = make_library(TensorRtRtx)
    cache = RuntimeCache(SimpleNamespace(create_runtime_cache=lambda: state.cache), file)
    assert state.cache.words == set()
    state.cache.words.add(b"new")
    cache.save()
    assert file.read_bytes() == b"new"


def test_a_forked_child_saves_nothing(tmp_path: Path) -> None:
    _, state = make_library(TensorRtRtx)
    cache = RuntimeCache(SimpleNamespace(create_runtime_cache=lambda: state.cache), tmp_path / "file")
    state.cache.words.add(b"new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        del cache
        gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    _, state = make_library(TensorRtRtx)
    cache = RuntimeCache(SimpleNamespace(create_runtime_cache=lambda: state.cache), tmp_path / "gone" / "file")
    state.cache.words.add(b"new")
    cache.save()
    assert list(tmp_path.iterdir()) == []


def test_the_simulated_library_has_the_names_of_the_real_one() -> None:
    for name in ("create_runtime_cache", "set_runtime_cache", "set_execution_context_allocation_strategy"):
        assert hasattr(real.IRuntimeConfig, name)
    for name in ("serialize", "deserialize"):
        assert hasattr(real.IRuntimeCache, name)
    for name in ("create_runtime_config", "num_optimization_profiles", "get_tensor_profile_shape"):
        assert hasattr(real.ICudaEngine, name)
