"""The Ray driver: joins or starts a Ray, says how many workers it has room for, and has a run's units done there."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from drs_ray.config import EngineConfig
from drs_ray.engine.dispatcher import Dispatcher
from drs_ray.engine.frontier import Frontier
from drs_ray.engine.observer import Observer
from drs_ray.engine.plan import Unit
from drs_ray.engine.ray_errors import last_line, ray_or_resume
from drs_ray.engine.worker import RemoteWorker
from drs_ray.errors import ConfigError, EngineError
from drs_ray.results.run_record import RunRecord


def connect(engine: EngineConfig) -> bool:
    """Start a local Ray, or attach to a running one. Returns False where this process is connected already.

    Raises:
        EngineError: no Ray answers at the address.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    in_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM) if in_main else None  # ray.init puts its own in place
    options: dict[str, Any] = {"include_dashboard": False} if engine.address == "local" else {}
    try:
        ray.init(address=engine.address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise EngineError(
            f"engine.address: no Ray answers at '{engine.address}' ({last_line(error)}); "
            "start one (`ray start --head`), give it the cluster's token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH), "
            "or use address local or inline"
        ) from error
    finally:
        if on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)
    return True


@ray_or_resume()
def cluster_gpus() -> float:
    """GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


@ray_or_resume()
def room(engine: EngineConfig) -> int:
    """How many workers the nodes of the connected cluster, as it is now, can hold."""
    cpus, gpus = engine.cpus_per_worker, _gpus_per_worker(engine)
    return sum(workers_on(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])


def workers_on(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers of so many CPUs and GPUs a node with these resources holds."""
    by_cpu = _times(cpus, node.get("CPU", 0.0))
    if not gpus:
        return by_cpu
    have = node.get("GPU", 0.0)
    by_gpu = _times(gpus, have) if gpus >= 1 else int(have) * _times(gpus, 1.0)  # a fraction is of one GPU
    return min(by_cpu, by_gpu)


def _times(want: float, have: float) -> int:
    """How often `want` is in `have`; 0.1 is in 0.3 three times, whatever floats say."""
    return math.floor(have / want + 1e-6)


@ray_or_resume()
def run_on_ray(
    units: Sequence[Unit], record: RunRecord, frontier: Frontier, uri: str, observer: Observer
) -> dict[Unit, str]:
    """Do the units, and those that they call for, on the connected cluster.

    Args:
        units: what is to be done.
        record: the run; its config says which workers, and has the device resolved.
        frontier: says which units a finished one calls for.
        uri: where parts go, as every node can reach it.
        observer: told of every unit and event.

    Returns:
        The units that were set aside, with the reason.

    Raises:
        ConfigError: this machine can never serve a worker.
        EngineError: workers cannot start or cannot be had, unit after unit fails, or Ray itself does.
    """
    engine = record.config.engine
    cpus, gpus = engine.cpus_per_worker, _gpus_per_worker(engine)
    if engine.address == "local":
        _check_room(cpus, gpus)
    actors = ray.remote(RemoteWorker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
    shared_record = ray.put(record.model_dump_json().encode())

    def start(sub_image: int) -> tuple[Any, Any]:
        actor = actors.remote()
        return actor, actor.start.remote(shared_record, sub_image, uri, str(Path.cwd()))

    dispatcher = Dispatcher(
        units,
        start=start,
        limit=lambda: engine.workers if engine.workers is not None else room(engine),
        call=lambda actor, unit: actor.run.remote(unit, frontier.adaptive),
        hang_seconds=engine.hang_seconds,
        further=frontier.done if frontier.adaptive else lambda unit, result: [],
        needs=f"{cpus:g} CPUs and {gpus:g} GPUs per worker",
        observer=observer,
    )
    return dispatcher.run(engine.stall_seconds)


def _gpus_per_worker(engine: EngineConfig) -> float:
    if engine.gpus_per_worker is not None:
        return engine.gpus_per_worker
    return 1.0 if engine.device == "cuda" else 0.0


def _check_room(cpus: float, gpus: float) -> None:
    """A local Ray never grows: refuse at once what it can never serve."""
    have = ray.cluster_resources()
    for key, name, want in (("cpus_per_worker", "CPU", cpus), ("gpus_per_worker", "GPU", gpus)):
        if want > have.get(name, 0.0):
            raise ConfigError(
                f"engine.{key}: must be <= {have.get(name, 0.0):g}, what this machine has, got {want:g}; "
                "lower it or use a cluster (engine.address: auto)"
            )
