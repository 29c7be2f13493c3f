"""What a session's note is made from."""

from __future__ import annotations

from drs_ray.counts.sessions import LISTED_SET_ASIDE, SessionSummary
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.session_counter import SessionCounter
from tests.unit.engine.factories import unit


def test_it_counts_what_happened() -> None:
    counter = SessionCounter()
    for number in range(3):
        counter.unit_done(unit(number), Outcome(1.0, 0.1))
    counter.event("a note")
    counter.event("lost", "worker_lost", sub_image=0, reason="killed")
    counter.event("again", "unit_retried", unit="a", reason="killed")
    counter.event("again", "unit_not_stored", unit="b", reason="503")
    counter.event("aside", "unit_set_aside", unit="c", reason="NaN")
    counter.event("aside", "unit_set_aside", unit="d", reason="took down 5 workers", cause="worker")
    assert counter.summary() == SessionSummary(
        units_done=3,
        samples=30,
        workers_lost=3,
        units_retried=2,
        units_set_aside=2,
        set_aside={"c": "NaN", "d": "took down 5 workers"},
    )


def test_it_names_a_bounded_number_of_units() -> None:
    counter = SessionCounter()
    for number in range(LISTED_SET_ASIDE + 2):
        counter.event("aside", "unit_set_aside", unit=str(number), reason="NaN")
    summary = counter.summary()
    assert (len(summary.set_aside), summary.units_set_aside) == (LISTED_SET_ASIDE, LISTED_SET_ASIDE + 2)
