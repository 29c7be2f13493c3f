"""Decisions of a run's first start: whether classifiers are compiled, and the sizes of units.

Both decisions are stored in run.json and never change. One decision on compilation holds for all workers, because a
compiled classifier rounds differently. A worker that cannot follow the decision does not start.
"""

from __future__ import annotations

from collections.abc import Mapping

from drs_ray.counts.run_record import RunRecord, with_engine
from drs_ray.engine.executor import Executor
from drs_ray.engine.observer import Observer
from drs_ray.engine.probe import Speed, measure, slowest, workers_of
from drs_ray.engine.sizing import is_small, most_samples, sized
from drs_ray.errors import ClassifierError, EngineError

COMPILE_SECONDS = 60.0
"""Runs that take less time per worker are not compiled: compilation takes 5 to 20 s on every node."""

COMPILE_GAIN = 1.05
"""A compiled classifier must be faster by this factor: measurements differ by a few percent."""

_ADAPTIVE_SHARE = 0.25  # an adaptive run is expected to draw this share of its largest number of samples


def decide_first_start(
    record: RunRecord, executor: Executor, observer: Observer
) -> tuple[RunRecord, dict[int, Speed] | None]:
    """Decide `engine.compile` and the sizes of units of a new run; large runs are measured for this.

    Args:
        record: the run as described.
        executor: where the units will be computed.
        observer: receives a warning about what could not be measured or compiled.

    Returns:
        The record, and the speeds of its classifiers by sub-image, or None if nothing was measured.

    Raises:
        CannotCompileError: `engine.compile: true`, but a classifier cannot be compiled. Others: see `measure`.
    """
    asked, has_sizes = record.config.engine.compile, record.config.engine.images_per_unit is not None
    if asked is False and has_sizes:
        return record, None
    workers = workers_of(record.config.engine, executor)
    if asked is not True:
        record = with_engine(record, compile=False)
        if is_small(record, workers):
            return sized(record, workers, None), None
    speeds = measure(record, executor, observer)
    if asked == "auto" and _seconds(record, workers, speeds) >= COMPILE_SECONDS:
        compiled = with_engine(record, compile=True)
        faster = _measured_if_possible(compiled, executor, observer)
        if 0 < _seconds(compiled, workers, faster) * COMPILE_GAIN <= _seconds(record, workers, speeds):
            record, speeds = compiled, faster
    return sized(record, workers, slowest(speeds)), speeds


def _measured_if_possible(record: RunRecord, executor: Executor, observer: Observer) -> dict[int, Speed]:
    """Speeds of compiled classifiers. If they cannot be measured: a warning with the reason, and an empty result."""
    try:
        return measure(record, executor, observer)
    except (ClassifierError, EngineError) as error:
        observer.event(f"warning: the run is done without torch.compile: {error}", "warning")
        return {}


def _seconds(record: RunRecord, workers: int, speeds: Mapping[int, Speed]) -> float:
    """Expected seconds of the run on all its workers; 0 if a classifier could not be measured."""
    if set(speeds) != set(range(record.sub_images)):
        return 0.0
    share = _ADAPTIVE_SHARE if len(record.schedule.samples) > 1 else 1.0
    samples = share * most_samples(record) / record.sub_images
    return sum(samples / speed.mean for speed in speeds.values()) / workers
