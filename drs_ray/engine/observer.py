"""What a run tells whoever watches it. The default watches nothing; the command line draws a progress bar."""

from __future__ import annotations

from collections.abc import Sequence

from drs_ray.engine.outcome import Outcome
from drs_ray.engine.plan import Unit


class Observer:
    """Receives a run's events, in the driver's process and thread. Override what is of interest."""

    def step(self, message: str) -> None:
        """A phase of the run begins, for example "loading classifiers"."""

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """The units that are to do now are known, and how many are stored already."""

    def added(self, units: Sequence[Unit]) -> None:
        """A finished stage calls for further units."""

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """The unit's part is stored."""

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Something that the user should see, as a line and as data.

        kind: note, warning, resumed, worker_started, worker_lost, worker_start_failed, unit_retried, unit_not_stored or
        unit_set_aside. fields: what it is about, for example unit="counts/...", reason="...", sub_image=0.
        """
