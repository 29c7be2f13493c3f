"""Samples that adaptive stages save, and what they lose: 8 and 11 stages, and runs at a fixed radius.

Votes are modelled: multinomial counts with true vote probabilities, and the real rules decide. `python -m
benchmarks.stages RUN` takes the probabilities from the vote shares of a stored run instead of a model of CIFAR-10.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.stages import LOOKS, Schedule, doubling_schedule, is_open
from drs_ray.certificates.votes import Rivals
from drs_ray.config import CertificateConfig
from drs_ray.counts.history import read_counts
from drs_ray.counts.run_record import read_record
from drs_ray.results.selected_votes import selected_votes
from drs_ray.storage import open_store

Floats = NDArray[np.float64]

IMAGES, CLASSES, SIGMA, LARGEST, ALPHA = 4000, 10, 0.5, 100_000, 0.001
GRID = CertificateConfig().radii
FIXED_RADII = (0.25, 0.5, 1.0)
# Certified accuracy of Cohen et al. 2019 (CIFAR-10, sigma 0.5) at radii of the grid; the ends are a guess.
MARGINS = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SHARE_ABOVE = (1.0, 0.65, 0.54, 0.41, 0.32, 0.23, 0.15, 0.09, 0.04, 0.0)


def measure() -> Iterator[tuple[str, str, str]]:
    for sub_images in (1, 2):
        yield from _of(
            f"CIFAR-10 modelled, K = {sub_images}", _cifar10(sub_images), (SIGMA / sub_images**0.5,) * sub_images
        )


def _of(name: str, p: Floats, sigmas: tuple[float, ...]) -> Iterator[tuple[str, str, str]]:
    """p: float64 [N, K, C], class 0 the selected one."""
    rule = Rule.resolved(sigmas)
    fixed = _run(p, sigmas, rule, doubling_schedule(LARGEST, 1), GRID)
    rows = {"fixed budget": fixed}
    rows |= {f"{stages} stages": _run(p, sigmas, rule, doubling_schedule(LARGEST, stages), GRID) for stages in (8, 11)}
    for label, (samples, radius) in rows.items():
        loss = max(
            float(((fixed[1] >= r) & (fixed[1] > 0)).mean() - ((radius >= r) & (radius > 0)).mean()) for r in GRID
        )
        yield (
            f"{name}, grid, {label}",
            f"{samples:,.0f} samples an image and sub-image, ACR {np.minimum(radius, GRID[-1]).mean():.3f}, "
            f"accuracy lost {loss:.4f}",
            "",
        )
    for r in FIXED_RADII:
        refined = doubling_schedule(LARGEST, 11, looks=LOOKS)
        one = {
            f"{stages} stages": _run(p, sigmas, rule, doubling_schedule(LARGEST, stages), (r,)) for stages in (8, 11)
        }
        one["e-value"] = _run(p, sigmas, Rule(radius=r), refined, (r,))
        for label, (samples, radius) in one.items():
            yield f"{name}, r = {r:g}, {label}", f"{samples:,.0f} samples, {(radius >= r).mean():.4f} certified", ""


def _run(
    p: Floats, sigmas: tuple[float, ...], rule: Rule, schedule: Schedule, radii: tuple[float, ...]
) -> tuple[float, Floats]:
    """Mean estimation samples of an image and sub-image, and radii [N], as the engine would draw and certify."""
    rng = np.random.default_rng(0)
    selection = rng.multinomial(100, p)
    unanimous = (selection[:, :, 0] == 100).all(axis=1)
    votes = np.zeros(p.shape, np.int64)
    best, drawn, going = np.zeros(len(p)), np.zeros(len(p)), np.arange(len(p))
    for (_, new), end, share in zip(schedule.ranges(), schedule.samples, schedule.shares, strict=True):
        votes[going] += rng.multinomial(new, p[going])
        drawn[going] = end
        class_votes, samples = votes[going, :, 0], np.full((len(going), len(sigmas)), end)
        image, other = (axis.ravel() for axis in np.mgrid[0 : len(going), 1 : p.shape[2]])
        rivals = Rivals(image, other, votes[going][image, :, other], p.shape[2] - 1) if rule.rivals else None
        common = {"rivals": rivals, "unanimous": unanimous[going]}
        found = certified_radii(class_votes, samples, sigmas, rule, ALPHA, share=share, **common).radius
        best[going] = np.maximum(best[going], found)
        if end == schedule.samples[-1]:
            break
        going = going[
            is_open(best[going], class_votes, samples, sigmas, rule, ALPHA, schedule=schedule, radii=radii, **common)
        ]
        if not len(going):
            break
    return float(drawn.mean()), best


def _cifar10(sub_images: int) -> Floats:
    """Vote probabilities whose radii are spread like the published ones; the halves differ by half a quantile or so."""
    rng = np.random.default_rng(1)
    radius = np.interp(rng.random(IMAGES), SHARE_ABOVE[::-1], MARGINS[::-1])
    spread = rng.normal(0, 0.5, (IMAGES, sub_images)) if sub_images > 1 else np.zeros((IMAGES, 1))
    own = ndtr(np.abs(radius)[:, None] / SIGMA + spread - spread.mean(axis=1, keepdims=True))
    rest = rng.dirichlet(np.full(CLASSES - 1, 0.4), (IMAGES,))[:, None, :]
    return np.concatenate([own[:, :, None], (1 - own)[:, :, None] * rest], axis=2)


def _of_run(uri: str) -> tuple[Floats, tuple[float, ...]]:
    """Vote shares of a run as probabilities, the selected class first."""
    store = open_store(uri)
    record = read_record(store)
    history = read_counts(store, record)
    counts = history.at(record.schedule.samples[-1])
    selected = selected_votes(counts, Rule()).selected
    votes = np.stack([part.toarray() for part in counts.estimation], axis=1).astype(np.float64)
    order = np.argsort(np.arange(votes.shape[2])[None, :] != selected[:, None], axis=1, kind="stable")
    votes = np.take_along_axis(votes, order[:, None, :], axis=2)
    return votes / votes.sum(axis=2, keepdims=True), record.config.sigmas


if __name__ == "__main__":
    for run in sys.argv[1:]:
        for row in _of(run, *_of_run(run)):
            print(*row, sep=" | ", flush=True)
