"""An audit: random units of a run are counted again here, and their votes compared with the stored ones.

Nothing is written. On the kind of device that the run had, votes must be the same. On another kind the noise or the
last bits of logits differ: votes are then compared by an exact test per class (certificates/homogeneity.py), so that an
honest run fails with probability at most `level` over the whole check. Bonferroni: each comparison has the level
divided by the most comparisons that there can be, a number that depends on no vote.

With adaptive stages the votes decide which units exist, and so how likely one is chosen. But a unit that is chosen
would also be chosen if its block ended with its stage, and its own votes have no part in that. Summed over all stored
units, the chances of this are at most R times the units drawn, R being the most units of a block over those of its
first stage (which are stored for each block that went on). So the level is divided by R too; R = 1 for a fixed number
of samples.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata

from drs_ray.certificates.homogeneity import detectable_shift
from drs_ray.checks.recount import Compared, Difference, recount
from drs_ray.counts.history import position_of
from drs_ray.counts.plan import Unit, blocks, stage_units
from drs_ray.counts.run_record import RunRecord, read_record
from drs_ray.counts.schema import PHASES
from drs_ray.engine.description import hardware_of
from drs_ray.engine.observer import Observer
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.engine.stored_run import device_here, with_places_here
from drs_ray.errors import ConfigError, CountsError, counted
from drs_ray.models.torch_state import plain_torch
from drs_ray.storage import Store

CONFIDENCE = 0.95
"""What the check would have shown is said for this probability."""

_SEED_BITS = 32


@dataclass(frozen=True)
class VerifyReport:
    """What was compared, and what differs.

    uri: where the run is. image: the one that was asked for, None for a random draw. device, hardware: what it was
    counted on again. level: of the homogeneity test. inexact: why votes need not be the same here; empty where they
    were compared exactly. units: how many are stored. checked: keys of those that were drawn. images: how many were
    counted again, over all these. samples: of these images in these units; samples_stored: of all stored units.
    comparisons: rows where exact, else images and phases. shifts: by phase, the difference of vote shares that a
    comparison finds with 95 % probability; empty where exact.
    """

    uri: str
    record: RunRecord
    image: int | None
    seed: int
    device: str
    hardware: str
    level: float
    inexact: str
    units: int
    checked: tuple[str, ...]
    images: int
    samples: int
    samples_stored: int
    comparisons: int
    differences: tuple[Difference, ...]
    shifts: Mapping[str, float]

    @property
    def exact(self) -> bool:
        """Whether votes had to be the same."""
        return not self.inexact

    @property
    def share_found(self) -> float:
        """Were at least this share of the votes' images wrong, the check would meet one with 95 % probability.

        The share is the mean, over sub-images and their stored units, of the unit's images with a wrong row: it is the
        chance that the first image of a random unit is wrong, and units are drawn without replacement and evenly from
        the sub-images, which makes it no smaller. 0 where everything was compared; 1 for an image that was named, which
        says nothing of others.
        """
        if self.image is not None:
            return 1.0
        return 0.0 if self.samples == self.samples_stored else 1 - (1 - CONFIDENCE) ** (1 / len(self.checked))

    def check(self) -> None:
        """Raise unless all votes agree.

        Raises:
            CountsError: naming how many comparisons differ, and the first.
        """
        if not self.differences:
            return
        units = sorted({difference.unit for difference in self.differences})
        named = " ".join(f"--unit {unit}" for unit in units)
        raise CountsError(
            f"{self.uri}: {len(self.differences):,} of {counted(self.comparisons, 'comparison')} differ, in "
            f"{len(units):,} of {counted(len(self.checked), 'unit')} checked, first {self.differences[0]}; unless its "
            "worker had other hardware or versions than run.json names, that part is not this run's: find out who "
            f"wrote it, move it aside with `drs-ray repair {self.uri} {named}`, then `drs-ray certify` computes it "
            "again"
        )


@plain_torch()
def verify_run(
    store: Store,
    units: int = 10,
    *,
    images: int = 4,
    image: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    level: float = 1e-3,
    overrides: Iterable[str] = (),
    observer: Observer | None = None,
) -> VerifyReport:
    """Recompute random stored units of a run in this process, and compare their votes.

    Args:
        store: where the run is; it need not be finished.
        units: how many of its stored units, spread over the sub-images.
        images: how many images of each, at random; all samples of an image in that unit are recomputed.
        image: id of one image, which is recomputed in all of its units, in place of a random draw. The level holds if
            it was chosen without a look at its votes.
        seed: repeats a draw; None: one that nobody can know beforehand.
        device: cpu or cuda; None: the run's, or cpu where this machine has no GPU.
        level: probability that a run without fault fails where votes cannot be compared exactly, in (0, 1).
        overrides: `dataset.root=...`, `classifiers.0.checkpoint=...`: where the same data and weights are here.
        observer: told of progress.

    Raises:
        ConfigError: an argument that cannot be.
        CountsError: no run, no counts, or a part that cannot be trusted as it is.
        DataError, ClassifierError: the data, weights or code found here are not those that the run names.
    """
    _check_arguments(units, images, level)
    observer = observer or Observer()
    record = read_record(store)
    record = with_places_here(record, overrides)
    used = device_here(device, record)
    inexact = "; ".join(_kind_differences(record, used))
    if inexact:
        observer.event(f"votes are compared by a homogeneity test, not exactly: {inexact}")
    seed = secrets.randbits(_SEED_BITS) if seed is None else seed
    remaining = RemainingUnits(record, store)
    remaining.missing()
    stored = remaining.stored
    if not stored:
        raise CountsError(f"{store.uri}: no counts to verify yet; run `drs-ray certify` first")
    if image is None:
        todo = {unit: _some_images(unit, images, seed) for unit in choose_units(stored, units, seed)}
        level_each = _level_of_each(record, level, units, images)
    else:
        todo = _units_of(image, stored, record, store)
        level_each = _level_of_one_image(record, level)
    chosen = list(todo)
    observer.planned(list(todo.values()), 0)
    compared = list(recount(todo, record, used, not inexact, store, remaining.parts, observer))
    differences = [found for item in compared if (found := item.difference(level_each if inexact else None))]
    for unit in chosen:
        mine = [difference for difference in differences if difference.unit == unit.key]
        if mine:
            observer.event(f"{counted(len(mine), 'difference')}, first {mine[0]}", "warning")
    return VerifyReport(
        uri=store.uri,
        record=record,
        image=image,
        seed=seed,
        device=used,
        hardware=hardware_of(used),
        level=level,
        inexact=inexact,
        units=len(stored),
        checked=tuple(unit.key for unit in chosen),
        images=sum(len(part.positions) for part in todo.values()),
        samples=sum(part.samples for part in todo.values()),
        samples_stored=sum(unit.samples for unit in stored),
        comparisons=len(compared),
        differences=tuple(differences),
        shifts=_shifts(compared, level_each) if inexact else {},
    )


def choose_units(stored: Sequence[Unit], count: int, seed: int) -> list[Unit]:
    """`count` of the units at random, or all: as many of each sub-image, while it has any.

    A function of the seed and the units' keys alone, by a hash: it is the same with any version of any library.
    """
    ranked: list[tuple[int, bytes, Unit]] = []
    for sub_image in sorted({unit.sub_image for unit in stored}):
        mine = sorted(
            (unit for unit in stored if unit.sub_image == sub_image), key=lambda unit: _lot(seed, "unit", unit.key)
        )
        turn = _lot(seed, "sub-image", sub_image)
        ranked += [(rank, turn, unit) for rank, unit in enumerate(mine)]
    ranked.sort(key=lambda item: item[:2])
    return [unit for _, _, unit in ranked[:count]]


def _some_images(unit: Unit, count: int, seed: int) -> Unit:
    """The unit with `count` of its images at random, in their order."""
    drawn = sorted(unit.positions, key=lambda position: _lot(seed, "image", unit.key, position))[:count]
    return replace(unit, positions=tuple(sorted(drawn)))


def _units_of(image_id: int, stored: Sequence[Unit], record: RunRecord, store: Store) -> dict[Unit, Unit]:
    """The stored units that an image is in, and the same for that image alone.

    Raises:
        ConfigError: an image that is not of the run. CountsError: none of its units is stored.
    """
    position = position_of(image_id, record, store)
    found = {unit: replace(unit, positions=(position,)) for unit in stored if position in unit.positions}
    if not found:
        raise CountsError(f"{store.uri}: no counts of image {image_id} to verify yet; run `drs-ray certify` first")
    return found


def _lot(seed: int, *what: str | int) -> bytes:
    return hashlib.blake2b("|".join(["drs-ray verify 1", str(seed), *map(str, what)]).encode()).digest()


def _level_of_each(record: RunRecord, level: float, units: int, images: int) -> float:
    """The level of one comparison of one class: over all that there can be, it adds up to `level` (see the module)."""
    every, block = blocks(record), blocks(record)[0]
    by_stage = [len(stage_units(record, block, stage, block[:1])) for stage in range(len(record.schedule.samples))]
    most_units = min(units, len(every) * sum(by_stage))
    most_images = min(images, record.images_per_unit)
    comparisons = most_units * most_images * len(PHASES) * record.dataset.num_classes
    return level * by_stage[0] / (comparisons * sum(by_stage))


def _level_of_one_image(record: RunRecord, level: float) -> float:
    """The level of one comparison of one class, for an image that was named and not drawn.

    All of its stored units are checked. Which exist is decided by votes of earlier stages, never by a unit's own, so
    that a comparison's level is kept whether or not the unit could have been missing: plain Bonferroni over all stages.
    """
    block = blocks(record)[0]
    units = sum(len(stage_units(record, block, stage, block[:1])) for stage in range(len(record.schedule.samples)))
    return level / (units * len(PHASES) * record.dataset.num_classes)


def _shifts(compared: Iterable[Compared], level: float) -> dict[str, float]:
    """By phase what the comparison of the fewest samples finds."""
    fewest: dict[str, int] = {}
    for item in compared:
        fewest[item.phase] = min(item.samples, fewest.get(item.phase, item.samples))
    return {phase: detectable_shift(samples, level, CONFIDENCE) for phase, samples in fewest.items()}


def _check_arguments(units: int, images: int, level: float) -> None:
    for name, value in (("units", units), ("images", images)):
        if value < 1:
            raise ConfigError(f"{name} must be >= 1, got {value}")
    if not 0 < level < 1:
        raise ConfigError(f"level must be in (0, 1), got {level}; it is the chance that a run without fault fails")


def _kind_differences(record: RunRecord, device: str) -> Iterator[str]:
    """Why votes need not be the same here: the noise generator or the last bits of logits may differ."""
    if device != record.config.engine.device:
        yield f"the run is for {record.config.engine.device}, this is {device}"
        return
    hardware, there = (re.sub(r", \d+ cores$", "", name) for name in (hardware_of(device), record.hardware))
    if hardware != there:
        yield f"the run began on {there}, this is {hardware}"
    for name in ("torch", "numpy"):  # numpy too: only its raw streams are promised to stay as they are
        version = metadata.version(name)
        if record.software.get(name) != version:
            yield f"the run began with {name} {record.software.get(name)}, this is {version}"
