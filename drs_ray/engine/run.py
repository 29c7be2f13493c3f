"""A certification run from config to certificates: describe, start or resume, compute units, verify, reduce."""

from __future__ import annotations

from contextlib import nullcontext

from drs_ray.config import RunConfig
from drs_ray.counts.parts import list_parts
from drs_ray.counts.plan import Unit, missing_units, plan_units
from drs_ray.counts.run_record import RunRecord, create_or_join, stored_record
from drs_ray.counts.sessions import noted_session
from drs_ray.engine.description import describe_on
from drs_ray.engine.executor import Executor
from drs_ray.engine.first_start import decide_first_start
from drs_ray.engine.observer import Observer, Observers
from drs_ray.engine.opening import open_executor
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.engine.session_counter import SessionCounter
from drs_ray.engine.sizing import sized
from drs_ray.errors import EngineError, UnitsSetAsideError, counted
from drs_ray.results.reduce import RunResult, reduce_run
from drs_ray.storage import Store, open_store


def certify_run(config: RunConfig, observer: Observer | None = None, executor: Executor | None = None) -> RunResult:
    """Certify the images of a config. If parts of the same run are stored, the run is resumed.

    Args:
        config: the run.
        observer: receives progress and events.
        executor: an open executor, to share one Ray between several runs; None: open one for this run.

    Raises:
        ConfigError, DataError, ClassifierError, StoreError: before anything is computed or written.
        UnitsSetAsideError: some units cannot be computed; all others are stored.
        EngineError: the engine failed. Stored parts are kept, and a later call resumes the run.
    """
    observer = observer or Observer()
    store, record = complete_run(config, observer, executor)
    observer.step("reducing")
    return reduce_run(store, record, config.certificate)


def complete_run(config: RunConfig, observer: Observer, executor: Executor | None = None) -> tuple[Store, RunRecord]:
    """`certify_run` without the reduction: stores all counts. Returns the store and the run's record."""
    from drs_ray.models.torch_state import plain_torch

    store = open_store(config.output.uri, config.output.endpoint_url)
    store.check_writable()
    with (
        plain_torch(),
        nullcontext(executor) if executor is not None else open_executor(config.engine, observer) as executor,
    ):
        stored = stored_record(store)
        described = describe_on(executor, config, observer, stored)
        if stored is None:
            described, _ = decide_first_start(described, executor, observer)
        else:
            described = sized(described, 1, None)  # `create_or_join` replaces these sizes by the stored ones
        record, joined = create_or_join(store, described)
        observer.began(record)
        remaining = RemainingUnits(record, store)
        todo = remaining.missing()
        if foreign := remaining.parts.foreign:
            observer.event(
                "ignored among the counts: "
                f"{counted(len(foreign), 'object that cannot be a part', 'objects that cannot be parts')}"
                f", first {foreign[0]}; `drs-ray repair` moves such objects aside"
            )
        if joined or stored is not None:  # a start within the second of the first has an equal record
            for name, version in described.software.items():
                if version != record.software.get(name, version):
                    observer.event(
                        f"warning: the run began with {name} {record.software[name]}, this is {version}; "
                        "the last bit of a logit, and so a vote on a decision boundary, may differ",
                        "warning",
                    )
            observer.event(
                f"resuming run {record.run_id}: {counted(len(remaining.stored), 'unit is', 'units are')} "
                f"stored, {counted(len(todo), 'is', 'are')} to do",
                "resumed",
                stored=len(remaining.stored),
                todo=len(todo),
            )
        observer.planned(todo, len(remaining.stored))
        observer.expected(remaining.later_samples)
        set_aside: dict[Unit, str] = {}
        if todo:
            counter = SessionCounter()
            with noted_session(store, counter.summary):
                set_aside = executor.run(todo, record, remaining, store, Observers(observer, counter))
    _verify(set_aside, record, store)
    return store, record


def _verify(set_aside: dict[Unit, str], record: RunRecord, store: Store) -> None:
    """Check that no unit was set aside and no part of the first stage is missing. The reducer checks later stages."""
    if set_aside:
        first, reason = next(iter(set_aside.items()))
        raise UnitsSetAsideError(
            f"{counted(len(set_aside), 'unit was', 'units were')} set aside, first {first.key}: {reason}; all others "
            f"are stored in {store.uri}; mend the cause, then run the same command to resume"
        )
    missing = missing_units(plan_units(record), list_parts(store, record))
    if missing:
        raise EngineError(
            f"{store.uri}: {counted(len(missing), 'part is', 'parts are')} not there although written, first "
            f"{missing[0].key}; was the place changed meanwhile? Run the same command to resume"
        )
