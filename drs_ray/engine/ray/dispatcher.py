"""Assigns units to Ray actors, decides the cause of a lost worker, and tries failed units again.

Each live worker has exactly one call in flight, its start or a unit, so it is known which unit a dead actor had. Ray
itself restarts and retries nothing. Actors without room stay pending, and the autoscaler sees them as demand; a run
never waits for a fixed number of workers. The cost of handling a result does not grow with the number of workers.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, RayError, RaySystemError, RayTaskError

from drs_ray.counts.plan import Unit
from drs_ray.engine.observer import Observer
from drs_ray.engine.ray.failures import last_line, node_was_lost, ray_or_resume, reason_of, start_error
from drs_ray.engine.unit_failures import RETRY_SECONDS, UnitFailures
from drs_ray.errors import DeviceLostError, EngineError, StoreError, counted

_TICK_SECONDS = 1.0
_FAILED_STARTS_AT_FIRST = 3
_FAILED_STARTS_LATER = 20
"""Failed starts in a row that end the run if no worker of the sub-image is left: before and after a first success."""
_LONGEST_PAUSE_SECONDS = 30.0
_SLOWEST_OF_A_FLEET = 20
"""On the slowest device of a mixed cluster, a unit may take this many times longer than usual."""


@dataclass(eq=False)
class _Pool:
    """A sub-image: its queued units, and the numbers of its starting and working workers."""

    sub_image: int
    queue: deque[Unit] = field(default_factory=deque)
    starting: int = 0
    working: int = 0
    has_started: bool = False
    failed_starts: int = 0  # in a row
    no_start_before: float = 0.0
    samples_done: int = 0
    seconds_done: float = 0.0
    has_warned: bool = False

    def patience(self, unit: Unit, hang_seconds: float) -> float:
        """Seconds without an answer after which a worker is taken to hang; infinite until a first unit is done."""
        if not self.samples_done:
            return math.inf
        return hang_seconds + _SLOWEST_OF_A_FLEET * unit.samples * self.seconds_done / self.samples_done


@dataclass(eq=False)
class _Worker:
    """An actor. unit: None while it starts. since: time at which it received its unit."""

    actor: Any
    pool: _Pool
    unit: Unit | None = None
    since: float = 0.0


class Dispatcher:
    """One run's queues and workers.

    `start(sub_image)` makes an actor and calls its start method, and returns (actor, call). `call(actor, unit)` gives a
    unit to an actor. `done(unit, result)` receives a finished unit and returns the units that follow from it, which are
    done first, so that blocks end. `limit()` is the largest number of workers. A worker is ended if it does not answer
    for `hang_seconds` more than the longest plausible time of its unit. For messages, `needs` describes a worker's
    resources, and `free(available resources)` the free ones.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        start: Callable[[int], tuple[Any, Any]],
        call: Callable[[Any, Unit], Any],
        done: Callable[[Unit, Any], Sequence[Unit]],
        limit: Callable[[], int],
        hang_seconds: float,
        needs: str,
        free: Callable[[Mapping[str, float]], str],
        observer: Observer,
    ) -> None:
        self._pools: dict[int, _Pool] = {}
        for unit in units:
            self._pool(unit).queue.append(unit)
        self._start = start
        self._call = call
        self._done = done
        self._limit = limit
        self._hang_seconds = hang_seconds
        self._needs = needs
        self._free = free
        self._observer = observer
        self._failures = UnitFailures(observer)
        self._workers: set[_Worker] = set()
        self._calls: dict[Any, _Worker] = {}
        self._paused: deque[tuple[float, Unit]] = deque()

    @ray_or_resume()
    def run(self, stall_seconds: float) -> dict[Unit, str]:
        """Compute all units; returns the units set aside. Every actor is ended at the end, also after an error.

        Raises:
            EngineError: workers cannot start or find no room, too many units in a row fail, or Ray itself fails.
        """
        last_look, waiting_since = float("-inf"), time.monotonic()
        try:
            while self._unfinished():
                tick = time.monotonic() - last_look >= _TICK_SECONDS
                if tick:  # the cluster may have grown or shrunk
                    places, last_look = max(1, self._limit()), time.monotonic()
                    self._end_silent_workers()
                self._requeue_paused()
                self._cancel_needless_starts()
                self._start_workers(places)
                if tick:
                    self._report_workers()
                for call in self._ended_calls():
                    self._handle_result(self._calls.pop(call), call)
                if self._working() or not self._calls:
                    waiting_since = time.monotonic()
                elif time.monotonic() - waiting_since > stall_seconds:
                    raise no_worker(stall_seconds, self._needs, self._free(ray.available_resources()))
        finally:
            for worker in self._workers:
                _kill(worker.actor)
            with suppress(Exception):  # an error here must not hide the run's error
                for pool in self._pools.values():
                    self._observer.workers(pool.sub_image, 0, 0)
        return self._failures.set_aside

    def _pool(self, unit: Unit) -> _Pool:
        return self._pools.setdefault(unit.sub_image, _Pool(unit.sub_image))

    def _report_workers(self) -> None:
        for pool in self._pools.values():
            self._observer.workers(pool.sub_image, pool.working, pool.starting)

    def _unfinished(self) -> bool:
        return self._working() or bool(self._paused) or any(pool.queue for pool in self._pools.values())

    def _working(self) -> bool:
        return any(pool.working for pool in self._pools.values())

    def _requeue_paused(self) -> None:
        """Append units whose pause is over to their queue."""
        while self._paused and self._paused[0][0] <= time.monotonic():
            _, unit = self._paused.popleft()
            self._pool(unit).queue.append(unit)

    def _cancel_needless_starts(self) -> None:
        if not any(pool.starting and not pool.queue for pool in self._pools.values()):
            return
        for call, worker in list(self._calls.items()):
            if worker.unit is None and not worker.pool.queue:
                del self._calls[call]
                worker.pool.starting -= 1
                self._end_worker(worker)

    def _start_workers(self, places: int) -> None:
        """Start workers up to the limit, for the sub-images with the most units per worker."""
        while len(self._calls) < places:
            pool = self._pool_to_start()
            if pool is None:
                return
            actor, call = self._start(pool.sub_image)
            worker = _Worker(actor, pool)
            self._workers.add(worker)
            self._calls[call] = worker
            pool.starting += 1

    def _pool_to_start(self) -> _Pool | None:
        """The sub-image with the most queued units per worker, of those that can use one more worker now."""
        now = time.monotonic()
        wanting = [p for p in self._pools.values() if len(p.queue) > p.starting and now >= p.no_start_before]
        return max(wanting, key=lambda p: len(p.queue) / (1 + p.starting + p.working), default=None)

    def _ended_calls(self) -> Sequence[Any]:
        """All calls that have ended; if none has, wait a tick for one. One wait for all calls is cheap per call."""
        calls = list(self._calls)
        if not calls:  # the remaining units are pausing
            time.sleep(_TICK_SECONDS)
            return []
        ended: list[Any]
        ended, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        if not ended:
            ended, _ = ray.wait(calls, num_returns=1, timeout=_TICK_SECONDS)
        return ended

    def _handle_result(self, worker: _Worker, call: Any) -> None:
        pool, unit = worker.pool, worker.unit
        if unit is None:
            pool.starting -= 1
        else:
            pool.working -= 1
        try:
            result = ray.get(call)
        except RayTaskError as error:  # the worker is alive; its start or its unit raised
            if isinstance(error.cause, DeviceLostError):  # all further units would fail there, within a moment
                self._lost(worker, error)
                return
            if unit is None:
                self._start_raised(worker, error)
                return
            self._raised(unit, error)
        except (LocalRayletDiedError, RaySystemError):  # Ray failed, not the worker
            raise
        except RayError as error:
            self._lost(worker, error)
            return
        else:
            if unit is None:
                pool.has_started, pool.failed_starts, pool.no_start_before = True, 0, 0.0
            else:
                pool.samples_done += unit.samples
                pool.seconds_done += time.monotonic() - worker.since
                self._failures.done()
                self._enqueue_first(self._done(unit, result))
        self._next_unit(worker)

    def _enqueue_first(self, units: Sequence[Unit]) -> None:
        for unit in reversed(units):
            self._pool(unit).queue.appendleft(unit)
        self._observer.added(units)

    def _next_unit(self, worker: _Worker) -> None:
        pool = worker.pool
        if pool.queue:
            worker.unit, worker.since = pool.queue.popleft(), time.monotonic()
            pool.working += 1
            self._calls[self._call(worker.actor, worker.unit)] = worker
        else:  # no more units: workers of other sub-images can take its place
            self._end_worker(worker)

    def _raised(self, unit: Unit, error: RayTaskError) -> None:
        if not isinstance(error.cause, StoreError):
            self._failures.raised(unit, reason_of(error))
        elif self._failures.not_stored(unit, reason_of(error)):
            self._paused.append((time.monotonic() + RETRY_SECONDS, unit))

    def _lost(self, worker: _Worker, error: RayError) -> None:
        """The actor is dead, unreachable or without its GPU. It is ended in any case: it may still hold the GPU."""
        self._end_worker(worker)
        pool, unit = worker.pool, worker.unit
        reason = reason_of(error) if isinstance(error, RayTaskError) else f"{type(error).__name__}: {last_line(error)}"
        node_lost = node_was_lost(error)
        if unit is not None:
            self._requeue(unit, reason, node_lost)
            return
        self._observer.event(
            f"a worker of sub-image {pool.sub_image} was lost while starting: {reason}",
            "worker_lost",
            sub_image=pool.sub_image,
            reason=reason,
        )
        if not node_lost:
            self._start_failed(pool, reason)

    def _requeue(self, unit: Unit, reason: str, node_lost: bool) -> None:
        if self._failures.lost_its_worker(unit, reason, node_lost):
            self._pool(unit).queue.appendleft(unit)

    def _end_silent_workers(self) -> None:
        """End workers that live but do not answer: a stuck device driver, a dead mount, a stopped machine."""
        now = time.monotonic()
        for call, worker in list(self._calls.items()):
            pool, unit, silent = worker.pool, worker.unit, now - worker.since
            if unit is None or silent <= self._hang_seconds:
                continue
            if silent > pool.patience(unit, self._hang_seconds):
                del self._calls[call]
                pool.working -= 1
                self._end_worker(worker)
                self._requeue(unit, f"gave no answer for {silent:.0f} s", node_lost=False)
            elif not pool.samples_done and not pool.has_warned:
                pool.has_warned = True
                self._observer.event(
                    f"sub-image {pool.sub_image}: no unit was done in {silent:.0f} s; if that is not what one takes, "
                    "look at the worker logs of Ray, or interrupt and choose smaller units",
                    "warning",
                    sub_image=pool.sub_image,
                )

    def _start_raised(self, worker: _Worker, error: RayTaskError) -> None:
        """Before any worker of the sub-image has started, an error ends the run; later it is that of one node."""
        pool = worker.pool
        if not pool.has_started:
            raise start_error(pool.sub_image, error) from error
        self._end_worker(worker)
        self._observer.event(
            f"a worker of sub-image {pool.sub_image} could not start: {reason_of(error)}",
            "worker_start_failed",
            sub_image=pool.sub_image,
            reason=reason_of(error),
        )
        self._start_failed(pool, reason_of(error))

    def _start_failed(self, pool: _Pool, reason: str) -> None:
        """End the run after several failures if no worker of the sub-image starts or works; one bad node must not."""
        pool.failed_starts += 1
        allowed = _FAILED_STARTS_LATER if pool.has_started else _FAILED_STARTS_AT_FIRST
        if pool.failed_starts >= allowed and not pool.starting and not pool.working:
            raise EngineError(
                f"sub-image {pool.sub_image}: {counted(pool.failed_starts, 'worker')} in a row died while starting; "
                f"last: {reason}; see the worker logs of Ray (out of memory?), then resume"
            )
        pause = min(pool.failed_starts * _TICK_SECONDS, _LONGEST_PAUSE_SECONDS)
        pool.no_start_before = time.monotonic() + pause

    def _end_worker(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        _kill(worker.actor)


def no_worker(seconds: float, needs: str, free: str) -> EngineError:
    """The error if no worker could be started for `seconds`. needs, free: see `Placement`."""
    return EngineError(
        f"no worker could be had for {seconds:.0f} s: asked for {needs}; free: {free}; free or add such nodes, or ask "
        "for less (engine.cpus_per_worker, gpus_per_worker, resources, labels), then resume"
    )


def _kill(actor: Any) -> None:
    """End an actor, if Ray is still connected. Otherwise the actor ends with this process, which owns it."""
    with suppress(Exception):  # an error here must not hide the run's error or keep other actors alive
        if ray.is_initialized():  # otherwise ray.kill would start a new Ray
            ray.kill(actor)
