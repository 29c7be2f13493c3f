"""The outcome of units: who is blamed for what, how often it is tried again, and when a run gives up."""

from __future__ import annotations

import pytest

from drs_ray.engine import unit_failures
from drs_ray.engine.unit_failures import UnitFailures
from drs_ray.errors import EngineError
from tests.unit.engine.factories import Recorder, unit


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def book(recorder: Recorder) -> UnitFailures:
    return UnitFailures(recorder)


def test_a_unit_that_raises_is_set_aside_at_once(book: UnitFailures, recorder: Recorder) -> None:
    book.raised(unit(0), "NaN")
    assert book.set_aside == {unit(0): "NaN"}
    assert recorder.events == [f"set aside {unit(0).key}: NaN"]


def test_five_kills_set_a_unit_aside(book: UnitFailures) -> None:
    assert [book.lost_its_worker(unit(0), "gone", node_lost=False) for _ in range(5)] == [True] * 4 + [False]
    assert book.set_aside == {unit(0): "took down 5 workers, last: gone"}


def test_lost_nodes_are_no_kills(book: UnitFailures) -> None:
    allowed = unit_failures.NODES_BEFORE_SET_ASIDE - 1
    assert all(book.lost_its_worker(unit(0), "gone", node_lost=True) for _ in range(allowed))
    assert all(book.lost_its_worker(unit(0), "gone", node_lost=False) for _ in range(4))
    assert not book.lost_its_worker(unit(0), "gone", node_lost=True)
    assert book.set_aside == {unit(0): "lost 50 nodes, last: gone"}


def test_a_unit_that_could_not_be_stored_has_three_more_tries(book: UnitFailures, recorder: Recorder) -> None:
    assert [book.not_stored(unit(0), "503") for _ in range(4)] == [True, True, True, False]
    assert book.set_aside == {unit(0): "503"}
    assert recorder.events[0] == f"could not store {unit(0).key}: 503; the unit is tried again"


def test_a_unit_that_is_set_aside_for_lost_workers_says_so() -> None:
    """Those who count lost workers count that one, too."""

    class Kinds(Recorder):
        def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
            self.events.append(f"{kind} {fields.get('cause')}")

    kinds = Kinds()
    book = UnitFailures(kinds)
    for _ in range(5):
        book.lost_its_worker(unit(0), "gone", node_lost=False)
    assert kinds.events == [*["unit_retried None"] * 4, "unit_set_aside worker"]
    for _ in range(unit_failures.NODES_BEFORE_SET_ASIDE):
        book.lost_its_worker(unit(1), "gone", node_lost=True)
    assert kinds.events[-2:] == ["unit_retried None", "unit_set_aside node"]
    book.raised(unit(2), "NaN")
    assert kinds.events[-1] == "unit_set_aside None"


def test_counts_are_of_each_unit_alone(book: UnitFailures) -> None:
    for number in range(4):
        assert book.lost_its_worker(unit(number), "gone", node_lost=False)
        assert book.not_stored(unit(number), "503")
        assert book.lost_its_worker(unit(number), "gone", node_lost=True)
    assert book.set_aside == {}


@pytest.mark.parametrize("outcome", ["raised", "not_stored"])
def test_twenty_failures_in_a_row_end_the_run(book: UnitFailures, outcome: str) -> None:
    fail = getattr(book, outcome)
    for number in range(19):
        fail(unit(number), "no")
    book.done()  # not in a row
    for number in range(19):
        fail(unit(200 + number), "no")
    with pytest.raises(EngineError, match=r"the last 20 units all failed, giving up; last cause: last one; .*resume"):
        fail(unit(300), "last one")
