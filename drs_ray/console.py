"""How a run shows itself in a terminal: a live bar where there is one, a few plain lines where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
from rich.table import Table
from rich.text import Text

from drs_ray.config import RunConfig
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.plan import Unit


class _SampleRate(ProgressColumn):
    """Noise samples per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("- samples/s" if speed is None else f"{speed:,.0f} samples/s")


class ConsoleObserver(Observer):
    """Draws units, samples/s and time left; events go above the bar. `quiet` leaves events only."""

    def __init__(self, console: Console, label: str, quiet: bool) -> None:
        self._console = console
        self._label = label
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[units]} units"),
            _SampleRate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=None, units="?")
        self._units = 0
        self._done = 0

    def __enter__(self) -> ConsoleObserver:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def step(self, message: str) -> None:
        """Name the phase in the bar's label, or on a line where there is no bar."""
        self._progress.update(self._task, description=f"{self._label}: {message}")
        self._plain(message)

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """Size the bar by what is to do; what is stored already counts as units, not as speed."""
        self._units, self._done = stored + len(todo), stored
        left = sum(unit.samples for unit in todo)
        self._progress.reset(self._task, total=left, units=self._fraction(), description=self._label)
        self._plain(f"{len(todo)} of {self._units} units to do, {left:,} noise samples")

    def added(self, units: Sequence[Unit]) -> None:
        """Make the bar longer."""
        self._units += len(units)
        total = (self._progress.tasks[0].total or 0) + sum(unit.samples for unit in units)
        self._progress.update(self._task, total=total, units=self._fraction())

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """Advance the bar."""
        self._done += 1
        self._progress.update(self._task, advance=unit.samples, units=self._fraction(), description=self._label)
        tenths = 10 * self._done // self._units
        if tenths > 10 * (self._done - 1) // self._units:
            self._plain(f"{self._fraction()} units done")

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Show the message, quiet or not."""
        self._console.print(f"{self._label}: {message}", markup=False, highlight=False, soft_wrap=True)

    def _plain(self, message: str) -> None:
        if not self._quiet and not self._console.is_terminal:
            self.event(message)

    def _fraction(self) -> str:
        return f"{self._done}/{self._units}"


def train_with_progress(config: RunConfig, console: Console, quiet: bool) -> list[Path]:
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

        return train_run(config, on_progress=on_epoch)


def render_facts(facts: Mapping[str, str]) -> Table:
    """Names and values, one pair per line."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, value)
    return table
