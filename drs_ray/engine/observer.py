"""What a run tells whoever watches it. The default watches nothing; the command line draws a progress bar."""

from __future__ import annotations

from collections.abc import Sequence

from drs_ray.engine.plan import Unit


class Observer:
    """Receives a run's events, in the driver's process and thread. Override what is of interest."""

    def step(self, message: str) -> None:
        """A phase of the run begins, for example "loading classifiers"."""

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """The units that are to do now are known, and how many are stored already."""

    def added(self, units: Sequence[Unit]) -> None:
        """A finished stage calls for further units."""

    def unit_done(self, unit: Unit) -> None:
        """The unit's part is stored."""

    def event(self, message: str) -> None:
        """Something that the user should see: a warning, a lost worker, a unit set aside."""
