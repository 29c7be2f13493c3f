"""Certificates from a run's votes after fewer samples, to show how they converge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drs_ray.certificates.rounding import format_ratio_up
from drs_ray.counts.history import Counts, CountsHistory
from drs_ray.report.certified_group import CertifiedGroup
from drs_ray.report.summary import SHARE_DIGITS
from drs_ray.results.reduce import RunResult, certify_counts
from drs_ray.results.tables import ABSTAIN

CONVERGENCE_POINTS = 8
"""Largest number of rows of a convergence table; the numbers of samples halve from row to row."""


@dataclass(frozen=True, eq=False)
class AtSamples(CertifiedGroup):
    """Results of a run's images from at most `samples` estimation samples each, as in a plan without stages.

    These are not certificates of the run: the only certificate of an image is in the run's table. For an adaptive run
    nothing here holds with probability 1 - alpha, because the number of an image's votes depended on its votes.
    """

    samples: int

    @property
    def abstention_text(self) -> str:
        """Abstention rate, rounded up."""
        return format_ratio_up(self.abstained, self.images, SHARE_DIGITS)


def convergence(result: RunResult, history: CountsHistory) -> tuple[AtSamples, ...]:
    """Results of a run's images by its own rule and alpha, at numbers of samples that halve, the largest last.

    Images of an adaptive run that stopped earlier keep the votes that they have.
    """
    rule = result.certified_by
    found = []
    for samples in _halving(history.cuts):
        counts = history.at(samples)
        if not _is_whole(counts, history, samples):
            continue
        table = certify_counts(counts, result.record, rule, result.alpha)
        found.append(
            AtSamples(
                result.failure_probability,
                np.asarray(table["radius"].to_numpy(), np.float64),
                np.asarray(table["correct"].to_numpy(), np.bool_),
                int((table["prediction"].to_numpy() == ABSTAIN).sum()),
                samples=samples,
            )
        )
    return tuple(found)


def _halving(cuts: Sequence[int]) -> list[int]:
    """For the largest cut, its half, its quarter, ...: the smallest cut that is not below it; without repetitions."""
    last = cuts[-1]
    return sorted({min(cut for cut in cuts if cut << power >= last) for power in range(CONVERGENCE_POINTS)})


def _is_whole(counts: Counts, history: CountsHistory, samples: int) -> bool:
    """Whether every image has votes up to exactly this number: units of different sizes have different cuts."""
    expected = np.minimum(history.drawn, samples)
    return all(bool((votes.sum(axis=1) == expected).all()) for votes in counts.estimation)
