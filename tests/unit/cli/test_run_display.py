"""What a run shows: plain lines where there is no terminal, a bar where there is one, events alone when quiet."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from drs_ray.cli.progress import SECONDS_BETWEEN_LINES
from drs_ray.cli.run_display import ConsoleObserver, rate_text
from drs_ray.counts.plan import Draw, Unit
from drs_ray.engine.outcome import Outcome
from tests.unit.engine.factories import record_of

SAMPLES = 1000
OUTCOME = Outcome(1.0, 0.1)


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """An observer whose console and clock are the test's."""

    def __init__(self, *, terminal: bool = False, quiet: bool = False) -> None:
        self._file = StringIO()
        self.clock = Clock()
        console = Console(file=self._file, force_terminal=terminal, width=120, _environ={})
        self.observer = ConsoleObserver(console, "certify", quiet, self.clock)

    def work(self, units: range, seconds: float) -> None:
        """Units that are done one after another, each after so many seconds."""
        for number in units:
            self.clock.now += seconds
            self.observer.unit_done(large(number), OUTCOME)

    @property
    def text(self) -> str:
        return self._file.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def large(number: int) -> Unit:
    return Unit(0, (number, number), (number,), (Draw("estimation", 0, 0, SAMPLES),))


def test_plain_lines_say_done_speed_and_time_left() -> None:
    screen = Screen()
    with screen.observer as observer:
        observer.step("loading data set and classifiers")
        observer.began(record_of())
        observer.planned([large(number) for number in range(20)], 10)
        screen.work(range(20), 2.0)
    assert screen.lines[:2] == [
        "certify: loading data set and classifiers",
        "certify: 20 of 30 units to do, 20,000 noise samples",
    ]
    left = ["36.0", "32.0", "28.0", "24.0", "20.0", "16.0", "12.0", "8.0", "4.0"]
    assert screen.lines[2:] == [
        *(f"certify: {12 + 2 * tenth}/30 units done, 500 samples/s, {text} s left" for tenth, text in enumerate(left)),
        "certify: 30/30 units done, 500 samples/s",
    ]
    assert "\x1b" not in screen.text


def test_what_is_stored_already_is_no_speed() -> None:
    """990 of 1000 units of a resumed run are stored: the rest takes as long as the rest takes."""
    screen = Screen()
    with screen.observer as observer:
        screen.clock.now += 1000.0  # loading
        observer.planned([large(number) for number in range(10)], 990)
        screen.work(range(5), 10.0)
    assert screen.lines[-1] == "certify: 995/1000 units done, 100 samples/s, 50.0 s left"


def test_before_the_first_unit_there_is_neither_speed_nor_time_left() -> None:
    screen = Screen()
    with screen.observer as observer:
        observer.planned([large(number) for number in range(4)], 0)
        observer.workers(0, 2, 0)
        observer.workers(1, 1, 3)
        assert len(screen.lines) == 1
        screen.clock.now += SECONDS_BETWEEN_LINES
        observer.workers(0, 2, 0)
        observer.workers(1, 1, 3)
    assert screen.lines[1:] == ["certify: 0/4 units done, - samples/s, 3 workers"]


def test_long_units_have_a_line_now_and_then() -> None:
    screen = Screen()
    with screen.observer as observer:
        observer.planned([large(number) for number in range(1000)], 0)
        screen.work(range(5), 20.0)
    fractions = [re.search(r"(\d+)/1000", line) for line in screen.lines[1:]]
    assert [found[1] for found in fractions if found] == ["2", "4"]
    assert screen.lines[-1] == "certify: 4/1000 units done, 50 samples/s, 5 h 32 min left"


def test_further_stages_make_the_time_left_a_lower_bound() -> None:
    screen = Screen()
    with screen.observer as observer:
        observer.began(record_of(stages=3))
        observer.planned([large(0), large(1)], 0)
        screen.work(range(1), 4.0)
        observer.added([large(2)])
        screen.work(range(1, 2), 4.0)
    assert screen.lines[1:] == [
        "certify: 1/2 units done, 250 samples/s, >= 4.0 s left",
        "certify: 2/3 units done, 250 samples/s, >= 4.0 s left",
    ]


def test_the_time_left_counts_what_later_stages_will_probably_need() -> None:
    screen = Screen()
    with screen.observer as observer:
        observer.began(record_of(stages=3))
        observer.planned([large(number) for number in range(4)], 0)
        observer.expected(None)
        screen.work(range(1), 4.0)
        observer.expected(2000.0)
        screen.work(range(1, 2), 4.0)
        observer.expected(0.0)
        screen.work(range(2, 3), 4.0)
    assert screen.lines[1:] == [
        "certify: 1/4 units done, 250 samples/s, >= 12.0 s left",
        "certify: 2/4 units done, 250 samples/s, about 16.0 s left",
        "certify: 3/4 units done, 250 samples/s, 4.0 s left",
    ]


def test_units_that_need_no_time_at_all_are_no_division_by_zero() -> None:
    screen = Screen()
    with screen.observer as observer:
        observer.planned([large(0)], 0)
        screen.work(range(1), 0.0)
    assert screen.lines[-1] == "certify: 1/1 unit done, - samples/s"


def test_quiet_shows_events_only() -> None:
    screen = Screen(quiet=True)
    with screen.observer as observer:
        observer.step("loading")
        observer.planned([large(0)], 0)
        observer.event("warning: [red]slow[/red] " + "x" * 200, "warning", sub_image=0)
        screen.work(range(1), 400.0)
    assert screen.lines == ["certify: warning: [red]slow[/red] " + "x" * 200]


def test_a_terminal_has_a_bar() -> None:
    screen = Screen(terminal=True)
    with screen.observer as observer:
        observer.step("starting Ray workers")
        observer.began(record_of())
        observer.planned([large(number) for number in range(20)], 0)
        screen.work(range(5), 60.0)
        observer.event("lost a worker")
        screen.clock.now += 30.0
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.text).replace("\r", "\n")
    assert "certify: lost a worker\n" in seen
    assert "units done" not in seen  # what the plain lines say
    assert re.search(r"^certify \S+ 5/20 units 17 samples/s 0:05:30 left 0:14:30\s*$", seen, re.MULTILINE), seen


@pytest.mark.parametrize(("stages", "text"), [(1, "left 0:01:00"), (2, "left >= 0:01:00")])
def test_the_bar_grows_with_further_stages(stages: int, text: str) -> None:
    screen = Screen(terminal=True)
    with screen.observer as observer:
        observer.began(record_of(stages=stages))
        observer.planned([large(number) for number in range(2)], 0)
        observer.added([large(2)])
        screen.work(range(2), 60.0)
    assert "2/3 units" in screen.text
    assert text in screen.text


def test_the_bar_counts_what_later_stages_will_probably_need_at_once() -> None:
    screen = Screen(terminal=True)
    with screen.observer as observer:
        observer.began(record_of(stages=3))
        observer.planned([large(number) for number in range(2)], 0)
        screen.work(range(1), 60.0)
        observer.expected(2000.0)
    assert "left about 0:03:00" in screen.text


def test_a_bar_without_a_speed_does_not_know_the_time_left() -> None:
    screen = Screen(terminal=True)
    with screen.observer as observer:
        observer.planned([large(0)], 0)
    assert "- samples/s" in screen.text
    assert "left -:--:--" in screen.text


def test_rates_in_words() -> None:
    assert [rate_text(rate) for rate in (None, 0.4, 12345.6)] == ["- samples/s", "0 samples/s", "12,346 samples/s"]
