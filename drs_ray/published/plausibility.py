"""Contradictions between a published log and its stated settings: impossible images and radii, unproved rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.attainable import (
    is_attained,
    largest_bonferroni_radius,
    largest_radius,
    least_alpha,
    samples_to_reach,
)
from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rounding import apart, exact_text, shortest_between
from drs_ray.published.log import PublishedLog

if TYPE_CHECKING:
    from drs_ray.published.imported_run import ImportedRecord

_DIGITS = 3
_MOST_ALPHA = 0.5  # no one states a larger alpha
_MOST_SAMPLES = 10**9  # as in configs
_SIZES: dict[str, tuple[int, dict[str, int]]] = {
    "mnist5k": (10, {"train": 4_000, "test": 1_000}),
    "mnist": (10, {"train": 60_000, "test": 10_000}),
    "cifar10": (10, {"train": 50_000, "test": 10_000}),
    "cifar100": (100, {"train": 50_000, "test": 10_000}),
    "svhn": (10, {"train": 73_257, "test": 26_032}),
    "stl10": (10, {"train": 5_000, "test": 8_000}),
    "tiny-imagenet": (200, {"train": 100_000, "val": 10_000}),
    "imagenet": (1_000, {"train": 1_281_167, "val": 50_000}),
}
"""Numbers of classes and of images per split, of data sets that are the same everywhere."""
_RULE_DOUBTS: dict[str, str] = {
    "square-root": (
        "the square-root rule is no certificate: it is larger than the proved radius unless all margins agree (for p = "
        "0.95 and 0.60 it gives 1.664 sigma where 1.342 is true; docs/theory.md 4.5)"
    ),
    "clipped": (
        "negative margins set to 0 are no certificate: a sub-image that votes against the class subtracts (for p = "
        "0.99 and 0.30 it gives 1.645 sigma where 1.274 is true; docs/theory.md 4.5)"
    ),
    "unknown": (
        "how margins were joined is not stated: by the square-root rule or with negative margins set to 0, as in "
        "published code, radii are too large (docs/theory.md 4.5), and a log cannot show it"
    ),
}


def implausibilities(log: PublishedLog, record: ImportedRecord, grid: Sequence[float]) -> Iterator[str]:
    """One line for each contradiction between a log and its stated settings.

    A radius counts as impossible if all values that may be printed so are: it may be rounded to nearest, or down.

    Args:
        log: the published log.
        record: the stated settings.
        grid: radii of the curve, pixel units.
    """
    yield from _of_another_set(log, record)
    if log.kind == "predictions":
        return
    low, high = log.radius - log.step / 2, log.radius + log.step
    certified = log.radius > 0
    most = largest_radius(record.sigmas, record.estimation, record.alpha)
    inflated = certified & (low > most)
    if inflated.any():
        yield (
            f"{_radii_from(log, inflated)} larger than {_limit(log, inflated, most)}, the most that counts alone can "
            f"certify at {record.stated}: a randomised bound (Voracek 2024), which is sound, or more samples were "
            f"claimed than drawn, or what is stated is of another log{_what_fits(log, record, low, high)}"
        )
    rest = np.flatnonzero(certified & ~inflated)
    if record.sub_images == 1 and log.kind == "radii":
        attained = is_attained(low[rest], high[rest], record.sigmas[0], record.estimation, record.alpha)
        if not attained.all():
            yield (
                f"{_radii_from(log, rest[~attained])} what no count gives at {record.stated} by the bound of Cohen et "
                "al. 2019: another rule, such as a randomised bound, or other numbers"
            )
    if record.sub_images > 1:
        shared = largest_bonferroni_radius(record.sigmas, record.estimation, record.alpha)
        beyond = rest[low[rest] > shared]
        if len(beyond):
            yield (
                f"{_radii_from(log, beyond)} larger than {_limit(log, beyond, shared)}, the most at {record.stated} if "
                f"each of the {record.sub_images} bounds has its share of alpha: a joint bound (docs/theory.md 5.4, "
                "5.6) or a randomised one (Voracek 2024), which are sound, or each had all of alpha, which makes the "
                f"failure probability up to {record.sub_images} alpha"
            )
        if record.radius_rule != "linear":
            yield _RULE_DOUBTS[record.radius_rule]
    lines = np.array([radius for radius in grid if radius > 0])
    reached = certified & ((low[:, None] < lines) & (lines <= log.radius[:, None])).any(axis=1)
    if reached.any():
        yield (
            f"{_radii_from(log, reached)} less than half a step of the last digit above a radius of the curve: unless "
            "the log was rounded down, they may not reach it, and certified accuracy there may be too high"
        )


def _of_another_set(log: PublishedLog, record: ImportedRecord) -> Iterator[str]:
    """Ids and classes that the named data set and split do not have."""
    if record.dataset not in _SIZES:
        return
    classes, splits = _SIZES[record.dataset]
    images = splits.get(record.split)
    if images is not None and (beyond := log.image_id >= images).any():
        yield (
            f"{int(beyond.sum()):,} of its image ids (first {log.image_id[beyond][0]}) cannot be: split "
            f"{record.split} of {record.dataset} has {images:,} images, from 0 on: what is stated is of another log, "
            "or the ids count something else"
        )
    for what, values in (("labels", log.label), ("predictions", log.prediction)):
        if (beyond := values >= classes).any():
            first = f"{values[beyond][0]}, image {log.image_id[beyond][0]}"
            yield (
                f"{int(beyond.sum()):,} of its {what} (first {first}) cannot be: {record.dataset} has {classes:,} "
                "classes, from 0 on: what is stated is of another log"
            )


def _what_fits(log: PublishedLog, record: ImportedRecord, low: Floats, high: Floats) -> str:
    """Which alpha at the stated n, or which n at the stated alpha, could have given the largest radius, if any could.

    These are the numbers with the fewest digits that fit its printed digits, or, for a fixed radius, that are at most a
    tenth above the least. K = 1: if counts give every radius of the log at some of these numbers, only those.
    """
    top = int(low.argmax())
    ends = float(low[top]), float(high[top])
    least, most = (least_alpha(end, record.sigmas, record.estimation) for end in ends)
    fewest, many = (samples_to_reach(end, record.sigmas, record.alpha) for end in ends)
    if log.kind == "one radius":
        most, many = 1.1 * least, 1.1 * fewest
    found: list[tuple[str, int, float]] = []
    if least <= _MOST_ALPHA:
        alpha = shortest_between(least, max(least, min(most, _MOST_ALPHA)))
        found.append((f"alpha = {exact_text(alpha)}", record.estimation, alpha))
    if fewest <= _MOST_SAMPLES:
        whole = math.ceil(fewest)
        samples = int(shortest_between(whole, max(whole, min(many, _MOST_SAMPLES))))
        found.append((f"n = {samples:,}", samples, record.alpha))
    certified = log.radius > 0
    giving = [
        text
        for text, samples, alpha in found
        if record.sub_images == 1
        and log.kind == "radii"
        and is_attained(low[certified], high[certified], record.sigmas[0], samples, alpha).all()
    ]
    if giving:
        return f"; counts give every radius of the log at {' and at '.join(giving)}"
    return f"; {' or '.join(text for text, _, _ in found)} would allow them" if found else ""


def _limit(log: PublishedLog, above: NDArray[np.bool_] | NDArray[np.int64], most: float) -> str:
    """The largest possible radius, with enough digits to show that the given radii are above it."""
    return apart(most, float(log.radius[above].min()), _DIGITS)[0]


def _radii_from(log: PublishedLog, which: NDArray[np.bool_] | NDArray[np.int64]) -> str:
    """ "2 radii (first 1.9, image 7) are"."""
    images, radii = log.image_id[which], log.radius[which]
    first = f"{exact_text(float(radii[0]))}, image {images[0]}"
    return f"1 radius ({first}) is" if len(radii) == 1 else f"{len(radii):,} radii (first {first}) are"
