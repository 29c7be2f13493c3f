"""The state of a run, read from its store alone; no driver is contacted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drs_ray.counts.run_record import RunRecord, read_record
from drs_ray.counts.schema import CERTIFICATES_KEY, COMPACTED_PREFIX
from drs_ray.counts.sessions import SessionNote, read_sessions
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.engine.throughput import WINDOW_SECONDS, throughput_of
from drs_ray.storage import Store

Driver = Literal["none", "at work", "silent", "ended"]
"""No driver has begun; new parts are stored; a driver has not ended and no new parts are stored; all have ended."""

_LATE = 5
_SHORTEST_SILENCE = 60.0
"""A driver is silent without a new part for `_LATE` longest pauses and for at least `_SHORTEST_SILENCE` seconds."""


@dataclass(frozen=True)
class RunStatus:
    """Numbers of known and of stored units and noise samples. In an adaptive run, finished stages can add units.

    later_samples: of units that are not known yet, see `RemainingUnits`. driver: whether a driver seems to be at work.
    samples_per_second: recent speed, None if no driver is at work or before its first part. seconds_since_part: age of
    the newest small part, None if there is none.
    sessions, session_seconds: driver sessions that ended, and their wall time.
    set_aside: reason by key, for missing units that a session set aside. set_aside_unnamed: how many more there may be.
    unknown_parts: keys below counts/ that belong to no planned unit; readers ignore keys that cannot be parts.
    """

    record: RunRecord
    units: int
    units_done: int
    samples: int
    samples_done: int
    later_samples: float | None
    driver: Driver
    samples_per_second: float | None
    seconds_since_part: float | None
    sessions: int
    session_seconds: float
    set_aside: Mapping[str, str]
    set_aside_unnamed: int
    reduced: bool
    unknown_parts: tuple[str, ...]

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the present speed; 0 if finished, None if the speed is unknown.

        In an adaptive run this is an estimate, or if `later_samples` is None the time of the known units.
        """
        left = self.samples - self.samples_done + (self.later_samples or 0.0)
        if left == 0:
            return 0.0
        return left / self.samples_per_second if self.samples_per_second else None


def run_status(store: Store) -> RunStatus:
    """Compare the planned units with the stored ones.

    Raises:
        CountsError: no run is there, or it cannot be trusted. StoreError: the store cannot be read.
    """
    record = read_record(store)
    notes = read_sessions(store)
    remaining = RemainingUnits(record, store)
    todo = remaining.missing()
    done, parts = remaining.stored, remaining.parts
    small = [(parts.small[unit.key].modified, unit.samples) for unit in done if unit.key in parts.small]
    compacted = max((item.modified for item in store.list(COMPACTED_PREFIX)), default=0.0)
    now = time.time()
    driver, speed = _driver(notes, small, compacted, now)
    reasons = {key: reason for note in notes for key, reason in note.summary.set_aside.items()}
    ended = [note.seconds for note in notes if note.seconds is not None]
    return RunStatus(
        record=record,
        units=len(done) + len(todo),
        units_done=len(done),
        samples=sum(unit.samples for unit in [*done, *todo]),
        samples_done=sum(unit.samples for unit in done),
        later_samples=remaining.later_samples,
        driver=driver,
        samples_per_second=speed,
        seconds_since_part=max(now - max(small)[0], 0.0) if small else None,
        sessions=len(ended),
        session_seconds=sum(ended),
        set_aside={unit.key: reasons[unit.key] for unit in todo if unit.key in reasons},
        set_aside_unnamed=sum(note.summary.units_set_aside - len(note.summary.set_aside) for note in notes),
        reduced=any(item.key == CERTIFICATES_KEY for item in store.list(CERTIFICATES_KEY)),
        unknown_parts=tuple(sorted((set(parts) | set(parts.foreign)) - {unit.key for unit in done})),
    )


def _driver(
    notes: Sequence[SessionNote], small: Sequence[tuple[float, int]], compacted: float, now: float
) -> tuple[Driver, float | None]:
    """Whether a driver seems to be at work, and samples per second if so.

    small: time at which each small part was written, and its samples. compacted: time of the last compaction; times of
    merged parts are lost, so the speed is that of the parts after it.
    """
    begins = [note.written for note in notes if note.seconds is None]
    ends = [note.written for note in notes if note.seconds is not None]
    if not begins:
        return ("ended" if ends else "none"), None
    since = max(begins)
    heard = max([since, *(written for written, _ in small)])
    if ends and max(ends) >= heard:  # a session without an end was killed before
        return "ended", None
    speed = throughput_of(small, max(since, compacted), now)
    first_unit = speed.longest_gap == 0.0  # the time of a unit is not known yet
    patience = WINDOW_SECONDS if first_unit else max(_SHORTEST_SILENCE, _LATE * speed.longest_gap)
    return ("at work", speed.samples_per_second) if now - heard <= patience else ("silent", None)
