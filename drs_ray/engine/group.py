"""A group of workers that train one thing together (Ray Train), what they tell the driver, and how they begin again."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchTrainer, get_device

from drs_ray.config import EngineConfig
from drs_ray.engine.connection import connect
from drs_ray.engine.driver import cluster_gpus
from drs_ray.engine.placement import Placement
from drs_ray.engine.ray_errors import last_line, ray_or_resume
from drs_ray.engine.worker import threads_of
from drs_ray.errors import ConfigError, DrsError, EngineError

MOST_FAILURES = 3
"""So often a group that lost a worker begins again after its last state; then the training ends."""
_START_SECONDS = 60.0
"""How long Ray Train waits for a group's workers before it asks again; it has no name for it but an environment key."""
_POLL_SECONDS = 0.2


Tell = Callable[[Any, Any], None]
"""Called by the first worker of a group with a message, and with the state to begin again from (None: as before)."""


class GroupJob(Protocol):
    """What a group is to do; it is pickled, and so are its states and messages."""

    def check_device(self, device: str) -> None:
        """Refuse, with a `ConfigError`, settings that do not fit `device`, cpu or cuda."""

    def work(self, device: str, rank: int, workers: int, start: Any, tell: Tell) -> None:
        """One worker's part, beginning at `start`; torch.distributed is initialized."""


class Board:
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

    def tell(self, message: Any, state: Any) -> None:
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
    heard: Callable[[Any], None],
    noted: Callable[[str], None],
) -> None:
    """Have a job done by so many workers at once, on the Ray of `engine.address`.

    A worker that dies ends its group, and another group begins at the last state that was told.

    Args:
        job: what to do.
        engine: which Ray, and what a worker asks for.
        workers: how many.
        start: where to begin.
        heard: called in this process with what the first worker tells, in order; again where a group began again.
        noted: told in a line what is not as usual.

    Raises:
        ConfigError: this machine can never hold the workers, or settings do not fit the device.
        DrsError: what the job raised.
        EngineError: workers cannot be had, or fail again and again.
    """
    connected = connect(engine)
    try:
        device = engine.device
        if device == "auto":
            device = "cuda" if cluster_gpus(engine) else "cpu"
        job.check_device(device)
        gpus = engine.gpus_per_worker if device == "cuda" else 0.0
        placement = Placement.of(engine.model_copy(update={"device": device, "gpus_per_worker": gpus}))
        _check_room(engine, placement, workers, noted)
        board = ray.remote(Board).options(num_cpus=0).remote(start)
        with tempfile.TemporaryDirectory(prefix="drs-ray-group-", ignore_cleanup_errors=True) as storage:
            trainer = TorchTrainer(
                _work,
                train_loop_config={
                    "job": job,
                    "board": board,
                    "directory": str(Path.cwd()),
                    "threads": threads_of(engine.cpus_per_worker),
                },
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=device == "cuda",
                    resources_per_worker=placement.needed,
                    label_selector=dict(placement.labels) or None,
                ),
                run_config=RunConfig(
                    storage_path=storage,  # Ray Train must have one; states go over the board
                    failure_config=FailureConfig(
                        max_failures=MOST_FAILURES,
                        controller_failure_limit=int(engine.stall_seconds // _START_SECONDS),
                    ),
                ),
            )
            _follow(trainer, board, heard)
    finally:
        if connected:
            ray.shutdown()


def _work(config: dict[str, Any]) -> None:
    """What each worker of the group runs."""
    job, board = config["job"], config["board"]
    if Path(config["directory"]).is_dir():  # relative paths mean what they mean to the driver; Ray Train has its own
        os.chdir(config["directory"])
    torch.set_num_threads(config["threads"])
    start = ray.get(board.begin.remote())
    if start is None:
        return
    context = get_context()
    try:
        job.work(
            str(get_device()),
            context.get_world_rank(),
            context.get_world_size(),
            start,
            lambda message, state: ray.get(board.tell.remote(message, state)),
        )
    except DrsError as error:
        ray.get(board.fail.remote(error))
        raise


def _follow(trainer: TorchTrainer, board: Any, heard: Callable[[Any], None]) -> None:
    """Run the group to its end and pass on what it tells."""
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # for the driver's thread to judge
            failures.append(error)

    # Not in the main thread: there Ray Train would take SIGINT for itself, and a driver could not say how to go on.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    try:
        ended = False
        while not ended:
            thread.join(_POLL_SECONDS)
            ended = not thread.is_alive()
            told, error = ray.get(board.take.remote())
            for message in told:
                heard(message)
    finally:
        board.stop.remote()
    if error is not None:
        raise error
    for failure in failures:
        if not isinstance(failure, TrainingFailedError):
            raise failure
        raise EngineError(
            f"the workers could not be had, or failed more than {MOST_FAILURES} times, the last time: "
            f"{_reason(failure)}; mend the cause and run the same command to go on after the last state"
        ) from failure


def _reason(error: Exception) -> str:
    """What the first worker that failed, or Ray Train itself, raised."""
    by_rank = getattr(error, "worker_failures", None)
    if not by_rank:
        return last_line(error)
    rank = min(by_rank)
    return f"worker {rank}: {last_line(by_rank[rank])}"


def _check_room(engine: EngineConfig, placement: Placement, workers: int, noted: Callable[[str], None]) -> None:
    """All workers of a group run at once: a local Ray, which never grows, must have room for them."""
    nodes = ray.nodes()
    there = sum(placement.workers_on(node) for node in nodes)
    if there >= workers:
        return
    text = f"{workers} workers with {placement.needs} at once; there: {placement.there(nodes)}"
    if engine.address == "local":
        raise ConfigError(
            f"training.workers: this machine's Ray has room for {there}: asked for {text}; lower training.workers or "
            "engine.cpus_per_worker, or use a cluster (engine.address: auto)"
        )
    noted(f"the cluster has no room for {text}; waiting up to {engine.stall_seconds:.0f} s for nodes to come")
