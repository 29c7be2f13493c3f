"""What a run's first start decides by measuring: whether its classifiers are compiled, and the sizes of its units.

Both are stored in run.json and stay. Compiling is decided here once for all workers, because a compiled classifier
rounds otherwise: a worker that cannot do what was decided does not start.
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
"""Runs that take a worker less than this are not compiled: compiling takes 5 to 20 s on every node."""

COMPILE_GAIN = 1.05
"""A compiled classifier must be faster by this factor: measurements differ by a few percent."""

_ADAPTIVE_SHARE = 0.25  # of its largest number of samples, which an adaptive run is expected to take


def settled(record: RunRecord, executor: Executor, observer: Observer) -> tuple[RunRecord, dict[int, Speed] | None]:
    """A new run's record with `engine.compile` and the sizes of its units decided, by measuring where that pays.

    Args:
        record: the run as described.
        executor: where the run will be carried out.
        observer: told what could not be measured or compiled.

    Returns:
        The record, and the speeds of its classifiers by sub-image; None where nothing was measured.

    Raises:
        CannotCompileError: `engine.compile: true` cannot be done. Others: see `measure`.
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
    """Speeds of compiled classifiers; none, and a warning that says why, where they cannot be had."""
    try:
        return measure(record, executor, observer)
    except (ClassifierError, EngineError) as error:
        observer.event(f"warning: the run is done without torch.compile: {error}", "warning")
        return {}


def _seconds(record: RunRecord, workers: int, speeds: Mapping[int, Speed]) -> float:
    """What the run is expected to take each of its workers; 0 where a classifier could not be measured."""
    if set(speeds) != set(range(record.sub_images)):
        return 0.0
    share = _ADAPTIVE_SHARE if len(record.schedule.samples) > 1 else 1.0
    samples = share * most_samples(record) / record.sub_images
    return sum(samples / speed.mean for speed in speeds.values()) / workers
