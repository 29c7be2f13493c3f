"""The Ray driver: finds out how many workers the connected Ray can hold, and computes a run's units there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from drs_ray.config import EngineConfig
from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.executor import check_fits
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured, Outcome
from drs_ray.engine.placement import Placement
from drs_ray.engine.probe import PROBE_SECONDS
from drs_ray.engine.ray.dispatcher import Dispatcher, no_worker
from drs_ray.engine.ray.failures import ray_or_resume
from drs_ray.engine.ray.head_watch import Head
from drs_ray.engine.ray.worker import RemoteWorker
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.errors import ConfigError
from drs_ray.models.precision import has_bfloat16


@ray_or_resume()
def cluster_gpus(engine: EngineConfig) -> float:
    """Number of GPUs of the connected cluster, on the nodes that the config's labels allow."""
    placement = Placement.of(engine)
    return float(sum(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if placement.allows(node)))


@ray_or_resume()
def room(engine: EngineConfig) -> int:
    """How many workers the present nodes of the connected cluster can hold."""
    placement = Placement.of(engine)
    return sum(placement.workers_on(node) for node in ray.nodes())


@ray_or_resume()
def workers_have_bfloat16(engine: EngineConfig, device: str, observer: Observer) -> bool:
    """Whether the device of a worker, placed as the config says, has units for bfloat16.

    Raises:
        ConfigError: this machine can never hold a worker. EngineError: no worker started in `engine.stall_seconds`.
    """
    placement = Placement.of(engine.model_copy(update={"device": device}))
    _check_room(engine, placement, observer)
    look = ray.remote(has_bfloat16).options(max_retries=3, **placement.options).remote(device)
    try:
        return bool(ray.get(look, timeout=engine.stall_seconds))
    except GetTimeoutError as error:
        ray.cancel(look, force=True)
        free = placement.free(ray.available_resources(), ray.nodes())
        raise no_worker(engine.stall_seconds, placement.needs, free) from error


@ray_or_resume()
def measure_on_ray(units: Sequence[Unit], record: RunRecord, observer: Observer) -> dict[int, list[Measured]]:
    """Measure how fast workers of the connected cluster draw the units; nothing is stored.

    Returns:
        By sub-image, one measurement for each unit that could be measured.

    Raises:
        ConfigError, EngineError: as `run_on_ray`.
    """
    found: dict[int, list[Measured]] = {}

    def keep(unit: Unit, measured: Measured) -> list[Unit]:
        found.setdefault(unit.sub_image, []).append(measured)
        return []

    _dispatch(
        units,
        record,
        _WorkerEvents(observer),
        start=lambda actor, shared, sub_image: actor.load.remote(shared, sub_image, str(Path.cwd())),
        call=lambda actor, unit: actor.measure.remote(unit, PROBE_SECONDS),
        done=keep,
    )
    return found


@ray_or_resume()
def run_on_ray(
    units: Sequence[Unit], record: RunRecord, remaining: RemainingUnits, uri: str, observer: Observer
) -> dict[Unit, str]:
    """Compute the units, and the units of later stages, on the connected cluster.

    Args:
        units: the units to compute now.
        record: the run, with the device resolved; its config describes the workers.
        remaining: returns the units that follow from a finished one.
        uri: store for the parts, which every node can reach.
        observer: receives every unit and event.

    Returns:
        The units that were set aside, with the reason.

    Raises:
        ConfigError: this machine can never hold a worker.
        EngineError: workers cannot start or find no room, too many units in a row fail, or Ray itself fails.
    """

    def done(unit: Unit, outcome: Outcome) -> list[Unit]:
        observer.unit_done(unit, outcome)
        further = remaining.done(unit, outcome)
        observer.expected(remaining.later_samples)
        return further

    return _dispatch(
        units,
        record,
        observer,
        start=lambda actor, shared, sub_image: actor.start.remote(shared, sub_image, uri, str(Path.cwd())),
        call=lambda actor, unit: actor.run.remote(unit, remaining.adaptive),
        done=done,
    )


def _dispatch(
    units: Sequence[Unit],
    record: RunRecord,
    observer: Observer,
    *,
    start: Callable[[Any, Any, int], Any],
    call: Callable[[Any, Unit], Any],
    done: Callable[[Unit, Any], Sequence[Unit]],
) -> dict[Unit, str]:
    """Give the units to workers placed by the config; `start(actor, reference to the record, sub_image)` starts one."""
    engine = record.config.engine
    placement = Placement.of(engine)
    _check_room(engine, placement, observer)
    actors = ray.remote(RemoteWorker).options(max_restarts=0, max_task_retries=0, **placement.options)
    shared_record = ray.put(record.model_dump_json().encode())

    def begin(sub_image: int) -> tuple[Any, Any]:
        actor = actors.remote()
        return actor, start(actor, shared_record, sub_image)

    head, places = Head(), 1

    def limit() -> int:
        nonlocal places
        if head.answers():
            places = engine.workers if engine.workers is not None else room(engine)
        return places

    dispatcher = Dispatcher(
        units,
        start=begin,
        limit=limit,
        call=call,
        hang_seconds=engine.hang_seconds + engine.store_seconds,  # retries of a put take time too
        done=done,
        needs=placement.needs,
        free=lambda available: placement.free(available, ray.nodes()),
        observer=observer,
    )
    return dispatcher.run(engine.stall_seconds)


class _WorkerEvents(Observer):
    """Passes on events of workers, but not of units, which are only measured here."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Pass on all events but those of units; the run itself will report units that fail."""
        if not kind.startswith("unit_"):
            self._observer.event(message, kind, **fields)


def _check_room(engine: EngineConfig, placement: Placement, observer: Observer) -> None:
    """Refuse workers that a local Ray cannot hold, because it never grows. A cluster may grow: warn only."""
    nodes = ray.nodes()
    if any(placement.workers_on(node) for node in nodes):
        return
    if engine.address != "local":
        observer.event(
            f"warning: no node of the cluster can hold a worker now: asked for {placement.needs}; there: "
            f"{placement.nodes_text(nodes)}; waiting up to {engine.stall_seconds:.0f} s for one to come",
            "warning",
        )
        return
    have = ray.cluster_resources()
    check_fits("cpus_per_worker", placement.cpus, have.get("CPU", 0.0))
    check_fits("gpus_per_worker", placement.gpus, have.get("GPU", 0.0))
    raise ConfigError(
        f"engine: this machine's Ray cannot hold a worker: asked for {placement.needs}; there: "
        f"{placement.nodes_text(nodes)}; remove engine.resources and engine.labels, or use a cluster "
        "(engine.address: auto)"
    )
