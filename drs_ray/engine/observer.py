"""What a run tells whoever watches it. The default watches nothing; the command line draws a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.outcome import Outcome


class Observer:
    """Receives a run's events, in the driver's process and thread. Override what is of interest."""

    def step(self, message: str) -> None:
        """A phase of the run begins, for example "loading classifiers"."""

    def began(self, record: RunRecord) -> None:
        """The run is known, whether it is new or resumed."""

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """The units that are to do now are known, and how many are stored already."""

    def added(self, units: Sequence[Unit]) -> None:
        """A finished stage calls for further units."""

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """The unit's part is stored."""

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """So many workers of a sub-image are there now. Told about once a second, on Ray; at the end with zeros."""

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Something that the user should see, as a line and as data.

        kind: note, warning, resumed, worker_lost, worker_start_failed, unit_retried, unit_not_stored or unit_set_aside.
        fields: what it is about, for example unit="counts/...", reason="...", sub_image=0; cause="worker" or "node"
        where a unit is set aside because workers were lost under it.
        """


class Observers(Observer):
    """Passes everything on to several observers.

    What the first raises ends the run: it is the caller's own. The others look on: one that raises is told nothing
    more, and the rest hear why, once. Interruptions are no errors and pass.
    """

    def __init__(self, first: Observer, *others: Observer) -> None:
        self._first = first
        self._others = list(others)

    def step(self, message: str) -> None:
        """See `Observer.step`."""
        self._tell(lambda observer: observer.step(message))

    def began(self, record: RunRecord) -> None:
        """See `Observer.began`."""
        self._tell(lambda observer: observer.began(record))

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """See `Observer.planned`."""
        self._tell(lambda observer: observer.planned(todo, stored))

    def added(self, units: Sequence[Unit]) -> None:
        """See `Observer.added`."""
        self._tell(lambda observer: observer.added(units))

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """See `Observer.unit_done`."""
        self._tell(lambda observer: observer.unit_done(unit, outcome))

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """See `Observer.workers`."""
        self._tell(lambda observer: observer.workers(sub_image, working, starting))

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """See `Observer.event`."""
        self._tell(lambda observer: observer.event(message, kind, **fields))

    def _tell(self, call: Callable[[Observer], None]) -> None:
        """The others come first: they see what makes the first one raise."""
        for observer in list(self._others):
            try:
                call(observer)
            except Exception as error:  # whatever it is: hours of votes must not end with a full disk under a log
                self._others.remove(observer)
                self.event(
                    f"warning: {type(observer).__name__} failed and is told nothing more "
                    f"({type(error).__name__}: {error}); the run goes on",
                    "warning",
                )
        call(self._first)


def tells_of_lost_worker(kind: str, fields: Mapping[str, str | float]) -> bool:
    """Whether an event says that a worker was lost, while it started or under a unit."""
    return kind in ("worker_lost", "unit_retried") or (
        kind == "unit_set_aside" and fields.get("cause") in ("worker", "node")
    )
