"""Exports a run's metrics at Ray's Prometheus endpoint. docs/operations.md lists the metrics and gives the address.

Ray exports the metrics from the driver's node, with the prefix `ray_`, every ten seconds and when the driver
disconnects. Recording a value takes two microseconds, so nothing is batched here. A driver that is connected by ray://
is not part of the cluster and exports nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from drs_ray.counts.plan import Unit
from drs_ray.engine.observer import Observer, tells_of_lost_worker
from drs_ray.engine.outcome import Outcome

UNIT_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]
PUT_SECONDS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0]
"""Upper bounds of the buckets of the histograms."""

_RUN = ("run_id",)
_SUB_IMAGE = ("run_id", "sub_image")


class MetricsObserver(Observer):
    """Counts events of a run's units and workers. Every metric has the run's id as a tag."""

    def __init__(self, run_id: str, todo: int) -> None:
        """An observer may be made before Ray is connected; values recorded before are not exported.

        Args:
            run_id: the run.
            todo: number of units to compute.
        """
        self._run_tag = {"run_id": run_id}
        self._todo = todo
        self._samples = Counter("drs_ray_samples_total", "Noise samples in stored units.", _SUB_IMAGE)
        self._units = Counter("drs_ray_units_total", "Units stored.", _SUB_IMAGE)
        self._unit_seconds = Histogram("drs_ray_unit_seconds", "Seconds to draw a unit's votes.", UNIT_SECONDS, _RUN)
        self._put_seconds = Histogram(
            "drs_ray_put_seconds", "Seconds to store a part, with all retries.", PUT_SECONDS, _RUN
        )
        self._put_retries = Counter("drs_ray_put_retries_total", "Times that storing a part was begun again.", _RUN)
        self._retried = Counter(
            "drs_ray_units_retried_total", "Units given back, for a lost worker or for the store.", (*_RUN, "reason")
        )
        self._set_aside = Counter("drs_ray_units_set_aside_total", "Units that could not be done.", _RUN)
        self._workers_lost = Counter(
            "drs_ray_workers_lost_total", "Workers that were lost, and replaced where there was room.", _RUN
        )
        self._starts_failed = Counter("drs_ray_worker_starts_failed_total", "Workers that could not start.", _RUN)
        self._units_todo = Gauge("drs_ray_units_todo", "Units known and neither stored nor set aside.", _RUN)
        self._workers = Gauge("drs_ray_workers", "Workers by what they do.", (*_SUB_IMAGE, "state"))

    def added(self, units: Sequence[Unit]) -> None:
        """Add the units to the units to compute."""
        self._todo += len(units)

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """Count the unit and record its times."""
        tags = self._run_tag | {"sub_image": str(unit.sub_image)}
        self._samples.inc(unit.samples, tags)
        self._units.inc(1, tags)
        self._unit_seconds.observe(outcome.count_seconds, self._run_tag)
        self._put_seconds.observe(outcome.put_seconds, self._run_tag)
        if outcome.put_retries:
            self._put_retries.inc(outcome.put_retries, self._run_tag)
        self._decrease_todo()

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """Record the numbers of workers and of units to compute."""
        tags = self._run_tag | {"sub_image": str(sub_image)}
        self._workers.set(working, tags | {"state": "working"})
        self._workers.set(starting, tags | {"state": "starting"})
        self._units_todo.set(self._todo, self._run_tag)

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Count lost workers, failed starts, and units tried again or set aside."""
        if tells_of_lost_worker(kind, fields):
            self._workers_lost.inc(1, self._run_tag)
        if kind == "worker_start_failed":
            self._starts_failed.inc(1, self._run_tag)
        elif kind == "unit_retried":
            self._retried.inc(1, self._run_tag | {"reason": "worker"})
        elif kind == "unit_not_stored":
            self._retried.inc(1, self._run_tag | {"reason": "store"})
        elif kind == "unit_set_aside":
            self._set_aside.inc(1, self._run_tag)
            self._decrease_todo()

    def _decrease_todo(self) -> None:
        self._todo -= 1
        self._units_todo.set(self._todo, self._run_tag)
