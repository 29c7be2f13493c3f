"""`attack`: attacks random certified images of a run, group by group, and makes the table.

What `level` covers: An image's perturbation, its norms and its rival are found with the noise of the phases `search`
and `scaling`; only then the noise of the phase `confirmation` is drawn. The image's norms are tested from the largest
down, each at the level of the image, until one is not confirmed. In such a fixed sequence a wrong confirmation requires
that the first norm that should not be confirmed is confirmed. This has the level of one test, for any number of norms
and although they share their noise. Images share `level` equally, so it covers all confirmations of the attack at once.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from drs_ray import arguments
from drs_ray.arguments import checked, optional
from drs_ray.certificates.rule import LEAST_ALPHA, Rule
from drs_ray.checks.attack.confirm import rival_wins
from drs_ray.checks.attack.report import AttackReport
from drs_ray.checks.attack.search import search_directions, smallest_norm
from drs_ray.checks.attack.target import Target
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import ATTACKS, with_metadata
from drs_ray.data.datasets import Dataset
from drs_ray.engine.stored_run import device_here, on_device, with_places_here
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.errors import ClassifierError, ConfigError, CountsError
from drs_ray.models.torch_state import fixed_kernels, out_of_memory, plain_torch
from drs_ray.results.reduce import RunResult, read_result
from drs_ray.results.tables import ABSTAIN
from drs_ray.smoothing.keys import Phase
from drs_ray.storage import Store, open_store

LONGEST = 4.0
"""The search goes up to this many times (certified radius + root mean square of the sigmas)."""

_COARSE = 10  # ratio of confirmation to scaling samples: what the few confirm, the many nearly always do
_SHRINK = 0.985
_MOST_NORMS = 32  # down to 0.985^31 = 0.63 of the first norm; if all are confirmed, the result is the last norm
_SEED_BITS = 32


@dataclass(frozen=True)
class _Effort:
    """Descent steps, noise samples of a step and of a confirmation, and the level of one image's confirmation."""

    steps: int
    samples: int
    confirmation: int
    level: float

    @property
    def scaling(self) -> int:
        """Noise samples with which the bisection tests a norm."""
        return max(1, self.confirmation // _COARSE)


@checked(
    steps=arguments.whole,
    samples=arguments.whole,
    confirmation=arguments.whole,
    on_progress=optional(arguments.function),
    **arguments.of_checks,
)
@plain_torch()
def attack(
    uri: str | os.PathLike[str] | Store,
    images: int = 20,
    *,
    steps: int = 60,
    samples: int = 32,
    confirmation: int = 10_000,
    level: float = 1e-3,
    seed: int | None = None,
    device: str | None = None,
    overrides: Iterable[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    endpoint_url: str | None = None,
) -> AttackReport:
    """Attack the smoothed classifier of a run's certificates on some of its images; `check()` the report.

    Args:
        uri: directory (text or a Path), s3:// URI or store of a reduced run.
        images: number of images, drawn at random; images on which the run abstains are skipped and counted.
        steps: steps of the descent that finds the direction of an image's perturbation.
        samples: noise samples of each sub-image and step.
        confirmation: fresh noise samples of each sub-image by which a norm is confirmed.
        level: upper limit of the probability that any confirmation of the attack is wrong, in (0, 1).
        seed: of the choice of images and of the attack's noise; None: an unpredictable seed.
        device: cpu or cuda; None: the run's, or cpu where this machine has no GPU.
        overrides: `dataset.root=...`, `classifiers.0.checkpoint=...`: where this machine has the same data and weights.
        on_progress: called with the number of attacked images and the number of all images to attack.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        ConfigError: an invalid argument.
        CountsError: no run, or not reduced yet.
        DataError, ClassifierError: the data, weights or code of this machine are not those that the run names, or the
            classifiers have no gradient.
    """
    _check_arguments(images, steps, samples, confirmation, level)
    store = open_store(uri, endpoint_url)
    result = read_result(store)
    record = with_places_here(result.record, overrides)
    used = device_here(device, record)
    seed = secrets.randbits(_SEED_BITS) if seed is None else seed
    rows, skipped = _chosen(result, images, seed)
    if not rows:
        raise CountsError(
            f"{store.uri}: the run abstains on {'the image' if skipped == 1 else f'all {skipped:,} images'} drawn: "
            "there is nothing to attack"
        )
    effort, rule = _Effort(steps, samples, confirmation, level / len(rows)), result.certified_by
    _check_power(effort, rule, record)
    here = record if used == record.config.engine.device else on_device(record, used)
    found: list[dict[str, Any]] = []
    with fixed_kernels(used):
        target, dataset = _load(here, rule, seed)
        size = max(1, target.samplers[0].batch // samples)
        while len(found) < len(rows):
            group = rows[len(found) : len(found) + size]
            attacked = _attack(target, dataset, group, effort)
            if attacked is None:
                size = (len(group) + 1) // 2
                continue
            found += attacked
            if on_progress is not None:
                on_progress(len(found), len(rows))
    options = {
        "images": images,
        "steps": steps,
        "samples": samples,
        "confirmation": confirmation,
        "level": repr(level),
        "seed": seed,
        "device": used,
    }
    schema = with_metadata(ATTACKS, record.run_id, table="attacks", **{name: str(v) for name, v in options.items()})
    places = [word for override in overrides for word in ("--set", override)]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return AttackReport(
        uri=store.uri,
        run_id=record.run_id,
        table=pa.Table.from_pylist(found, schema=schema),
        skipped=skipped,
        level=level,
        alpha=record.failure_probability(result.alpha) + record.drawing_error(confirmation),
        seed=seed,
        device=used,
        command=shlex.join(["drs-ray", "attack", store.uri, *words, *places]),
    )


def _chosen(result: RunResult, images: int, seed: int) -> tuple[list[dict[str, Any]], int]:
    """Certificates of random images, in the run's order, and the number of drawn images that abstain.

    The choice is a hash of the seed and the ids, so that it does not depend on versions of libraries.
    """
    wanted = ["image_id", "label", "prediction", "radius"]
    rows: list[dict[str, Any]] = result.certificates.select(wanted).to_pylist()
    lots = [hashlib.blake2b(f"drs-ray attack 1|{seed}|{row['image_id']}".encode()).digest() for row in rows]
    drawn = sorted(sorted(range(len(rows)), key=lots.__getitem__)[:images])
    certified = [rows[at] for at in drawn if rows[at]["prediction"] != ABSTAIN]
    return certified, len(drawn) - len(certified)


def _load(record: RunRecord, rule: Rule, seed: int) -> tuple[Target, Dataset]:
    """The run's classifiers and data, checked as a worker checks them."""
    first = UnitRunner(record, 0)
    runners = [first, *(UnitRunner(record, sub_image, first.dataset) for sub_image in range(1, record.sub_images))]
    target = Target(
        classifiers=tuple(runner.classifier for runner in runners),
        samplers=tuple(runner.sampler for runner in runners),
        rule=rule,
        num_classes=record.dataset.num_classes,
        dataset=record.dataset.digest,
        seed=seed,
    )
    return target, first.dataset


def _attack(
    target: Target, dataset: Dataset, rows: Sequence[dict[str, Any]], effort: _Effort
) -> list[dict[str, Any]] | None:
    """Rows of the attack's table for a group of images. None: the GPU's memory is too small for so many at a time."""
    images = torch.from_numpy(dataset.images([row["image_id"] for row in rows]))
    begin = np.array([row["radius"] for row in rows]) + np.sqrt(np.mean(np.square(target.sigmas)))
    directions = _directions(target, images, begin, rows, effort)
    if directions is None:
        return None
    group = zip(rows, images, directions, begin, strict=True)
    return [_Ray(target, effort, row, image, d).confirmed(LONGEST * float(first)) for row, image, d, first in group]


def _directions(
    target: Target, images: Tensor, begin: NDArray[np.float64], rows: Sequence[dict[str, Any]], effort: _Effort
) -> Tensor | None:
    """See `search_directions`. None: the GPU's memory is too small for so many images at a time.

    Raises:
        ClassifierError: it is too small for one image.
    """
    try:
        return search_directions(
            target,
            images.to(target.device),
            [row["image_id"] for row in rows],
            torch.tensor([row["prediction"] for row in rows], device=target.device),
            torch.tensor(begin, dtype=torch.float32, device=target.device),
            effort.steps,
            effort.samples,
        ).cpu()
    except Exception as error:
        if out_of_memory(error) is None:
            raise
        if len(rows) == 1:
            raise ClassifierError(
                f"the GPU's memory is too small for {effort.samples} noisy copies of one image with their gradients; "
                "lower --samples, or use --device cpu"
            ) from error
    return None  # after the handler: its error holds the memory of the search


@dataclass(frozen=True, eq=False)
class _Ray:
    """One image and the direction of its perturbations."""

    target: Target
    effort: _Effort
    row: dict[str, Any]
    image: Tensor
    direction: Tensor

    def confirmed(self, limit: float) -> dict[str, Any]:
        """The image's row of the table, with the smallest norm before the first one that is not confirmed."""
        found = {
            **self.row,
            "norm": np.inf,
            "limit": limit,
            "rival": -1,
            "level": self.effort.level,
            "samples": self.effort.confirmation,
            "prediction_votes": [],
            "rival_votes": [],
            "perturbed": [],
        }
        top = smallest_norm(lambda norm: self._rival(norm) is not None, limit)
        rival = None if top is None else self._rival(top)
        if top is None or rival is None:
            return found
        prediction = self.row["prediction"]
        for step in range(_MOST_NORMS):
            image, norm = self._moved(top * _SHRINK**step)
            votes = self._votes(image, "confirmation", self.effort.confirmation)
            if not rival_wins(votes, prediction, rival, self.target.sigmas, self.target.rule, self.effort.level):
                break
            if norm < found["norm"]:  # rounding to 8 bits may change the order of norms
                found |= {
                    "norm": norm,
                    "rival": rival,
                    "prediction_votes": votes[:, prediction].tolist(),
                    "rival_votes": votes[:, rival].tolist(),
                    "perturbed": image.flatten().tolist(),
                }
        return found

    def _rival(self, norm: float) -> int | None:
        """The class that wins at a norm by the samples of the phase `scaling`, tested as if fresh; or None."""
        prediction = self.row["prediction"]
        votes = self._votes(self._moved(norm)[0], "scaling", self.effort.scaling)
        rival = self.target.leading_rival(votes, prediction)
        wins = rival_wins(votes, prediction, rival, self.target.sigmas, self.target.rule, self.effort.level)
        return rival if wins else None

    def _moved(self, norm: float) -> tuple[Tensor, float]:
        """The perturbed image as it is counted, float32 [C, H, W], and the norm of its perturbation, rounded up."""
        moved = self.target.exactly_allowed(self.image.double() + norm * self.direction.double())
        return moved, self.target.distance(moved, self.image)

    def _votes(self, image: Tensor, phase: Phase, samples: int) -> NDArray[np.int64]:
        return self.target.votes(image, self.row["image_id"], phase, samples)


def _check_arguments(images: int, steps: int, samples: int, confirmation: int, level: float) -> None:
    at_least = {"images": (images, 1), "steps": (steps, 1), "samples": (samples, 2), "confirmation": (confirmation, 1)}
    for name, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"{name} must be >= {least}, got {value}")
    if not LEAST_ALPHA <= level < 1:
        raise ConfigError(
            f"level must be in (0, 1), at least {LEAST_ALPHA:g}, got {level}; it is the chance of a wrong answer"
        )


def _check_power(effort: _Effort, rule: Rule, record: RunRecord) -> None:
    """Refuse so few samples that no rival could be confirmed even if all of them voted for it."""
    votes = np.zeros((record.sub_images, record.dataset.num_classes), np.int64)
    votes[:, 1] = effort.scaling
    if not rival_wins(votes, 0, 1, record.config.sigmas, rule, effort.level):
        raise ConfigError(
            f"confirmation is too small, got {effort.confirmation}: a tenth of it, by which the search judges a norm, "
            f"could not show a changed prediction at the level {effort.level:.2g} of one image, whatever the votes; "
            "raise it, or level"
        )
