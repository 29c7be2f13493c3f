"""Counts the failures of units in the driver, and sets units aside with the reason."""

from __future__ import annotations

from collections import Counter

from drs_ray.counts.plan import Unit
from drs_ray.engine.observer import Observer
from drs_ray.errors import EngineError

KILLS_BEFORE_SET_ASIDE = 5
"""A unit is set aside after this many of its workers died."""
NODES_BEFORE_SET_ASIDE = 50
"""A lost node is not blamed on its unit, but a unit that lost this many nodes may be the cause."""
STORE_RETRIES = 3
RETRY_SECONDS = 2.0
"""A unit whose part could not be stored is tried again this many times, after this many seconds at the earliest."""
RAISES_BEFORE_GIVING_UP = 20
"""After this many errors in a row, the cause is not the units, and the run ends."""


class UnitFailures:
    """Counts failures. `set_aside` maps each unit that cannot be computed to the reason."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._kills: Counter[Unit] = Counter()
        self._lost_nodes: Counter[Unit] = Counter()
        self._not_stored: Counter[Unit] = Counter()
        self._raised_in_a_row = 0
        self.set_aside: dict[Unit, str] = {}

    def done(self) -> None:
        """A unit was done."""
        self._raised_in_a_row = 0

    def raised(self, unit: Unit, reason: str) -> None:
        """The unit raised an error. It is set aside at once, because the same input would raise again.

        Raises:
            EngineError: `RAISES_BEFORE_GIVING_UP` units in a row failed.
        """
        self._set_aside(unit, reason)
        self._count_raise(reason)

    def not_stored(self, unit: Unit, reason: str) -> bool:
        """The store failed, not the unit. Returns whether to try the unit again, after the others.

        Raises:
            EngineError: `RAISES_BEFORE_GIVING_UP` units in a row failed.
        """
        self._not_stored[unit] += 1
        again = self._not_stored[unit] <= STORE_RETRIES
        if again:
            self._observer.event(
                f"could not store {unit.key}: {reason}; the unit is tried again",
                "unit_not_stored",
                unit=unit.key,
                reason=reason,
            )
        else:
            self._set_aside(unit, reason)
        self._count_raise(reason)
        return again

    def lost_its_worker(self, unit: Unit, reason: str, node_lost: bool) -> bool:
        """The worker's process died during the unit, or its node was lost. Returns whether to try the unit again."""
        losses = self._lost_nodes if node_lost else self._kills
        losses[unit] += 1
        if losses[unit] < (NODES_BEFORE_SET_ASIDE if node_lost else KILLS_BEFORE_SET_ASIDE):
            message = f"lost a worker at {unit.key}: {reason}; the unit is tried again"
            self._observer.event(message, "unit_retried", unit=unit.key, reason=reason)
            return True
        lost = f"lost {losses[unit]} nodes" if node_lost else f"took down {losses[unit]} workers"
        self._set_aside(unit, f"{lost}, last: {reason}", cause="node" if node_lost else "worker")
        return False

    def _count_raise(self, reason: str) -> None:
        self._raised_in_a_row += 1
        if self._raised_in_a_row >= RAISES_BEFORE_GIVING_UP:
            raise EngineError(
                f"the last {self._raised_in_a_row} units all failed, giving up; last cause: {reason}; "
                "mend the cause, then run the same command to resume"
            )

    def _set_aside(self, unit: Unit, reason: str, **cause: str) -> None:
        self.set_aside[unit] = reason
        self._observer.event(f"set aside {unit.key}: {reason}", "unit_set_aside", unit=unit.key, reason=reason, **cause)
