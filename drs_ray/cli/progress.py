"""Progress as bars in a terminal and as plain lines elsewhere, for packing, attacks, training and other work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from drs_ray.config import DatasetConfig, RunConfig
from drs_ray.errors import counted, sub_images_text
from drs_ray.report.summary import duration_text
from drs_ray.storage import Store

if TYPE_CHECKING:
    from drs_ray.data.packed_format import PackedIndex

SECONDS_BETWEEN_LINES = 30.0
"""Longest time between two lines without a terminal, so that a log shows that the work goes on."""


class Lines:
    """Prints plain lines, but none if quiet or in a terminal, which has a bar.

    Within `with`, a thread prints the present state if there was no line for `SECONDS_BETWEEN_LINES`.
    """

    def __init__(
        self,
        console: Console,
        label: str,
        quiet: bool,
        state: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """state: returns the progress as a line of text; called in another thread."""
        self._console, self._label, self._state, self._clock = console, label, state, clock
        self._shown = not quiet and not console.is_terminal
        self._last = clock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lines:
        if self._shown:
            self._thread = threading.Thread(target=self._watch, name="drs-ray-lines", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def show(self, message: str) -> None:
        """Print a line."""
        if self._shown:
            self._last = self._clock()
            self._console.print(f"{self._label}: {message}", markup=False, highlight=False, soft_wrap=True)

    def show_if_late(self) -> None:
        """Print the state if there was no line for `SECONDS_BETWEEN_LINES`."""
        if self._clock() - self._last >= SECONDS_BETWEEN_LINES:
            self.show(self._state())

    def _watch(self) -> None:
        while not self._ended.wait(max(self._last + SECONDS_BETWEEN_LINES - self._clock(), 0.1)):
            self.show_if_late()


class Display:
    """A bar, or lines if there is no terminal, within `with`."""

    _progress: Progress
    _lines: Lines

    def __enter__(self) -> Self:
        self._progress.start()
        self._lines.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.__exit__()
        self._progress.stop()


def bar(console: Console, quiet: bool, *columns: ProgressColumn, **options: Any) -> Progress:
    """A bar between a description and further columns, for a terminal only; it leaves nothing behind."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), *columns)
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True, **options)


@contextmanager
def images_progress(console: Console, label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (images done, all images) that updates a bar, or prints lines without a terminal."""
    state = "still loading"
    with (
        bar(
            console, quiet, MofNCompleteColumn(), TextColumn("images"), TimeElapsedColumn(), TimeRemainingColumn()
        ) as progress,
        Lines(console, label, quiet, lambda: state) as lines,
    ):
        task = progress.add_task(label, total=None)
        tenths = 0

        def on_progress(done: int, images: int) -> None:
            nonlocal tenths, state
            progress.update(task, completed=done, total=images)
            state = f"{done:,} of {counted(images, 'image')}"
            if 10 * done // images > tenths:
                lines.show(state)
            tenths = 10 * done // images

        yield on_progress


def pack_with_progress(config: DatasetConfig, store: Store, console: Console, quiet: bool) -> tuple[PackedIndex, bool]:
    """Pack a data set and show the progress; see `pack_dataset`."""
    from drs_ray.data.datasets import open_dataset
    from drs_ray.data.packing import pack_dataset

    dataset = open_dataset(config)
    for warning in dataset.warnings:
        console.print(f"pack: warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    with images_progress(console, "pack", quiet) as on_progress:
        return pack_dataset(dataset, config.image_size, store, lambda done: on_progress(done, len(dataset)))


class TrainingView(Display):
    """Shows a training: bars of epochs and of the present epoch, or a line per epoch and more in long epochs.

    The speed is the mean since a network's training began or resumed. The time left is that of all networks.
    """

    def __init__(
        self, config: RunConfig, console: Console, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._quiet, self._clock = console, quiet, clock
        self._epochs, self._networks = config.training.epochs, config.networks
        self._under = "without noise" if config.training.method == "clean" else "under noise"
        labels = [f"{config.trained(k[0]).architecture} {', '.join(map(str, k))}" for k in self._networks]
        texts = (TextColumn("{task.fields[unit]}"), TextColumn("{task.fields[note]}"))
        self._progress = bar(console, quiet, MofNCompleteColumn(), *texts, TimeElapsedColumn())
        self._tasks = [
            self._progress.add_task(f"train {label}", total=self._epochs, unit="epochs", note="") for label in labels
        ]
        self._epoch = self._progress.add_task("this epoch", total=None, unit="images", note="", visible=False)
        self._state = "still loading"
        self._lines = Lines(console, "train", quiet, lambda: self._state, clock)
        self._network, self._of = -1, 0
        self._began, self._first, self._done = clock(), 0, 0

    def images(self, network: int, epoch: int, images: int, of: int) -> None:
        """See `drs_ray.training.run.ImagesReport`."""
        self._of = of
        done = (epoch - 1) * of + images
        if network != self._network or done < self._done:  # another network, or a restarted group
            self._network, self._began, self._first = network, self._clock(), done
        self._done = done
        speed = self._speed()
        self._state = f"{self._where(epoch)}: {images:,} of {counted(of, 'image')}, {speed}"
        self._progress.update(self._epoch, completed=images, total=of, note=speed, visible=True)
        self._lines.show_if_late()

    def epoch(self, network: int, epoch: int, epochs: int, loss: float, accuracy: float | None) -> None:
        """See `drs_ray.training.run.TrainingReport`."""
        self._done = epoch * self._of
        note = f"loss {loss:.3g}" if accuracy is None else f"loss {loss:.3f}, accuracy {self._under} {accuracy:.3f}"
        self._progress.update(self._tasks[network], completed=epoch, note=note)
        self._lines.show(f"{self._where(epoch)}: {note}, {self._speed()}")
        if epoch == epochs and self._console.is_terminal and not self._quiet:
            self.note(f"{sub_images_text(self._networks[network])}, {counted(epochs, 'epoch')}: {note}")

    def note(self, note: str) -> None:
        """Show a line, even if quiet."""
        self._console.print(f"train: {note}", markup=False, highlight=False, soft_wrap=True)

    def _where(self, epoch: int) -> str:
        return f"{sub_images_text(self._networks[self._network])}, epoch {epoch} of {self._epochs}"

    def _speed(self) -> str:
        seconds, images = self._clock() - self._began, self._done - self._first
        if not images or seconds <= 0:
            return "- images/s"
        rate = images / seconds
        left = (len(self._networks) - self._network) * self._epochs * self._of - self._done
        return f"{rate:,.0f} images/s" + (f", {duration_text(left / rate)} left" if left else "")


def train_with_progress(config: RunConfig, console: Console, quiet: bool) -> list[str]:
    """Train the config's classifiers and show the progress; see `train_run`."""
    from drs_ray.training.run import train_run

    with TrainingView(config, console, quiet) as view:
        return train_run(config, on_progress=view.epoch, on_images=view.images, on_note=view.note)
