"""How a run shows itself in a terminal: a live bar where there is one, a few plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from drs_ray.config import DatasetConfig, RunConfig
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.pace import Meter
from drs_ray.engine.plan import Unit
from drs_ray.results.run_record import RunRecord
from drs_ray.results.store import Store
from drs_ray.results.summary import duration_text

if TYPE_CHECKING:
    from drs_ray.data.packed import PackedIndex

SECONDS_BETWEEN_LINES = 300.0
"""Where there is no terminal: a line at each tenth of the work, and after so long at the latest."""
_MEASURED_EVERY = 1.0


class _SampleRate(ProgressColumn):
    """Noise samples per second."""

    def render(self, task: Task) -> Text:
        return Text(rate_text(task.fields["rate"]))


class _TimeLeft(ProgressColumn):
    """Time to the end of the known units, which adaptive stages may add to."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        if ends is None:
            return Text("left -:--:--")
        left = timedelta(seconds=round(max(ends - task.get_time(), 0.0)))
        return Text(f"left {task.fields['at_least']}{left}")


class ConsoleObserver(Observer):
    """Draws units, samples/s and time left; events go above the bar. `quiet` leaves events only."""

    def __init__(self, console: Console, label: str, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._label = label
        self._quiet = quiet
        self._clock = clock
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[units]} units"),
            _SampleRate(),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
            get_time=clock,
        )
        self._task = self._progress.add_task(label, total=None, units="?", rate=None, ends=None, at_least="")
        self._units = self._stored = self._done = self._done_since_line = 0
        self._samples_left = 0
        self._at_least = ""
        self._workers: dict[int, int] = {}
        self._meter = Meter(clock())
        self._rate: float | None = None
        self._measured = self._last_line = clock()

    def __enter__(self) -> ConsoleObserver:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def step(self, message: str) -> None:
        """Name the phase in the bar's label, or on a line where there is no bar."""
        self._progress.update(self._task, description=f"{self._label}: {message}")
        self._plain(message)

    def began(self, record: RunRecord) -> None:
        """With stages the time left is that of the known units only."""
        self._at_least = ">= " if len(record.schedule.samples) > 1 else ""

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """Size the bar by what is to do; what is stored already counts as units, not as speed."""
        self._units, self._stored, self._done = stored + len(todo), stored, stored
        self._samples_left = sum(unit.samples for unit in todo)
        self._meter = Meter(self._clock())
        self._measured = self._last_line = self._clock()
        self._progress.reset(
            self._task,
            total=self._samples_left,
            description=self._label,
            units=self._fraction(),  # reset forgets all fields that it is not given
            rate=None,
            ends=None,
            at_least=self._at_least,
        )
        self._plain(f"{len(todo)} of {self._units} units to do, {self._samples_left:,} noise samples")

    def added(self, units: Sequence[Unit]) -> None:
        """Make the bar longer."""
        self._units += len(units)
        samples = sum(unit.samples for unit in units)
        self._samples_left += samples
        total = (self._progress.tasks[0].total or 0) + samples
        self._progress.update(self._task, total=total, units=self._fraction())

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """Advance the bar, and measure the speed once a second."""
        now = self._clock()
        self._done += 1
        self._done_since_line += 1
        self._samples_left -= unit.samples
        self._meter.add(now, unit.samples)
        if now - self._measured >= _MEASURED_EVERY or self._done == self._units:
            self._measured = now
            self._rate = self._meter.pace(now).samples_per_second
            ends = now + self._samples_left / self._rate if self._rate else None
            self._progress.update(self._task, rate=self._rate, ends=ends)
        self._progress.update(self._task, advance=unit.samples, units=self._fraction(), description=self._label)
        if 10 * self._done_since_line >= self._units - self._stored or self._done == self._units:
            self._line(now)
        else:
            self._line_if_late(now)

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """Keep their number for the next line, which may be due although no unit is done."""
        self._workers[sub_image] = working
        self._line_if_late(self._clock())

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Show the message, quiet or not."""
        self._console.print(f"{self._label}: {message}", markup=False, highlight=False, soft_wrap=True)

    def _line_if_late(self, now: float) -> None:
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line(now)

    def _line(self, now: float) -> None:
        self._done_since_line, self._last_line = 0, now
        parts = [f"{self._fraction()} units done", rate_text(self._rate)]
        if self._rate and self._samples_left:
            parts.append(f"{self._at_least}{duration_text(self._samples_left / self._rate)} left")
        if self._workers:
            parts.append(f"{sum(self._workers.values())} workers")
        self._plain(", ".join(parts))

    def _plain(self, message: str) -> None:
        if not self._quiet and not self._console.is_terminal:
            self.event(message)

    def _fraction(self) -> str:
        return f"{self._done}/{self._units}"


def rate_text(rate: float | None) -> str:
    """Noise samples per second, in words; None: not known."""
    return "- samples/s" if rate is None else f"{rate:,.0f} samples/s"


@contextmanager
def images_progress(console: Console, label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar over images, moved by calling it with (done, all); a line at each tenth where there is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task(label, total=None)
        tenths = 0

        def told(done: int, images: int) -> None:
            nonlocal tenths
            progress.update(task, completed=done, total=images)
            if not quiet and not console.is_terminal and 10 * done // images > tenths:
                console.print(f"{label}: {done:,} of {images:,} images", highlight=False)
            tenths = 10 * done // images

        yield told


def pack_with_progress(config: DatasetConfig, store: Store, console: Console, quiet: bool) -> tuple[PackedIndex, bool]:
    """Pack a data set with a bar over images (a line at each tenth where there is no terminal); see `pack_dataset`."""
    from drs_ray.data.datasets import load_dataset
    from drs_ray.data.packing import pack_dataset

    dataset = load_dataset(
        config.name, config.root, config.split, config.download, config.image_size, config.endpoint_url, config.classes
    )
    for warning in dataset.warnings:
        console.print(f"pack: warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    with images_progress(console, "pack", quiet) as told:
        return pack_dataset(dataset, config.image_size, store, lambda done: told(done, len(dataset)))


def train_with_progress(config: RunConfig, console: Console, quiet: bool) -> list[str]:
    """Train the config's classifiers with a bar over epochs (a line per classifier where there is no terminal)."""
    from drs_ray.training.run import train_run

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    ) as progress:
        tasks = [
            progress.add_task(f"train {classifier.architecture} {index}", total=config.training.epochs, note="")
            for index, classifier in enumerate(config.classifiers)
        ]

        def on_epoch(sub_image: int, epoch: int, epochs: int, loss: float, accuracy: float) -> None:
            note = f"loss {loss:.3f}, accuracy under noise {accuracy:.3f}"
            progress.update(tasks[sub_image], completed=epoch, note=note)
            if epoch == epochs and not quiet:
                console.print(f"train: sub-image {sub_image}, {epochs} epochs: {note}", highlight=False)

        def on_note(note: str) -> None:
            console.print(f"train: {note}", markup=False, highlight=False, soft_wrap=True)

        return train_run(config, on_progress=on_epoch, on_note=on_note)
