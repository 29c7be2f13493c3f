"""Where a run stands, read from its store alone: no driver is asked, none need be alive."""

from __future__ import annotations

import time
from dataclasses import dataclass

from drs_ray.engine.frontier import Frontier
from drs_ray.results.run_record import RunRecord, read_record
from drs_ray.results.schema import CERTIFICATES_KEY, COUNTS_PREFIX
from drs_ray.results.store import Store

RATE_WINDOW_SECONDS = 600.0
"""The rate is that of the parts written in the last ten minutes; without any, no driver is at work."""


@dataclass(frozen=True)
class RunStatus:
    """Units and noise samples known and stored. With adaptive stages, finished units can call for further ones.

    samples_per_second: over the last minutes, None where nobody seems to be at work. seconds_left: at that rate.
    seconds_since_part: age of the newest part, None where there is none.
    unknown_parts: keys among the counts that no planned unit has.
    """

    record: RunRecord
    units: int
    units_done: int
    samples: int
    samples_done: int
    samples_per_second: float | None
    seconds_since_part: float | None
    reduced: bool
    unknown_parts: tuple[str, ...]

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end at the present rate; 0 when finished, None when nobody is at work."""
        left = self.samples - self.samples_done
        if left == 0:
            return 0.0
        return left / self.samples_per_second if self.samples_per_second else None


def run_status(store: Store) -> RunStatus:
    """Compare what is planned with what is stored.

    Raises:
        CountsError: no run is there. StoreError: the place cannot be read.
    """
    record = read_record(store)
    there = {item.key: item.modified for item in store.list(COUNTS_PREFIX)}
    frontier = Frontier(record, store)
    todo = frontier.missing()
    done = frontier.stored
    now = time.time()
    return RunStatus(
        record=record,
        units=len(done) + len(todo),
        units_done=len(done),
        samples=sum(unit.samples for unit in [*done, *todo]),
        samples_done=sum(unit.samples for unit in done),
        samples_per_second=_rate([(there[unit.key], unit.samples) for unit in done], now),
        seconds_since_part=max(now - max(there.values()), 0.0) if there else None,
        reduced=any(item.key == CERTIFICATES_KEY for item in store.list(CERTIFICATES_KEY)),
        unknown_parts=tuple(sorted(there.keys() - {unit.key for unit in done})),
    )


def _rate(written: list[tuple[float, int]], now: float) -> float | None:
    """Samples per second between the first and the last part of the window; the first part only starts the clock.

    None where the last part is so old, by the parts' own rhythm, that no driver can be at work.
    """
    recent = sorted(item for item in written if now - item[0] <= RATE_WINDOW_SECONDS)
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    rhythm = (recent[-1][0] - recent[0][0]) / (len(recent) - 1)
    if now - recent[-1][0] > max(60.0, 5 * rhythm):
        return None
    return sum(samples for _, samples in recent[1:]) / (recent[-1][0] - recent[0][0])
