"""A group of workers that train together (Ray Train): messages to the driver, and restarts from the last state."""

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
"""Number of restarts of a group that lost a worker; then the training ends."""
_START_SECONDS = 60.0
"""Time after which Ray Train requests a group's workers again. Ray has only an environment variable for it."""
_POLL_SECONDS = 0.2
_END_SECONDS = 60.0
"""Time that a failed worker waits for the driver to end its group."""


Send = Callable[[Any, Any], None]
"""Called by the first worker of a group with a message and the state to restart from (None: keep the last one)."""


class GroupJob(Protocol):
    """The work of a group. Jobs, states and messages are pickled."""

    def work(self, device: str, rank: int, workers: int, start: Any, send: Send) -> None:
        """Do the work of one worker from the state `start`; torch.distributed is initialized."""


class Mailbox:
    """The actor between a group and its driver: messages of the first worker, and the state to restart from.

    Workers may be on other machines than the driver. States are sent through Ray, not through disks.
    """

    def __init__(self, start: Any) -> None:
        """start: the first state of the job."""
        self._latest = start
        self._messages: list[Any] = []
        self._error: DrsError | None = None
        self._stopped = False

    def begin(self) -> Any:
        """The state from which a worker starts; None: do not start, because the job failed or was stopped."""
        return None if self._error is not None or self._stopped else self._latest

    def send(self, message: Any, state: Any) -> None:
        """Store a message for the driver, and a state unless it is None."""
        self._messages.append(message)
        if state is not None:
            self._latest = state

    def fail(self, error: DrsError) -> None:
        """Store an error of the job that a restart would repeat."""
        self._error = self._error or error

    def stop(self) -> None:
        """Let no further worker start."""
        self._stopped = True

    def take(self) -> tuple[list[Any], DrsError | None]:
        """The messages since the last call, and the job's error, if there is one."""
        messages, self._messages = self._messages, []
        return messages, self._error


@ray_or_resume()
def run_group(
    job: GroupJob,
    engine: EngineConfig,
    workers: int,
    start: Any,
    on_message: Callable[[Any], None],
    on_note: Callable[[str], None],
) -> None:
    """Run a job on `workers` workers at the same time, on the Ray of `engine.address`.

    If a worker dies, its group ends, and a new group starts from the last state that was sent.

    Args:
        job: the work.
        engine: which Ray, and the resources of a worker.
        workers: number of workers.
        start: the first state.
        on_message: called in this process with the first worker's messages, in order. After a restart, messages of
            repeated work are sent a second time.
        on_note: called with a line of text about anything unusual.

    Raises:
        ConfigError: this machine can never hold the workers.
        DrsError: the error that the job raised.
        EngineError: the workers cannot be started, or failed more than `MOST_FAILURES` times.
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
                        storage_path=storage,  # Ray Train requires it; states go through the mailbox
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
    """The function that each worker of the group runs."""
    job, mailbox = config["job"], config["mailbox"]
    if Path(config["directory"]).is_dir():  # Ray Train changes it; relative paths must mean the same as in the driver
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
            time.sleep(_END_SECONDS)  # an error at once would make Ray Train start another group first
            raise


def _fit(config: dict[str, Any], scaling: ScalingConfig, run: RunConfig) -> str | None:
    """Run the group to its end; returns the reason if it failed.

    This is a separate Ray task. In the driver's main thread, Ray Train would handle SIGINT itself. In another thread,
    it would still use Ray when an interrupted driver disconnects, which ends the process before its last message.
    """
    try:
        TorchTrainer(_work, train_loop_config=config, scaling_config=scaling, run_config=run).fit()
    except TrainingFailedError as error:
        return _reason(error)
    return None


def _follow(fitting: Any, mailbox: Any, on_message: Callable[[Any], None]) -> None:
    """Pass on the group's messages until it has ended."""
    try:
        ended: list[Any] = []
        while not ended:
            ended, _ = ray.wait([fitting], timeout=_POLL_SECONDS)
            messages, error = ray.get(mailbox.take.remote())
            for message in messages:
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
        ray.cancel(fitting, force=True)  # ends the group too; no effect if the task has ended


def _reason(error: Exception) -> str:
    """The error of the failed worker with the lowest rank, or of Ray Train itself."""
    by_rank = getattr(error, "worker_failures", None)
    if not by_rank:
        return last_line(error)
    rank = min(by_rank)
    return f"worker {rank}: {last_line(by_rank[rank])}"


def _check_room(engine: EngineConfig, placement: Placement, workers: int, on_note: Callable[[str], None]) -> None:
    """Refuse a group that a local Ray, which never grows, cannot hold at the same time. On a cluster, add a note.

    Also refuse workers that would share a GPU, which NCCL refuses only when all have started.
    """
    if workers > 1 and 0 < placement.gpus < 1:
        raise ConfigError(
            f"engine.gpus_per_worker: training.workers ({workers}) need a whole GPU each, got {placement.gpus:g}; "
            "use 1, or training.workers: 1"
        )
    nodes = ray.nodes()
    room = sum(placement.workers_on(node) for node in nodes)
    if room >= workers:
        return
    text = f"{counted(workers, 'worker')} with {placement.needs} at once; there: {placement.nodes_text(nodes)}"
    if engine.address == "local":
        raise ConfigError(
            f"training.workers: this machine's Ray has room for {room}: asked for {text}; lower training.workers or "
            "engine.cpus_per_worker, or use a cluster (engine.address: auto)"
        )
    on_note(f"the cluster has no room for {text}; waiting up to {engine.stall_seconds:.0f} s for nodes to come")
