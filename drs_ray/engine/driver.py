"""The Ray driver: feeds units to actors, owns every retry, and moves workers to where work is left.

Each live worker has exactly one call in flight, its start or a unit, so blame is exact: an actor that dies gives its
one unit back. Ray restarts and retries nothing by itself. What finds no room stays pending and is the autoscaler's
demand; the run never waits for a fixed number of workers.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from drs_ray.config import EngineConfig
from drs_ray.engine.frontier import Frontier
from drs_ray.engine.ledger import Ledger
from drs_ray.engine.observer import Observer
from drs_ray.engine.plan import Unit
from drs_ray.engine.worker import RemoteWorker
from drs_ray.errors import ConfigError, DrsError, EngineError
from drs_ray.results.run_record import RunRecord

_TICK_SECONDS = 1.0
_FAILED_STARTS = 3


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
            f"engine.address: no Ray answers at '{engine.address}' ({_last_line(error)}); "
            "start one (`ray start --head`) or use address local or inline"
        ) from error
    finally:
        if on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)
    return True


def cluster_gpus() -> float:
    """GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def room(engine: EngineConfig) -> int:
    """How many workers the connected cluster, as it is now, can hold."""
    resources = ray.cluster_resources()
    gpus = _gpus_per_worker(engine)
    by_cpu = resources.get("CPU", 0.0) // engine.cpus_per_worker
    return int(min(by_cpu, resources.get("GPU", 0.0) // gpus) if gpus else by_cpu)


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
        EngineError: workers cannot start or cannot be had, or unit after unit fails.
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
        further=frontier.done if frontier.adaptive else lambda unit, result: [],
        needs=f"{cpus:g} CPUs and {gpus:g} GPUs per worker",
        observer=observer,
    )
    return dispatcher.run(engine.stall_seconds)


@dataclass(eq=False)
class _Worker:
    """An actor; `unit` is None while it starts."""

    actor: Any
    sub_image: int
    unit: Unit | None = None


class Dispatcher:
    """One run's queues and workers.

    `start(sub_image)` makes an actor and calls its start: (actor, call). `call(actor, unit)` has it do a unit.
    `further(unit, result)` names the units that a finished one calls for; they are done first, so that blocks end.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        start: Callable[[int], tuple[Any, Any]],
        call: Callable[[Any, Unit], Any],
        further: Callable[[Unit, Any], Sequence[Unit]],
        limit: Callable[[], int],
        needs: str,
        observer: Observer,
    ) -> None:
        self._queues: dict[int, deque[Unit]] = {}
        for unit in units:
            self._queues.setdefault(unit.sub_image, deque()).append(unit)
        self._start = start
        self._call = call
        self._further = further
        self._limit = limit
        self._needs = needs
        self._observer = observer
        self._ledger = Ledger(observer)
        self._calls: dict[Any, _Worker] = {}
        self._failed_starts: Counter[int] = Counter()

    def run(self, stall_seconds: float) -> dict[Unit, str]:
        """Carry all units out; returns those set aside. Every actor is ended on the way out, whatever happens."""
        last_answer = time.monotonic()
        last_look = float("-inf")
        try:
            while self._unfinished():
                if time.monotonic() - last_look >= _TICK_SECONDS:  # the cluster may have grown or shrunk
                    places, last_look = max(1, self._limit()), time.monotonic()
                self._hire(places)
                answered, _ = ray.wait(list(self._calls), num_returns=1, timeout=_TICK_SECONDS)
                for call in answered:
                    last_answer = time.monotonic()
                    self._answer(self._calls.pop(call), call)
                if time.monotonic() - last_answer > stall_seconds and not self._working():
                    raise EngineError(
                        f"no worker could be had for {stall_seconds:.0f} s: asked for {self._needs}; "
                        f"free: {_resources(ray.available_resources())}; "
                        "free or add nodes, or lower engine.cpus_per_worker / gpus_per_worker, then resume"
                    )
        finally:
            for worker in self._calls.values():
                ray.kill(worker.actor)
        return self._ledger.set_aside

    def _unfinished(self) -> bool:
        return self._working() or any(self._queues.values())

    def _working(self) -> bool:
        return any(worker.unit is not None for worker in self._calls.values())

    def _hire(self, places: int) -> None:
        """Fill the places with workers for the sub-images that need them most; drop starts that nobody needs now."""
        for call, worker in list(self._calls.items()):
            if worker.unit is None and not self._queues[worker.sub_image]:
                del self._calls[call]
                ray.kill(worker.actor)
        while len(self._calls) < places:
            neediest = self._neediest()
            if neediest is None:
                return
            actor, call = self._start(neediest)
            self._calls[call] = _Worker(actor, neediest)

    def _neediest(self) -> int | None:
        """The sub-image with the most queued units per worker, if starting one more worker for it makes sense."""
        workers = Counter(worker.sub_image for worker in self._calls.values())
        starting = Counter(worker.sub_image for worker in self._calls.values() if worker.unit is None)
        wanting = [k for k, queue in self._queues.items() if len(queue) > starting[k]]
        return max(wanting, key=lambda k: len(self._queues[k]) / (1 + workers[k]), default=None)

    def _answer(self, worker: _Worker, call: Any) -> None:
        try:
            result = ray.get(call)
        except RayTaskError as error:  # the worker lives; what it was asked to do raised
            if worker.unit is None:
                self._calls[call] = worker  # ended with the others on the way out
                raise _start_error(worker.sub_image, error) from error
            self._ledger.raised(worker.unit, _reason(error))
        except RayError as error:
            self._lost(worker, error)
            return
        else:
            if worker.unit is None:
                self._failed_starts[worker.sub_image] = 0
            else:
                self._ledger.done(worker.unit)
                self._enqueue(self._further(worker.unit, result))
        self._next_unit(worker)

    def _enqueue(self, units: Sequence[Unit]) -> None:
        for unit in reversed(units):
            self._queues.setdefault(unit.sub_image, deque()).appendleft(unit)
        self._observer.added(units)

    def _next_unit(self, worker: _Worker) -> None:
        queue = self._queues[worker.sub_image]
        if queue:
            worker.unit = queue.popleft()
            self._calls[self._call(worker.actor, worker.unit)] = worker
        else:  # this sub-image has no more: its place goes to the others
            ray.kill(worker.actor)

    def _lost(self, worker: _Worker, error: RayError) -> None:
        """The actor is gone, or cut off behind a bad link: end it for certain, it may still hold a GPU."""
        ray.kill(worker.actor)
        reason = f"{type(error).__name__}: {_last_line(error)}"
        if worker.unit is not None:
            if self._ledger.killed_its_worker(worker.unit, reason):
                self._queues[worker.sub_image].appendleft(worker.unit)
            return
        self._observer.event(f"a worker of sub-image {worker.sub_image} was lost while starting: {reason}")
        if "node has died" not in str(error):  # a worker sent to a node just lost is nobody's fault
            self._failed_starts[worker.sub_image] += 1
        if self._failed_starts[worker.sub_image] >= _FAILED_STARTS:
            raise EngineError(
                f"sub-image {worker.sub_image}: {_FAILED_STARTS} workers in a row died while starting; last: {reason}; "
                "see the worker logs of Ray (out of memory?), then resume"
            )


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


def _start_error(sub_image: int, error: RayTaskError) -> DrsError:
    if isinstance(error.cause, DrsError):
        return error.cause
    return EngineError(f"sub-image {sub_image}: worker cannot start: {_reason(error)}")


def _reason(error: RayTaskError) -> str:
    if isinstance(error.cause, DrsError):
        return str(error.cause)
    return _last_line(error)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:200] if lines else type(error).__name__


def _resources(resources: dict[str, float]) -> str:
    shown = {name: amount for name, amount in sorted(resources.items()) if name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}s" for name, amount in shown.items()) or "nothing"
