"""Observers receive a run's events. `Observer` ignores all of them; the command line draws a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.outcome import Outcome


class Observer:
    """Receives a run's events in the driver's process and thread. Subclasses override the methods they need."""

    def step(self, message: str) -> None:
        """A phase of the run begins, for example "loading classifiers"."""

    def began(self, record: RunRecord) -> None:
        """The record of the new or resumed run is known."""

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """todo: the units to compute now. stored: how many units are already stored."""

    def added(self, units: Sequence[Unit]) -> None:
        """A finished stage has added these units."""

    def expected(self, samples: float | None) -> None:
        """Noise samples that an adaptive run will probably need besides those of known units; None: not known yet."""

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """The unit's part is stored."""

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """Present numbers of workers of a sub-image. Called about once a second on Ray, and at the end with zeros."""

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """An event that the user should see, as a line of text and as data.

        kind: note, warning, resumed, worker_lost, worker_start_failed, unit_retried, unit_not_stored or unit_set_aside.
        fields: the subject, for example unit="counts/...", reason="...", sub_image=0. cause="worker" or "node" if a
        unit was set aside because its workers or their nodes were lost.
        """


class Observers(Observer):
    """Passes every event to several observers.

    An exception of the first observer, which is the caller's, ends the run. Any other observer that raises is removed,
    and the remaining ones receive a warning with the reason. Interruptions are not errors and are passed on.
    """

    def __init__(self, first: Observer, *others: Observer) -> None:
        self._first = first
        self._others = list(others)

    def step(self, message: str) -> None:
        """See `Observer.step`."""
        self._pass_on(lambda observer: observer.step(message))

    def began(self, record: RunRecord) -> None:
        """See `Observer.began`."""
        self._pass_on(lambda observer: observer.began(record))

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """See `Observer.planned`."""
        self._pass_on(lambda observer: observer.planned(todo, stored))

    def added(self, units: Sequence[Unit]) -> None:
        """See `Observer.added`."""
        self._pass_on(lambda observer: observer.added(units))

    def expected(self, samples: float | None) -> None:
        """See `Observer.expected`."""
        self._pass_on(lambda observer: observer.expected(samples))

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """See `Observer.unit_done`."""
        self._pass_on(lambda observer: observer.unit_done(unit, outcome))

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """See `Observer.workers`."""
        self._pass_on(lambda observer: observer.workers(sub_image, working, starting))

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """See `Observer.event`."""
        self._pass_on(lambda observer: observer.event(message, kind, **fields))

    def _pass_on(self, call: Callable[[Observer], None]) -> None:
        """The other observers come first, so that they also receive an event on which the first one raises."""
        for observer in list(self._others):
            try:
                call(observer)
            except Exception as error:  # of any type: a full disk under a log must not end the run
                self._others.remove(observer)
                self.event(
                    f"warning: {type(observer).__name__} failed and gets no more events "
                    f"({type(error).__name__}: {error}); the run goes on",
                    "warning",
                )
        call(self._first)


def tells_of_lost_worker(kind: str, fields: Mapping[str, str | float]) -> bool:
    """Whether an event reports a worker lost while it started or computed a unit."""
    return kind in ("worker_lost", "unit_retried") or (
        kind == "unit_set_aside" and fields.get("cause") in ("worker", "node")
    )
