"""`drs-ray verify`: counts random units of a run again in this process, and compares their votes with the stored ones.

Nothing is written. On the run's kind of device, votes must be equal. On another kind the noise or the last bits of
logits differ; votes are then compared by an exact test per class (certificates/homogeneity.py), and an honest run fails
with probability at most `level` over the whole check. Bonferroni: each comparison has the level divided by the largest
possible number of comparisons, which depends on no vote.

With adaptive stages the votes decide which units exist, and so how likely a unit is chosen. But a chosen unit would
also be chosen if its block ended with its stage, and its own votes have no part in that. Summed over all stored units,
the probabilities of this are at most R times the units drawn, where R is the largest number of units of a block divided
by those of its first stage (which are stored for each block with further stages). So the level is divided by R too;
R = 1 for a fixed number of samples.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from drs_ray import arguments
from drs_ray.arguments import checked, optional
from drs_ray.certificates.homogeneity import detectable_shift
from drs_ray.checks.recount import Compared, Difference, recount
from drs_ray.counts.history import position_of
from drs_ray.counts.plan import Unit, blocks, stage_units
from drs_ray.counts.run_record import RunRecord, read_record
from drs_ray.counts.schema import PHASES
from drs_ray.engine.description import SOFTWARE, hardware_of, installed_version
from drs_ray.engine.observer import Observer
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.engine.stored_run import device_here, with_places_here
from drs_ray.errors import ConfigError, CountsError, counted
from drs_ray.models.torch_state import plain_torch
from drs_ray.storage import Store, open_store

CONFIDENCE = 0.95
"""Probability with which the check finds differences of the size that the report states."""

_SEED_BITS = 32


@dataclass(frozen=True)
class VerifyReport:
    """What was compared, and what differs.

    uri: of the run. image: the requested image, None for a random draw. device, hardware: of the recount. level: of the
    homogeneity test. inexact: why votes may differ on this machine; empty if they were compared exactly. units: number
    of stored units. checked: keys of the checked units. images: number of recounted images, summed over the checked
    units. samples: of these images in these units; samples_stored: of all stored units. comparisons: number of compared
    rows if exact, else of compared images and phases. shifts: by phase, the difference of vote shares that a comparison
    finds with 95 % probability; empty if exact.
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
        """Whether votes had to be equal."""
        return not self.inexact

    @property
    def share_found(self) -> float:
        """If at least this share of images were wrong, the check would find a wrong one with 95 % probability.

        The share is the mean, over sub-images and their stored units, of the share of a unit's images with a wrong row.
        It is the probability that the first image of a random unit is wrong; units are drawn without replacement and
        evenly from the sub-images, which does not make the check's probability smaller. 0 if everything was compared; 1
        for a requested image, which tells nothing about others.
        """
        if self.image is not None:
            return 1.0
        return 0.0 if self.samples == self.samples_stored else 1 - (1 - CONFIDENCE) ** (1 / len(self.checked))

    def check(self) -> None:
        """Raise unless all votes agree.

        Raises:
            CountsError: naming the number of differing comparisons, and the first.
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


@checked(
    units=arguments.whole,
    image=optional(arguments.whole),
    observer=arguments.observer,
    **arguments.of_checks,
)
@plain_torch()
def verify(
    uri: str | os.PathLike[str] | Store,
    units: int = 10,
    *,
    images: int = 4,
    image: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    level: float = 1e-3,
    overrides: Iterable[str] = (),
    observer: Observer | None = None,
    endpoint_url: str | None = None,
) -> VerifyReport:
    """Recompute random stored units of a run in this process, and compare their votes; `check()` the report.

    Args:
        uri: directory (text or a Path), s3:// URI or store of the run, which need not be finished.
        units: number of stored units, spread over the sub-images.
        images: number of images of each unit, drawn at random; all samples of an image in the unit are recomputed.
        image: id of one image to recompute in all of its units, in place of a random draw. The level holds if the image
            was chosen without knowledge of its votes.
        seed: the seed of an earlier draw repeats it; None: an unpredictable seed.
        device: cpu or cuda; None: the run's, or cpu where this machine has no GPU.
        level: probability that a run without fault fails where votes cannot be compared exactly, in (0, 1).
        overrides: `dataset.root=...`, `classifiers.0.checkpoint=...`: where this machine has the same data and weights.
        observer: receives progress.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        ConfigError: an invalid argument.
        CountsError: no run, no counts, or a part that cannot be trusted.
        DataError, ClassifierError: the data, weights or code of this machine are not those that the run names.
    """
    _check_arguments(units, images, level)
    store = open_store(uri, endpoint_url)
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
    """`count` random units, or all if there are fewer: equally many of each sub-image, as far as it has them.

    The choice is a hash of the seed and the units' keys, so that it does not depend on versions of libraries.
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
    """The unit with only `count` random images, in their order."""
    drawn = sorted(unit.positions, key=lambda position: _lot(seed, "image", unit.key, position))[:count]
    return replace(unit, positions=tuple(sorted(drawn)))


def _units_of(image_id: int, stored: Sequence[Unit], record: RunRecord, store: Store) -> dict[Unit, Unit]:
    """The stored units of an image, each with the same unit cut down to this image.

    Raises:
        ConfigError: the image is not one of the run. CountsError: none of its units is stored.
    """
    position = position_of(image_id, record, store)
    found = {unit: replace(unit, positions=(position,)) for unit in stored if position in unit.positions}
    if not found:
        raise CountsError(f"{store.uri}: no counts of image {image_id} to verify yet; run `drs-ray certify` first")
    return found


def _lot(seed: int, *what: str | int) -> bytes:
    return hashlib.blake2b("|".join(["drs-ray verify 1", str(seed), *map(str, what)]).encode()).digest()


def _level_of_each(record: RunRecord, level: float, units: int, images: int) -> float:
    """The level of one comparison of one class; over all possible comparisons it sums to `level` (see the module)."""
    every, block = blocks(record), blocks(record)[0]
    by_stage = [len(stage_units(record, block, stage, block[:1])) for stage in range(len(record.schedule.samples))]
    most_units = min(units, len(every) * sum(by_stage))
    most_images = min(images, record.images_per_unit)
    comparisons = most_units * most_images * len(PHASES) * record.dataset.num_classes
    return level * by_stage[0] / (comparisons * sum(by_stage))


def _level_of_one_image(record: RunRecord, level: float) -> float:
    """The level of one comparison of one class, for a requested image.

    All of its stored units are checked. The votes of earlier stages decide which units exist, never a unit's own votes.
    So a comparison keeps its level, and the level is divided by all comparisons of all stages (Bonferroni).
    """
    block = blocks(record)[0]
    units = sum(len(stage_units(record, block, stage, block[:1])) for stage in range(len(record.schedule.samples)))
    return level / (units * len(PHASES) * record.dataset.num_classes)


def _shifts(compared: Iterable[Compared], level: float) -> dict[str, float]:
    """By phase the difference that the comparison with the fewest samples finds."""
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
    """Why votes may differ on this machine: the noise generator or the last bits of logits may differ."""
    if device != record.config.engine.device:
        yield f"the run is for {record.config.engine.device}, this is {device}"
        return
    hardware, there = (re.sub(r", \d+ cores$", "", name) for name in (hardware_of(device), record.hardware))
    if hardware != there:
        yield f"the run began on {there}, this is {hardware}"
    libraries = sorted(record.software.keys() - {"python", *SOFTWARE})  # of the classifiers' layers
    for name in ("torch", "numpy", *libraries):  # numpy guarantees only its raw streams
        version = installed_version(name)
        if record.software.get(name) != version:
            yield f"the run began with {name} {record.software.get(name)}, this is {version}"
