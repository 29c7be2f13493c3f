"""Writes a run's events as one JSON object per line, for a log collector or `jq`."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from drs_ray.errors import ConfigError, counted

STDERR = "-"
"""The file name for standard error."""


class EventLog(Observer):
    """Appends to a file. Each line is one write, so several drivers may share a file.

    A driver that is killed while it writes may leave a part of its last line; the next one begins a line of its own.

    Every line has `time` (UTC), `run_id` (null until the run is known), `kind` and `message`. Besides the kinds of
    `Observer.event` there are step, began, planned, added, unit_done, workers, and ended, the last one, with
    `exit_code`. Other keys depend on the kind.
    """

    def __init__(self, file: str) -> None:
        """Open the file, or standard error for `-`.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            if file == STDERR:
                self._descriptor = os.dup(2)
            else:
                self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                if _ends_within_a_line(file, self._descriptor):
                    os.write(self._descriptor, b"\n")
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            raise ConfigError(
                f"--log: cannot write {file} ({getattr(error, 'strerror', None) or error}); name a file in a directory "
                "that exists and that you may write to, or - for stderr"
            ) from error
        self._run_id: str | None = None
        self._workers: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk must not hide how the run ended
            if error is None:
                self._write("ended", "done", exit_code=0)
            else:
                code = getattr(error, "exit_code", 1)
                self._write("ended", str(error), exit_code=code, error=type(error).__name__)
        os.close(self._descriptor)

    def step(self, message: str) -> None:
        """Write a line."""
        self._write("step", message)

    def began(self, record: RunRecord) -> None:
        """Write a line. All further lines have the run's id."""
        self._run_id = record.run_id
        self._write(
            "began",
            f"run {record.run_id}",
            output=record.config.output.uri,
            images=len(record.image_ids),
            sub_images=record.sub_images,
            software=record.software,
        )

    def planned(self, todo: Sequence[Unit], stored: int) -> None:
        """Write a line with the units and samples to compute."""
        samples = sum(unit.samples for unit in todo)
        self._write("planned", f"{counted(len(todo), 'unit')} to do", todo=len(todo), stored=stored, samples=samples)

    def added(self, units: Sequence[Unit]) -> None:
        """Write a line with the further units and samples."""
        if units:
            samples = sum(unit.samples for unit in units)
            self._write("added", f"{counted(len(units), 'further unit')} to do", units=len(units), samples=samples)

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        """Write a line with the unit and its times."""
        self._write(
            "unit_done",
            f"stored {unit.key}",
            unit=unit.key,
            sub_image=unit.sub_image,
            samples=unit.samples,
            seconds=round(outcome.count_seconds, 3),
            put_seconds=round(outcome.put_seconds, 4),
            put_retries=outcome.put_retries,
        )

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        """Write a line if the numbers have changed."""
        if self._workers.get(sub_image) != (working, starting):
            self._workers[sub_image] = (working, starting)
            message = f"sub-image {sub_image}: {counted(working, 'worker')}, {starting} more starting"
            self._write("workers", message, sub_image=sub_image, working=working, starting=starting)

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        """Write the event as a line."""
        self._write(kind, message, **fields)

    def _write(self, kind: str, message: str, **fields: object) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "run_id": self._run_id, "kind": kind, "message": message} | fields
        data = json.dumps(line).encode() + b"\n"
        while data:  # a pipe may not accept all bytes at once
            data = data[os.write(self._descriptor, data) :]


def _ends_within_a_line(file: str, descriptor: int) -> bool:
    """Whether a writer was killed in the middle of a line. False for what is not a file on a disk, such as a pipe."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or not state.st_size:
        return False
    with suppress(OSError), Path(file).open("rb") as content:
        content.seek(-1, os.SEEK_END)
        return content.read(1) != b"\n"
    return False  # it may be written to, but not read
