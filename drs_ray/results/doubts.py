"""What in a published log does not fit what is said of it: radii that its samples cannot give, unproved rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.attainable import is_attained, largest_bonferroni_radius, largest_radius
from drs_ray.results.published import PublishedLog
from drs_ray.results.rounding import exact_text, format_up

if TYPE_CHECKING:
    from drs_ray.results.imported import ImportedRecord

_DIGITS = 3
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


def doubts(log: PublishedLog, record: ImportedRecord, grid: Sequence[float]) -> Iterator[str]:
    """One line for each thing in a log that does not fit what was stated about it.

    A radius is doubted if all that it may stand for is: it may have been printed to nearest, or rounded down.

    Args:
        log: what was published.
        record: what was stated about it.
        grid: radii of the curve, pixel units.
    """
    low, high = log.radius - log.step / 2, log.radius + log.step
    certified = log.radius > 0
    most = largest_radius(record.sigmas, record.estimation, record.alpha)
    inflated = certified & (low > most)
    if inflated.any():
        yield (
            f"{_radii_from(log, inflated)} larger than {format_up(most, _DIGITS)}, the most that counts alone can "
            f"certify at {record.stated}: a randomised bound (Voracek 2024), which is sound, or more samples were "
            "claimed than drawn, or what is stated is of another log"
        )
    rest = np.flatnonzero(certified & ~inflated)
    if record.sub_images == 1:
        attained = is_attained(low[rest], high[rest], record.sigmas[0], record.estimation, record.alpha)
        if not attained.all():
            yield (
                f"{_radii_from(log, rest[~attained])} what no count gives at {record.stated} by the bound of Cohen et "
                "al. 2019: another rule, such as a randomised bound, or other numbers"
            )
    else:
        shared = largest_bonferroni_radius(record.sigmas, record.estimation, record.alpha)
        beyond = rest[low[rest] > shared]
        if len(beyond):
            yield (
                f"{_radii_from(log, beyond)} larger than {format_up(shared, _DIGITS)}, the most at {record.stated} if "
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


def _radii_from(log: PublishedLog, which: NDArray[np.bool_] | NDArray[np.int64]) -> str:
    """ "2 radii (first 1.9, image 7) are"."""
    images, radii = log.image_id[which], log.radius[which]
    first = f"{exact_text(float(radii[0]))}, image {images[0]}"
    return f"1 radius ({first}) is" if len(radii) == 1 else f"{len(radii):,} radii (first {first}) are"
