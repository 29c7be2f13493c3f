"""The Ray driver: joins or starts a Ray, says how many workers it has room for, and has a run's units done there."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from drs_ray.config import EngineConfig
from drs_ray.engine.dispatcher import Dispatcher
from drs_ray.engine.frontier import Frontier
from drs_ray.engine.head import Head
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured
from drs_ray.engine.placement import Placement
from drs_ray.engine.plan import Unit
from drs_ray.engine.probe import PROBE_SECONDS, Measurements
from drs_ray.engine.ray_errors import last_line, ray_or_resume
from drs_ray.engine.worker import RemoteWorker
from drs_ray.errors import ConfigError, EngineError
from drs_ray.results.run_record import RunRecord

CONNECT_SECONDS = 10.0


def connect(engine: EngineConfig) -> bool:
    """Start a local Ray, or attach to a running one. Returns False where this process is connected already.

    Raises:
        EngineError: no Ray answers at the address, or one of another version.
    """
    if ray.is_initialized():
        return False
    _check_listens(os.environ.get("RAY_ADDRESS", "") if engine.address == "auto" else engine.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    in_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM) if in_main else None  # ray.init puts its own in place
    options: dict[str, Any] = {"include_dashboard": False} if engine.address == "local" else {}
    try:
        ray.init(address=engine.address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        if "Version mismatch" in str(error) and len(versions) == 2:
            (their_ray, their_python), (ray_, python) = versions
            raise EngineError(
                f"engine.address: the cluster at '{engine.address}' has Ray {their_ray} on Python {their_python}, this "
                f"process Ray {ray_} on Python {python}; install the cluster's versions here"
            ) from error
        raise _nobody_at(engine.address, last_line(error)) from error
    finally:
        if on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)
    return True


def _check_listens(address: str) -> None:
    """Ray tries a dead address for five minutes, and says so on stderr only."""
    found = re.fullmatch(r"(?:ray://)?([^\s:/]+):(\d+)", address)
    if found is None:
        return
    host, port = found[1], int(found[2])
    own = [ray.util.get_node_ip_address()] if host in ("localhost", "127.0.0.1") else []  # what Ray makes of it
    for candidate in (host, *own):
        try:
            socket.create_connection((candidate, port), CONNECT_SECONDS).close()
            return
        except OSError as error:
            reason = str(error)
    raise _nobody_at(address, reason)


def _nobody_at(address: str, reason: str) -> EngineError:
    return EngineError(
        f"engine.address: no Ray answers at '{address}' ({reason}); "
        "start one (`ray start --head`), give it the cluster's token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH), "
        "or use address local or inline"
    )


@ray_or_resume()
def cluster_gpus(engine: EngineConfig) -> float:
    """GPUs of the connected cluster's nodes, or of those that the config's labels allow."""
    placement = Placement.of(engine)
    return float(sum(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if placement.allows(node)))


@ray_or_resume()
def room(engine: EngineConfig) -> int:
    """How many workers the nodes of the connected cluster, as it is now, can hold."""
    placement = Placement.of(engine)
    return sum(placement.workers_on(node) for node in ray.nodes())


@ray_or_resume()
def measure_on_ray(units: Sequence[Unit], record: RunRecord, observer: Observer) -> Measurements:
    """Have workers of the connected cluster measure how fast they draw the units; nothing is stored.

    Returns:
        By sub-image, one for each unit that could be measured.

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
        _Unheard(observer),
        start=lambda actor, shared, sub_image: actor.load.remote(shared, sub_image, str(Path.cwd())),
        call=lambda actor, unit: actor.measure.remote(unit, PROBE_SECONDS),
        further=keep,
    )
    return found


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
    return _dispatch(
        units,
        record,
        observer,
        start=lambda actor, shared, sub_image: actor.start.remote(shared, sub_image, uri, str(Path.cwd())),
        call=lambda actor, unit: actor.run.remote(unit, frontier.adaptive),
        further=frontier.done if frontier.adaptive else lambda unit, result: [],
    )


def _dispatch(
    units: Sequence[Unit],
    record: RunRecord,
    observer: Observer,
    *,
    start: Callable[[Any, Any, int], Any],
    call: Callable[[Any, Unit], Any],
    further: Callable[[Unit, Any], Sequence[Unit]],
) -> dict[Unit, str]:
    """Give the units to workers placed as the config says; `start(actor, record's reference, sub_image)` begins one."""
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
        hang_seconds=engine.hang_seconds + engine.store_seconds,  # storing may take its time, too
        further=further,
        needs=placement.needs,
        free=lambda available: placement.free(available, ray.nodes()),
        observer=observer,
    )
    return dispatcher.run(engine.stall_seconds)


class _Unheard(Observer):
    """Passes on what is said of workers, not what is said of units that are only measured."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Units that fail will be named when the run does them."""
        if not kind.startswith("unit_"):
            self._observer.event(message, kind, **fields)


def _check_room(engine: EngineConfig, placement: Placement, observer: Observer) -> None:
    """A local Ray never grows: refuse at once what it can never serve. Of a cluster, say it: it may grow."""
    nodes = ray.nodes()
    if any(placement.workers_on(node) for node in nodes):
        return
    if engine.address != "local":
        observer.event(
            f"warning: no node of the cluster can hold a worker now: asked for {placement.needs}; there: "
            f"{placement.there(nodes)}; waiting up to {engine.stall_seconds:.0f} s for one to come",
            "warning",
        )
        return
    have = ray.cluster_resources()
    for key, name, want in (("cpus_per_worker", "CPU", placement.cpus), ("gpus_per_worker", "GPU", placement.gpus)):
        if want > have.get(name, 0.0):
            raise ConfigError(
                f"engine.{key}: must be <= {have.get(name, 0.0):g}, what this machine has, got {want:g}; "
                "lower it or use a cluster (engine.address: auto)"
            )
    raise ConfigError(
        f"engine: this machine's Ray cannot hold a worker: asked for {placement.needs}; there: "
        f"{placement.there(nodes)}; remove engine.resources and engine.labels, or use a cluster (engine.address: auto)"
    )
