"""Observers side by side: all are told, and only the caller's own may end a run."""

from __future__ import annotations

from typing import Any

import pytest

from drs_ray.engine.observer import Observer, Observers, tells_of_lost_worker
from drs_ray.engine.outcome import Outcome
from drs_ray.errors import InterruptedRunError
from tests.unit.engine.factories import record_of, unit

OUTCOME = Outcome(1.0, 0.1)


class Told(Observer):
    """Keeps every call. Raises `error` at each `unit_done`."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._error = error

    def __getattribute__(self, name: str) -> Any:
        if name not in vars(Observer) or name.startswith("__"):
            return object.__getattribute__(self, name)

        def call(*arguments: Any, **fields: Any) -> None:
            self.calls.append((name, *arguments, *fields.items()))
            if name == "unit_done" and self._error is not None:
                raise self._error

        return call


def tell_everything(observer: Observer) -> list[tuple[Any, ...]]:
    """Calls all that an observer can be told."""
    record = record_of()
    observer.step("loading")
    observer.began(record)
    observer.planned([unit(1)], 3)
    observer.unit_done(unit(1), OUTCOME)
    observer.added([unit(2)])
    observer.expected(2.5)
    observer.workers(0, 2, 1)
    observer.event("lost", "worker_lost", sub_image=0)
    return [
        ("step", "loading"),
        ("began", record),
        ("planned", [unit(1)], 3),
        ("unit_done", unit(1), OUTCOME),
        ("added", [unit(2)]),
        ("expected", 2.5),
        ("workers", 0, 2, 1),
        ("event", "lost", "worker_lost", ("sub_image", 0)),
    ]


def test_everyone_is_told_everything() -> None:
    first, second, third = Told(), Told(), Told()
    everything = tell_everything(Observers(first, Observers(second, third)))
    assert {call[0] for call in everything} == {name for name in vars(Observer) if not name.startswith("_")}
    assert first.calls == second.calls == third.calls == everything


def test_one_that_fails_is_told_nothing_more_and_the_others_hear_why() -> None:
    first, broken, third = Told(), Told(OSError(28, "No space left on device")), Told()
    everything = tell_everything(Observers(first, broken, third))
    assert broken.calls == everything[:4]
    for told in (first, third):
        warnings = [call for call in told.calls if call[0] == "event" and call[2] == "warning"]
        assert [call[1] for call in warnings] == [
            "warning: Told failed and gets no more events (OSError: [Errno 28] No space left on device); "
            "the run goes on"
        ]
        assert [call for call in told.calls if call not in warnings] == everything


def test_all_others_may_fail() -> None:
    first = Told()
    everything = tell_everything(Observers(first, Told(ValueError("a")), Told(ValueError("b"))))
    assert [call for call in first.calls if call[-1] != "warning"] == everything
    assert len(first.calls) == len(everything) + 2


def test_what_the_first_raises_ends_the_run_and_the_others_know_the_unit() -> None:
    other = Told()
    with pytest.raises(ValueError, match="mine"):
        Observers(Told(ValueError("mine")), other).unit_done(unit(1), OUTCOME)
    assert other.calls == [("unit_done", unit(1), OUTCOME)]


def test_an_interruption_is_not_an_error_of_the_observer_that_it_hits() -> None:
    with pytest.raises(InterruptedRunError):
        Observers(Told(), Told(InterruptedRunError("SIGTERM", 15))).unit_done(unit(1), OUTCOME)


@pytest.mark.parametrize(
    ("kind", "fields", "lost"),
    [
        ("worker_lost", {}, True),
        ("unit_retried", {}, True),
        ("unit_set_aside", {"cause": "worker"}, True),
        ("unit_set_aside", {"cause": "node"}, True),
        ("unit_set_aside", {"reason": "NaN"}, False),
        ("worker_start_failed", {}, False),
        ("unit_not_stored", {}, False),
        ("note", {}, False),
    ],
)
def test_which_events_tell_of_a_lost_worker(kind: str, fields: dict[str, str | float], lost: bool) -> None:
    assert tells_of_lost_worker(kind, fields) is lost
