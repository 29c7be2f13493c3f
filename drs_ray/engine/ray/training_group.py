"""A group of workers that train one thing together (Ray Train), what they tell the driver, and how they begin again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drs_ray.config import EngineConfig
from drs_ray.engine.placement import Placement
from drs_ray.engine.ray.connection import connect
from drs_ray.engine.ray.driver import cluster_gpus
from drs_ray.engine.ray.failures import last_line, ray_or_resume, reason_of
from drs_ray.errors import ConfigError, DrsError, EngineError, counted
from drs_ray.models.torch_state import threads_of

MOST_FAILURES = 3
"""So often a group that lost a worker begins again after its last state; then the training ends."""
_START_SECONDS = 60.0
"""How long Ray Train waits for a group's workers before it asks again; it has no name for it but an environment key."""
_POLL_SECONDS = 0.2
_END_SECONDS = 60.0
"""How long a worker whose work cannot succeed waits to be ended with its group."""


Send = Callable[[Any, Any], None]
"""Called by the first worker of a group with a message, and with the state to begin again from (None: as before)."""


class GroupJob(Protocol):
    """What a group is to do; it is pickled, and so are its states and messages."""

    def work(self, device: str, rank: int, workers: int, start: Any, send: Send) -> None:
        """One worker's part, beginning at `start`; torch.distributed is initialized."""


class Mailbox:
    """The actor between a group and its driver: what the first worker tells, and the state to begin again from.

    Workers may be on other machines than the driver, and their disks are not used: states travel through Ray.
    """

    def __init__(self, start: Any) -> None:
        """A job that begins at `start`."""
        self._latest = start
        self._told: list[Any] = []
        self._error: DrsError | None = None
        self._stopped = False

    def begin(self) -> Any:
        """Where a worker begins; None: it is not to begin, because the job failed for good or was stopped."""
        return None if self._error is not None or self._stopped else self._latest

    def send(self, message: Any, state: Any) -> None:
        """Keep a message for the driver, and a state, if there is one."""
        self._told.append(message)
        if state is not None:
            self._latest = state

    def fail(self, error: DrsError) -> None:
        """The job failed for a reason that will be the same next time."""
        self._error = self._error or error

    def stop(self) -> None:
        """No worker is to begin any more."""
        self._stopped = True

    def take(self) -> tuple[list[Any], DrsError | None]:
        """What was told since the last call, and why the job failed, if it did."""
        told, self._told = self._told, []
        return told, self._error


@ray_or_resume()
def run_group(
    job: GroupJob,
    engine: EngineConfig,
    workers: int,
    start: Any,
    on_message: Callable[[Any], None],
    on_note: Callable[[str], None],
) -> None:
    """Have a job done by so many workers at once, on the Ray of `engine.address`.

    A worker that dies ends its group, and another group begins at the last state that was told.

    Args:
        job: what to do.
        engine: which Ray, and what a worker asks for.
        workers: how many.
        start: where to begin.
        on_message: called in this process with what the first worker tells, in order; again where a group began again.
        on_note: called with a line about what is not as usual.

    Raises:
        ConfigError: this machine can never hold the workers.
        DrsError: what the job raised.
        EngineError: workers cannot be had, or fail again and again.
    """
    connected = connect(engine, on_note)
    try:
        device = engine.device
        if device == "auto":
            device = "cuda" if cluster_gpus(engine) else "cpu"
        gpus = engine.gpus_per_worker if device == "cuda" else 0.0
        placement = Placement.of(engine.model_copy(update={"device": device, "gpus_per_worker": gpus}))
        _check_room(engine, placement, workers, on_note)
        mailbox = ray.remote(Mailbox).options(num_cpus=0).remote(start)
        with tempfile.TemporaryDirectory(prefix="drs-ray-group-", ignore_cleanup_errors=True) as storage:
            fitting = (
                ray.remote(_fit)
                .options(
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(
                        ray.get_runtime_context().get_node_id(), soft=False
                    ),
                )
                .remote(
                    {
                        "job": job,
                        "mailbox": mailbox,
                        "directory": str(Path.cwd()),
                        "threads": threads_of(engine.cpus_per_worker),
                    },
                    ScalingConfig(
                        num_workers=workers,
                        use_gpu=device == "cuda",
                        resources_per_worker=placement.needed,
                        label_selector=dict(placement.labels) or None,
                    ),
                    RunConfig(
                        storage_path=storage,  # Ray Train must have one; states go over the mailbox
                        failure_config=FailureConfig(
                            max_failures=MOST_FAILURES,
                            controller_failure_limit=int(engine.stall_seconds // _START_SECONDS),
                        ),
                    ),
                )
            )
            _follow(fitting, mailbox, on_message)
    finally:
        if connected:
            ray.shutdown()


def _work(config: dict[str, Any]) -> None:
    """What each worker of the group runs."""
    job, mailbox = config["job"], config["mailbox"]
    if Path(config["directory"]).is_dir():  # relative paths mean what they mean to the driver; Ray Train has its own
        os.chdir(config["directory"])
    torch.set_num_threads(config["threads"])
    start = ray.get(mailbox.begin.remote())
    if start is None:
        return
    context = get_context()
    try:
        job.work(
            str(get_device()),
            context.get_world_rank(),
            context.get_world_size(),
            start,
            lambda message, state: ray.get(mailbox.send.remote(message, state)),
        )
    except DrsError as error:
        ray.get(mailbox.fail.remote(error))
        if context.get_world_size() > 1:  # the others may wait for this one, and the driver ends the group (`_follow`):
            time.sleep(_END_SECONDS)  # to raise at once would make Ray Train begin another group first
            raise


def _fit(config: dict[str, Any], scaling: ScalingConfig, run: RunConfig) -> str | None:
    """Run the group to its end; why it failed, if it did.

    A task of its own: in the driver's main thread Ray Train would take SIGINT for itself, and in another thread it
    would still use Ray when an interrupted driver leaves it, which ends the process before it can say how to go on.
    """
    try:
        TorchTrainer(_work, train_loop_config=config, scaling_config=scaling, run_config=run).fit()
    except TrainingFailedError as error:
        return _reason(error)
    return None


def _follow(fitting: Any, mailbox: Any, on_message: Callable[[Any], None]) -> None:
    """Pass on what the group tells, until it has ended."""
    try:
        ended: list[Any] = []
        while not ended:
            ended, _ = ray.wait([fitting], timeout=_POLL_SECONDS)
            told, error = ray.get(mailbox.take.remote())
            for message in told:
                on_message(message)
            if error is not None:
                raise error
        try:
            reason = ray.get(fitting)
        except RayTaskError as failure:
            raise EngineError(f"the group of workers could not be run: {reason_of(failure)}") from failure
        if reason is not None:
            raise EngineError(
                f"the workers could not be had, or failed more than {MOST_FAILURES} times, the last time: "
                f"{reason}; mend the cause and run the same command to go on after the last state"
            )
    finally:
        mailbox.stop.remote()
        ray.cancel(fitting, force=True)  # nothing to do where it has ended; else its group ends with it


def _reason(error: Exception) -> str:
    """What the first worker that failed, or Ray Train itself, raised."""
    by_rank = getattr(error, "worker_failures", None)
    if not by_rank:
        return last_line(error)
    rank = min(by_rank)
    return f"worker {rank}: {last_line(by_rank[rank])}"


def _check_room(engine: EngineConfig, placement: Placement, workers: int, on_note: Callable[[str], None]) -> None:
    """All workers of a group run at once: a local Ray, which never grows, must have room for them."""
    nodes = ray.nodes()
    there = sum(placement.workers_on(node) for node in nodes)
    if there >= workers:
        return
    text = f"{counted(workers, 'worker')} with {placement.needs} at once; there: {placement.there(nodes)}"
    if engine.address == "local":
        raise ConfigError(
            f"training.workers: this machine's Ray has room for {there}: asked for {text}; lower training.workers or "
            "engine.cpus_per_worker, or use a cluster (engine.address: auto)"
        )
    on_note(f"the cluster has no room for {text}; waiting up to {engine.stall_seconds:.0f} s for nodes to come")
