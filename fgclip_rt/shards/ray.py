"""Workers as actors of Ray Data, on one machine or many; they do what the processes do, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import ShardError, reason
from ..packages import require
from .pool import WorkerProcess
from .task import Done, Refused, Report, Setup, Task, outcome


def run_ray(
    setup: Setup,
    tasks: Sequence[Task],
    report: Report,
    *,
    address: str | None = None,
    actors: int = 1,
    num_gpus: float = 0.0,
) -> None:
    """Do tasks in actors of a Ray cluster. An actor or a node that is lost costs its shard, which another does.

    The bundle, the inputs and the output must be found on every node under the same paths or URLs.

    Args:
        setup: makes each worker; each takes ``threads`` CPUs of its node.
        tasks: the shards to do.
        report: is told of each shard that ends.
        address: address of the cluster; None takes the one that ``RAY_ADDRESS`` names, or begins one on this machine.
        actors: most workers at the same time; there are fewer while the cluster has no room.
        num_gpus: GPUs that each takes, such as 0.5.

    Raises:
        FgclipError: no shard can be done: the model cannot be loaded, or the output cannot be written.
        MissingDependencyError: Ray is not installed.
    """
    require("ray", ["ray", "pandas"], "--ray needs {}, which is not installed", "leave --ray out")
    import ray
    import ray.data

    begun = not ray.is_initialized()
    if begun:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    try:
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        with ray.data.DataContext.current(context):
            by_name = {task.shard.name: task for task in tasks}
            rows = [{"task": msgspec.json.encode(task)} for task in tasks]
            answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=[msgspec.json.encode(setup)],
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, max_tasks_in_flight_per_actor=1),
                num_cpus=setup.threads or 1,
                num_gpus=num_gpus or None,
            )
            for row in answers.iter_rows():
                answer = msgspec.json.decode(row["answer"], type=Done | Refused)
                task = by_name[row["shard"]]
                if isinstance(answer, Done):
                    report.step(answer.marker.rows, sum(answer.marker.errors.values()))
                report.ended(outcome(task, answer))
    except ray.exceptions.RayError as error:
        raise ShardError(
            f"the Ray cluster failed ({reason(error)}); mend it, and repeat the command.", code="worker_died"
        ) from None
    finally:
        if begun:
            ray.shutdown()


class _Actor:
    """Holds a worker process, so that an image that crashes it ends no actor, whose task Ray would repeat for ever."""

    def __init__(self, setup: bytes) -> None:
        self._worker = WorkerProcess(msgspec.json.decode(setup, type=Setup))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        task = msgspec.json.decode(batch["task"][0], type=Task)
        return {"shard": [task.shard.name], "answer": [msgspec.json.encode(self._worker.do(task))]}
