"""Copies, events, capture, replay, memory and threads, on any NVIDIA GPU and without TensorRT.

Kernels that NVRTC compiles stand for an engine. The same tests run on the simulated GPU, which has none of CUDA's
surprises but works in a bad order, so that they are tested themselves where there is no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adding import DOUBLED, INPUT, SUMS, TENSORS, AddingPlan, NvidiaKernels, SimulatedKernels, compile_kernels
from fake_gpu import FakeCuda

from fgclip_rt.engines.cuda import SETUP, Cuda
from fgclip_rt.engines.lane import Lane, Workspace
from fgclip_rt.errors import DeviceError
from fgclip_rt.machine import cuda_gpus
from helpers import assert_one_sentence

Array = np.ndarray[Any, Any]
SIMULATED, NVIDIA = "simulated", "nvidia"


def why_not() -> str | None:
    """Why no kernel can run on a GPU here; None if one can."""
    if not cuda_gpus():
        return "no NVIDIA GPU that CUDA gives this process"
    try:
        compile_kernels()
    except (ImportError, OSError, RuntimeError) as error:
        return f"no NVRTC here ({error})"
    return None


class Machine:
    """A GPU with the kernels of :class:`AddingPlan`.

    Attributes:
        cuda: the GPU.
        kernels: what plans run.
        workspace: of all lanes.
    """

    def __init__(self, kind: str) -> None:
        self.cuda: Any = Cuda() if kind == NVIDIA else FakeCuda()
        with self.cuda.current():
            self.kernels: Any = NvidiaKernels(compile_kernels()) if kind == NVIDIA else SimulatedKernels(self.cuda)
            self.workspace = Workspace(self.cuda)

    def lane(self, plan: AddingPlan) -> Lane:
        with self.cuda.current():
            return Lane("adding", plan, TENSORS, self.workspace)  # type: ignore[arg-type]

    def begin(self, lane: Lane, numbers: Array) -> Any:
        with self.cuda.current():
            return lane.begin({INPUT: numbers}, {INPUT: numbers.shape}, [SUMS, DOUBLED])


@pytest.fixture(params=[SIMULATED, NVIDIA])
def machine(request: pytest.FixtureRequest) -> Machine:
    if request.param == NVIDIA and (reason := why_not()):
        pytest.skip(reason)
    return Machine(request.param)


@pytest.fixture
def gpu() -> Machine:
    """A GPU that is there, for what a simulated one cannot show."""
    if reason := why_not():
        pytest.skip(reason)
    return Machine(NVIDIA)


def numbers(seed: int, rows: int, columns: int = 300) -> Array:
    """Whole numbers, whose sums no order rounds."""
    return np.random.default_rng(seed).integers(-50, 50, (rows, columns)).astype(np.float32)


def check(outputs: list[Array], given: Array) -> None:
    sums, doubled = outputs
    np.testing.assert_array_equal(sums, given.sum(1))
    np.testing.assert_array_equal(doubled, 2 * given)


def test_the_kernels_compile_without_a_gpu() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    ptx = compile_kernels()
    assert b".entry twice" in ptx
    assert b".entry add" in ptx


def test_runs_overlap_and_every_batch_gets_its_own_results(machine: Machine) -> None:
    lane = machine.lane(AddingPlan(machine.kernels))
    running = []
    for seed in range(200):
        given = numbers(seed, 1 + seed % 7)
        running.append((machine.begin(lane, given.copy()), given))
        if len(running) > 5:
            pending, expected = running.pop(0)
            check(pending.result(), expected)
    for pending, expected in reversed(running):
        check(pending.result(), expected)


def test_shapes_that_come_again_are_replayed(machine: Machine) -> None:
    """Each of two slots runs a shape once, captures it once, and launches the graph from then on."""
    plan = AddingPlan(machine.kernels)
    lane = machine.lane(plan)
    for seed in range(40):
        given = numbers(seed, 4)
        check(machine.begin(lane, given).result(), given)
    assert (plan.executions, plan.enqueued) == (2, 4)


def test_engines_that_share_activations_do_not_disturb_each_other(machine: Machine) -> None:
    """The memory grows while runs of the other engine are on their way."""
    lanes = [machine.lane(AddingPlan(machine.kernels)) for _ in range(3)]
    running = []
    for seed in range(90):
        given = numbers(seed, 1 + (seed * 7) % 40)
        running.append((machine.begin(lanes[seed % 3], given), given))
        if len(running) > 4:
            pending, expected = running.pop(0)
            check(pending.result(), expected)
    for pending, expected in running:
        check(pending.result(), expected)


def test_threads_take_turns(machine: Machine) -> None:
    plans = [AddingPlan(machine.kernels) for _ in range(2)]
    lanes = [machine.lane(plan) for plan in plans]

    def work(seed: int) -> None:
        given = numbers(seed, 1 + seed % 5)
        check(machine.begin(lanes[seed % 2], given).result(), given)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(400)))
    assert sum(plan.executions for plan in plans) <= 2 * 2 * 5 * 6


def test_the_memory_of_a_run_that_begins_is_not_replaced(machine: Machine) -> None:
    """Another engine may ask for more activations at any moment, but not between the choice of memory and the run."""
    kernels, lock = machine.kernels, machine.workspace.lock
    taken: list[bool] = []

    class Watched:
        def enqueue(self, *arguments: Any) -> None:
            with ThreadPoolExecutor(1) as threads:
                taken.append(threads.submit(lock.acquire, False).result())
            kernels.enqueue(*arguments)

    given = numbers(0, 4)
    check(machine.begin(machine.lane(AddingPlan(Watched())), given).result(), given)
    assert taken == [False]


def test_memory_stays_flat_over_ten_thousand_runs(machine: Machine) -> None:
    plan = AddingPlan(machine.kernels)
    lane = machine.lane(plan)

    def run(count: int) -> None:
        for seed in range(count):
            given = numbers(seed % 64, 2 ** (seed % 4), 64)
            check(machine.begin(lane, given).result(), given)

    run(40)
    free, made, enqueued = machine.cuda.free_memory(), plan.executions, plan.enqueued
    runs = 10_000 if isinstance(machine.cuda, Cuda) else 500
    run(runs)
    assert free - machine.cuda.free_memory() < 4 << 20
    # All of them were launches of graphs.
    assert (plan.executions, plan.enqueued) == (made, enqueued)


def test_what_does_not_fit_is_told_and_leaves_nothing_behind(machine: Machine) -> None:
    """Each row takes a tenth of what is free."""
    if isinstance(machine.cuda, FakeCuda):
        machine.cuda.capacity = 1 << 24
    tenth = machine.cuda.free_memory() // 10
    lane = machine.lane(AddingPlan(machine.kernels, extra=tenth))
    with pytest.raises(DeviceError) as info:
        machine.begin(lane, numbers(0, 32))
    assert_one_sentence(info.value, "batch of 32", "largest batch that fits is 8")
    given = numbers(1, 8)
    check(machine.begin(lane, given).result(), given)


def test_memory_comes_back_with_the_lanes(machine: Machine) -> None:
    free = machine.cuda.free_memory()
    lanes = [machine.lane(AddingPlan(machine.kernels)) for _ in range(4)]
    for lane in lanes:
        machine.begin(lane, numbers(0, 512, 10_000)).result()
    assert machine.cuda.free_memory() < free
    del lane
    lanes.clear()
    machine.workspace.release()
    assert abs(free - machine.cuda.free_memory()) < 4 << 20


def test_a_capture_survives_what_other_threads_do(gpu: Machine) -> None:
    """Loading and freeing wait for the whole GPU, which CUDA forbids while a graph is captured."""
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            with SETUP, gpu.cuda.current():
                gpu.cuda.device_memory(1 << 20)
                NvidiaKernels(compile_kernels())

    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(disturb)
        try:
            for seed in range(30):
                plan = AddingPlan(gpu.kernels)
                lane = gpu.lane(plan)
                for _ in range(6):
                    given = numbers(seed, 4)
                    check(gpu.begin(lane, given).result(), given)
                assert plan.enqueued == 4
        finally:
            stop.set()
        other.result()


def test_a_thread_that_waits_sleeps(gpu: Machine) -> None:
    lane = gpu.lane(AddingPlan(gpu.kernels))
    gpu.begin(lane, numbers(0, 4)).result()
    gpu.kernels.clocks = 1_000_000_000  # about half a second
    start, busy = time.perf_counter(), time.thread_time()
    gpu.begin(lane, numbers(0, 4)).result()
    elapsed = time.perf_counter() - start
    assert elapsed > 0.2
    assert time.thread_time() - busy < elapsed / 4


def test_the_callers_gpu_stays_current(gpu: Machine) -> None:
    from cuda.bindings import runtime

    _, count = runtime.cudaGetDeviceCount()
    runtime.cudaSetDevice(count - 1)
    lane = gpu.lane(AddingPlan(gpu.kernels))
    given = numbers(0, 4)
    check(gpu.begin(lane, given).result(), given)
    assert runtime.cudaGetDevice()[1] == count - 1
    runtime.cudaSetDevice(0)


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
from test_lane import NVIDIA, SIMULATED, AddingPlan, Machine, numbers, why_not

machine = Machine(SIMULATED if why_not() else NVIDIA)
lane = machine.lane(AddingPlan(machine.kernels))
pending = [machine.begin(lane, numbers(seed, 4)) for seed in range(9)]
print(machine.cuda is not None)
"""


def test_a_process_that_ends_with_work_on_its_way_ends_well() -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent)]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-c", PROGRAM, *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "True", "")
