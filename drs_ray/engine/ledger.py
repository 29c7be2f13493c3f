"""The outcome of every unit, kept by the driver alone: done, or set aside with its cause."""

from __future__ import annotations

from collections import Counter

from drs_ray.engine.observer import Observer
from drs_ray.engine.plan import Unit
from drs_ray.errors import EngineError

KILLS_BEFORE_SET_ASIDE = 5
"""A unit that took down so many workers is set aside."""
RAISES_BEFORE_GIVING_UP = 20
"""So many units in a row raising an error: the fault is not the units'."""


class Ledger:
    """Counts what became of the units. `set_aside` maps each unit that cannot be done to the reason."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._kills: Counter[Unit] = Counter()
        self._raised_in_a_row = 0
        self.set_aside: dict[Unit, str] = {}

    def done(self, unit: Unit) -> None:
        """The unit's part is stored."""
        self._raised_in_a_row = 0
        self._observer.unit_done(unit)

    def raised(self, unit: Unit, reason: str) -> None:
        """The unit raised: the same input raises again, so it is set aside at once.

        Raises:
            EngineError: unit after unit raises; going on would only repeat it.
        """
        self._set_aside(unit, reason)
        self._raised_in_a_row += 1
        if self._raised_in_a_row >= RAISES_BEFORE_GIVING_UP:
            raise EngineError(
                f"the last {self._raised_in_a_row} units all failed, giving up; last cause: {reason}; "
                "mend the cause, then run the same command to resume"
            )

    def killed_its_worker(self, unit: Unit, reason: str) -> bool:
        """The unit's worker died under it. Returns whether the unit is to be tried again."""
        self._kills[unit] += 1
        if self._kills[unit] < KILLS_BEFORE_SET_ASIDE:
            self._observer.event(f"lost a worker at {unit.key}: {reason}; the unit is tried again")
            return True
        self._set_aside(unit, f"took down {self._kills[unit]} workers, last: {reason}")
        return False

    def _set_aside(self, unit: Unit, reason: str) -> None:
        self.set_aside[unit] = reason
        self._observer.event(f"set aside {unit.key}: {reason}")
