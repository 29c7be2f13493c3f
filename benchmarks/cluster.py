"""A simulated cluster: sleeping workers with fake GPUs on a real Ray. How busy they are kept, and what kills cost."""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from drs_ray.counts.plan import Draw, Unit
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.ray.dispatcher import Dispatcher

WORKERS = (8, 32, 64)
UNITS_PER_WORKER = 12
UNIT_SECONDS = (1.5, 2.5)
KILLED_SHARE = 0.2


class _Sleeper:
    """A worker whose units are naps; it writes down when it was ready, and when each nap began and ended."""

    def start(self, journal: str) -> None:
        """Begin a journal of this process."""
        self._journal = Path(journal, str(os.getpid()))
        self._note("ready")

    def run(self, unit: Unit) -> Outcome:
        """Sleep; how long depends on the unit alone."""
        self._note("begin")
        seconds = random.Random(unit.positions[0]).uniform(*UNIT_SECONDS)
        time.sleep(seconds)
        self._note("end")
        return Outcome(seconds, 0.0)

    def _note(self, what: str) -> None:
        with self._journal.open("a") as file:
            file.write(f"{what} {time.time()}\n")


@dataclass(frozen=True)
class _Trial:
    """busy: share of the live workers' time spent in units that counted. idle_ms: median pause between two units.

    wasted: share of the time spent in units that was lost with killed workers.
    """

    seconds: float
    busy: float
    idle_ms: float
    wasted: float
    kills: int


def measure() -> Iterator[tuple[str, str, str]]:
    for workers in WORKERS:
        calm, wild = _trial(workers, 0.0), _trial(workers, KILLED_SHARE)
        yield (
            f"simulated cluster, {workers} workers, units of 1.5 to 2.5 s: busy (median pause between units)",
            f"{100 * calm.busy:.1f} % ({calm.idle_ms:.1f} ms)",
            "pause <= 10 ms",
        )
        yield (
            f"simulated cluster, {workers} workers, {wild.kills} of them killed: time against calm, work wasted",
            f"{wild.seconds / calm.seconds:.2f}x, {100 * wild.wasted:.1f} %",
            "",
        )


def _trial(workers: int, killed_share: float) -> _Trial:
    with tempfile.TemporaryDirectory(prefix="drs-") as directory:
        ray.init(
            address="local",
            num_cpus=1,
            num_gpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=f"{directory}/ray",
        )
        try:
            return _run(workers, round(killed_share * workers), directory)
        finally:
            ray.shutdown()


def _run(workers: int, kills: int, directory: str) -> _Trial:
    journal = Path(directory, "journal")
    journal.mkdir()
    actors = ray.remote(_Sleeper).options(num_cpus=0, num_gpus=1, max_restarts=0, max_task_retries=0)

    def start(sub_image: int) -> tuple[Any, Any]:
        actor = actors.remote()
        return actor, actor.start.remote(str(journal))

    draw = Draw("estimation", 0, 0, 1)
    count = workers * UNITS_PER_WORKER
    units = [Unit(index % 2, (index, index), (index,), (draw,)) for index in range(count)]
    killer = _Killer(journal, workers, kills)
    dispatching = Dispatcher(
        units,
        start=start,
        call=lambda actor, unit: actor.run.remote(unit),
        done=killer.done,
        limit=lambda: workers,
        hang_seconds=60.0,
        needs="nothing",
        free=str,
        observer=killer,
    )
    set_aside = dispatching.run(120.0)
    assert not set_aside
    return _evaluate(journal, killer)


class _Killer(Observer):
    """Kills workers at random, evenly over the run: one after each so many units. Notes when the last unit was done."""

    def __init__(self, journal: Path, workers: int, kills: int) -> None:
        self._journal = journal
        self._every = workers * UNITS_PER_WORKER // (kills + 1)
        self._random = random.Random(0)
        self._left = kills
        self._done = 0
        self.killed: dict[str, float] = {}
        self.last = 0.0

    def done(self, unit: Unit, outcome: Outcome) -> list[Unit]:
        """It calls for no other."""
        self._done += 1
        self.last = time.time()
        if self._left and self._done % self._every == 0:
            self._left -= 1
            threading.Timer(self._random.random(), self._kill).start()
        return []

    def _kill(self) -> None:
        alive = sorted(path.name for path in self._journal.iterdir() if path.name not in self.killed)
        victim = self._random.choice(alive)
        with suppress(ProcessLookupError):
            os.kill(int(victim), signal.SIGKILL)
            self.killed[victim] = time.time()


def _evaluate(journal: Path, killer: _Killer) -> _Trial:
    """Workers' own notes: a worker is there from its first unit to its death or to the last unit of all."""
    present = useful = lost = 0.0
    pauses, first = [], killer.last
    for path in journal.iterdir():
        notes = [(what, float(when)) for what, when in (line.split() for line in path.read_text().splitlines())]
        there = notes[0][1]
        gone = killer.killed.get(path.name, killer.last)
        first = min(first, there)
        present += max(gone - there, 0.0)
        begun = ended = None
        for what, when in notes[1:]:
            if what == "begin":
                begun = when
                if ended is not None:
                    pauses.append(when - ended)
            elif begun is not None:
                useful += when - begun
                begun, ended = None, when
        if begun is not None:
            lost += gone - begun
    idle = 1000 * statistics.median(pauses)
    return _Trial(killer.last - first, useful / present, idle, lost / (useful + lost), len(killer.killed))
