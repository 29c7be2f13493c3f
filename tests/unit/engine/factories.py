"""Runs in memory for the engine's tests: records with stages, units, and hand-made parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from drs_ray.config import EngineConfig
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.plan import Draw, Unit
from drs_ray.counts.run_record import RunRecord, identity, run_id
from drs_ray.engine.inline_executor import InlineExecutor
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured, Outcome
from tests.unit.counts.factories import CLASSES, make_record


def record_of(
    images: int = 12, *, stages: int = 1, estimation: int = 400, ids: tuple[int, ...] | None = None, **engine: Any
) -> RunRecord:
    """A DRS run of two sub-images in blocks of three images."""
    record = make_record(images, 2, radii=(0.0, 0.1, 0.2))
    config = record.config.updated("budget", stages=stages, estimation=estimation, selection=50)
    config = config.updated("noise", block=50).updated("engine", **({"images_per_unit": 3, "batch": 50} | engine))
    ids = ids or record.image_ids
    name = run_id(identity(config, record.dataset, ids, record.classifier_digests))
    return record.model_copy(update={"run_id": name, "config": config, "image_ids": ids})


def open_record(images: int = 12, **options: Any) -> RunRecord:
    """A run whose units have no size yet."""
    return record_of(images, images_per_unit=None, **options)


def unlike(record: RunRecord) -> RunRecord:
    """The same, but the sub-images' classifiers do not do the same work any more."""
    first, second = record.config.classifiers
    other = second.model_copy(update={"arguments": {"width": 64}})
    return record.model_copy(update={"config": record.config.model_copy(update={"classifiers": (first, other)})})


def measured(rate: float, classes: float = 1.0) -> Measured:
    """So many samples per second."""
    return Measured(2.0, round(2 * rate), classes)


Rate = Callable[[Unit, RunRecord], float | None]


class FakeExecutor(InlineExecutor):
    """A cluster with so much room, whose workers draw `rate` samples per second, or fail where that is None."""

    def __init__(self, room: int = 4, rate: Rate = lambda unit, record: 1000.0) -> None:
        self._room, self._rate = room, rate
        self.units: list[Unit] = []
        self.asked_for_room = False

    def room(self, engine: EngineConfig) -> int:
        self.asked_for_room = True
        return self._room

    def measure(self, units: Sequence[Unit], record: RunRecord, observer: Observer) -> Mapping[int, Sequence[Measured]]:
        self.units += units
        found: dict[int, list[Measured]] = {}
        for unit in units:
            rate = self._rate(unit, record)
            if rate is not None:
                found.setdefault(unit.sub_image, []).append(measured(rate))
        return found


def unit(number: int, sub_image: int = 0) -> Unit:
    """The `number`-th unit of a sub-image, one image."""
    return Unit(sub_image, (number, number), (number,), (Draw("estimation", 0, 0, 10),))


def part_of(record: RunRecord, unit: Unit, own: Callable[[int], float]) -> bytes:
    """The unit's part: class 0 is selected, and gets the share `own(image_id)` of the votes; class 1 has the rest."""
    rows = []
    for position in unit.positions:
        image_id = record.image_ids[position]
        for draw in unit.draws:
            votes = np.zeros(CLASSES, np.int64)
            votes[0] = round(draw.samples * (0.9 if draw.phase == "selection" else own(image_id)))
            votes[1] = draw.samples - votes[0]
            rows.append(
                CountsRow(image_id, 0, unit.sub_image, draw.phase, draw.stage, draw.first_sample, draw.samples, votes)
            )
    return encode_part(rows, record.run_id, unit.key)


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.done: list[Unit] = []
        self.further: list[Unit] = []
        self.events: list[str] = []
        self.crews: list[tuple[int, int, int]] = []

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        self.done.append(unit)

    def added(self, units: Any) -> None:
        self.further += units

    def workers(self, sub_image: int, working: int, starting: int) -> None:
        self.crews.append((sub_image, working, starting))

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        self.events.append(message)
