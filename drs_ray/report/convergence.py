"""A run's certificates as they were after fewer samples."""

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
"""Most numbers of samples at which convergence is shown, halving from the largest."""


@dataclass(frozen=True, eq=False)
class AtSamples(CertifiedGroup):
    """A run's images by no more than `samples` estimation samples each, as if that had been a plan without stages.

    Not certificates of the run: each image has one, and that is in its table. Of an adaptive run nothing holds with
    probability 1 - alpha here: how many votes an image has depended on its votes.
    """

    samples: int

    @property
    def abstention_text(self) -> str:
        """Abstention rate, rounded up."""
        return format_ratio_up(self.abstained, self.images, SHARE_DIGITS)


def convergence(result: RunResult, history: CountsHistory) -> tuple[AtSamples, ...]:
    """A run's images by its own rule and alpha, at numbers of samples that halve, the largest last.

    Images of an adaptive run that had stopped earlier keep the votes that they have.
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
    """The smallest cut that is no less than the largest, its half, its quarter, ..., without repetitions."""
    last = cuts[-1]
    return sorted({min(cut for cut in cuts if cut << power >= last) for power in range(CONVERGENCE_POINTS)})


def _is_whole(counts: Counts, history: CountsHistory, samples: int) -> bool:
    """Whether every image's votes are known there: units of different sizes may have been cut elsewhere."""
    expected = np.minimum(history.drawn, samples)
    return all(bool((votes.sum(axis=1) == expected).all()) for votes in counts.estimation)
