"""Counts a driver session's events for the note that the session writes to the store."""

from __future__ import annotations

from drs_ray.counts.plan import Unit
from drs_ray.counts.sessions import LISTED_SET_ASIDE, SessionSummary
from drs_ray.engine.observer import Observer, tells_of_lost_worker
from drs_ray.engine.outcome import Outcome


class SessionCounter(Observer):
    """Counts units, samples and losses."""

    def __init__(self) -> None:
        self._units_done = self._samples = self._workers_lost = self._units_retried = self._units_set_aside = 0
        self._set_aside: dict[str, str] = {}

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """Count the unit and its samples."""
        self._units_done += 1
        self._samples += unit.samples

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Count lost workers, and units tried again or set aside."""
        self._workers_lost += tells_of_lost_worker(kind, fields)
        self._units_retried += kind in ("unit_retried", "unit_not_stored")
        if kind == "unit_set_aside":
            self._units_set_aside += 1
            if len(self._set_aside) < LISTED_SET_ASIDE:
                self._set_aside[str(fields["unit"])] = str(fields["reason"])

    def summary(self) -> SessionSummary:
        """The counts up to now."""
        return SessionSummary(
            units_done=self._units_done,
            samples=self._samples,
            workers_lost=self._workers_lost,
            units_retried=self._units_retried,
            units_set_aside=self._units_set_aside,
            set_aside=dict(self._set_aside),
        )
