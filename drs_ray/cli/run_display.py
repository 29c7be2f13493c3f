"""The progress of a run: a live bar in a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from drs_ray.cli.progress import Display, Lines, bar
from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.throughput import Meter
from drs_ray.errors import counted
from drs_ray.report.summary import duration_text

_MEASURED_EVERY = 1.0


class _SampleRate(ProgressColumn):
    """Noise samples per second."""

    def render(self, task: Task) -> Text:
        return Text(rate_text(task.fields["rate"]))


class _TimeLeft(ProgressColumn):
    """Time to the end; in an adaptive run ">= " for that of the known units, "about " for an estimate."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        if ends is None:
            return Text("left -:--:--")
        left = timedelta(seconds=round(max(ends - task.get_time(), 0.0)))
        return Text(f"left {task.fields['bound']}{left}")


class ConsoleObserver(Display, Observer):
    """Shows units, samples/s and time left, with events above the bar. `quiet`: events only."""

    def __init__(self, console: Console, label: str, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._label = label
        self._clock = clock
        self._lines = Lines(console, label, quiet, self._state, clock)
        self._phase = "starting"
        columns = (TextColumn("{task.fields[units]}"), _SampleRate(), TimeElapsedColumn(), _TimeLeft())
        self._progress = bar(console, quiet, *columns, get_time=clock)
        self._task = self._progress.add_task(label, total=None, units="? units", rate=None, ends=None, bound="")
        self._units = self._stored = self._done = self._done_since_line = 0
        self._samples_left = 0
        self._later: float | None = 0.0
        self._workers: dict[int, int] = {}
        self._meter = Meter(clock())
        self._rate: float | None = None
        self._measured = clock()

    def step(self, message: str) -> None:
        """Show the phase in the bar's label, or on a line if there is no bar."""
        self._progress.update(self._task, description=f"{self._label}: {message}")
        self._phase = message
        self._lines.show(message)

    def began(self, record: RunRecord) -> None:
        """In an adaptive run, what later stages need is not known yet."""
        self._later = None if len(record.schedule.samples) > 1 else 0.0

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """Set the length of the bar. Stored units count as done, but not for the speed."""
        self._units, self._stored, self._done = stored + len(todo), stored, stored
        self._samples_left = sum(unit.samples for unit in todo)
        self._meter = Meter(self._clock())
        self._measured = self._clock()
        self._phase = ""
        self._progress.reset(
            self._task,
            total=self._samples_left,
            description=self._label,
            units=self._fraction(),  # reset clears all other fields
            rate=None,
            ends=None,
            bound=self._bound(),
        )
        self._lines.show(
            f"{len(todo):,} of {counted(self._units, 'unit')} to do, {counted(self._samples_left, 'noise sample')}"
        )

    def added(self, units: Sequence[Unit]) -> None:
        """Make the bar longer."""
        self._units += len(units)
        self._samples_left += sum(unit.samples for unit in units)
        self._show_total()

    def expected(self, samples: float | None) -> None:
        """Count the samples of later stages into the time left and the length of the bar."""
        self._later = samples
        self._show_total()

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """Advance the bar, and measure the speed once a second."""
        now = self._clock()
        self._phase = ""
        self._done += 1
        self._done_since_line += 1
        self._samples_left -= unit.samples
        self._meter.add(now, unit.samples)
        if now - self._measured >= _MEASURED_EVERY or self._done == self._units:
            self._measured = now
            self._rate = self._meter.throughput(now).samples_per_second
            self._progress.update(self._task, rate=self._rate)
            self._show_end()
        self._progress.update(self._task, advance=unit.samples, units=self._fraction(), description=self._label)
        if 10 * self._done_since_line >= self._units - self._stored or self._done == self._units:
            self._lines.show(self._state())
        else:
            self._lines.show_if_late()

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """Store their number for the next line, and print this line if it is due."""
        self._workers[sub_image] = working
        if working:
            self._phase = ""
        self._lines.show_if_late()

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Show the message, even if quiet."""
        self._console.print(f"{self._label}: {message}", markup=False, highlight=False, soft_wrap=True)

    def _state(self) -> str:
        if self._phase:
            return f"still {self._phase}"
        self._done_since_line = 0
        parts = [f"{self._fraction()} done", rate_text(self._rate)]
        if self._rate and self._samples_left:
            parts.append(f"{self._bound()}{duration_text(self._all_left() / self._rate)} left")
        if self._workers:
            parts.append(counted(sum(self._workers.values()), "worker"))
        return ", ".join(parts)

    def _show_total(self) -> None:
        total = self._progress.tasks[0].completed + self._all_left()
        self._progress.update(self._task, total=total, units=self._fraction(), bound=self._bound())
        self._show_end()

    def _show_end(self) -> None:
        ends = self._clock() + self._all_left() / self._rate if self._rate else None
        self._progress.update(self._task, ends=ends)

    def _all_left(self) -> float:
        return self._samples_left + (self._later or 0.0)

    def _bound(self) -> str:
        return ">= " if self._later is None else "about " if self._later else ""

    def _fraction(self) -> str:
        return f"{self._done}/{self._units} {'unit' if self._units == 1 else 'units'}"


def rate_text(rate: float | None) -> str:
    """Noise samples per second as text; None: unknown."""
    return "- samples/s" if rate is None else f"{rate:,.0f} samples/s"
