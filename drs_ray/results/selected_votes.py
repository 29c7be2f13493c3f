"""From counts to the inputs of a certificate: the selected class, its votes, its rivals, and the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.radii import CertifiedRadii, certified_radii
from drs_ray.certificates.rule import RULES_VERSION, Rule
from drs_ray.certificates.stages import is_open
from drs_ray.certificates.votes import Integers, Rivals, most_voted, rivals_of, total, votes_of
from drs_ray.config import CertificateConfig, RunConfig
from drs_ray.counts.history import Counts, CountsHistory
from drs_ray.counts.run_record import RunRecord
from drs_ray.errors import ConfigError


@dataclass(frozen=True, eq=False)
class SelectedVotes:
    """The votes from which the certificates of N images follow, at one number of samples.

    selected: int64 [N], class with the most selection votes of all sub-images together. unanimous: bool [N], the class
    got all of them. class_votes, samples: int64 [N, K], of the estimation phase. rivals: None if the rule bounds none.
    """

    selected: Integers
    unanimous: NDArray[np.bool_]
    class_votes: Integers
    samples: Integers
    rivals: Rivals | None

    def radii(self, sigmas: Sequence[float], rule: Rule, alpha: float, share: float = 1.0) -> CertifiedRadii:
        """Certified radii at a stage's share of the levels: see `certified_radii`."""
        return certified_radii(
            self.class_votes,
            self.samples,
            sigmas,
            rule,
            alpha,
            rivals=self.rivals,
            unanimous=self.unanimous,
            share=share,
        )


def selected_votes(counts: Counts, rule: Rule) -> SelectedVotes:
    """Take the class and `unanimous` from the selection votes, the rest from the estimation votes."""
    selected = most_voted(total(counts.selection))
    everyone = np.arange(len(selected))
    drawn = sum(votes.sum(axis=1) for votes in counts.selection)
    return SelectedVotes(
        selected=selected,
        unanimous=votes_of(counts.selection, everyone, selected).sum(axis=1) == drawn,
        class_votes=votes_of(counts.estimation, everyone, selected),
        samples=np.stack([votes.sum(axis=1) for votes in counts.estimation], axis=1).astype(np.int64),
        rivals=rivals_of(counts.estimation, selected) if rule.rivals else None,
    )


def rule_of(config: RunConfig, certificate: CertificateConfig) -> Rule:
    """The rule of a certificate section for a run, with all automatic choices made.

    Raises:
        ConfigError: the rule does not fit the run.
    """
    try:
        return certificate.rule(config.sigmas)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def open_images(history: CountsHistory, record: RunRecord) -> NDArray[np.bool_]:
    """Which images need the next stage, by the run's stopping rule, which driver and reducer share.

    Only images before the last stage can be open. `record.stopping` decides, with whatever settings the run is reduced.
    If rules of another version decided the run's stages, no image is open: such a run is not continued, and its
    certificates are valid at any stop.
    """
    if record.rules != RULES_VERSION:
        return np.zeros(len(history.image_ids), np.bool_)
    schedule, stopping = record.schedule, record.stopping
    rule = rule_of(record.config, stopping)
    best = np.zeros(len(history.image_ids))
    answer = np.zeros(len(history.image_ids), np.bool_)
    for end, share in zip(schedule.samples[:-1], schedule.shares[:-1], strict=True):
        here = np.flatnonzero(history.drawn >= end)
        if not len(here):
            break
        votes = selected_votes(history.at(end).images(here), rule)
        best[here] = np.maximum(best[here], votes.radii(record.config.sigmas, rule, stopping.alpha, share).radius)
        answer[here] = is_open(
            best[here],
            votes.class_votes,
            votes.samples,
            record.config.sigmas,
            rule,
            stopping.alpha,
            rivals=votes.rivals,
            unanimous=votes.unanimous,
            schedule=schedule,
            radii=stopping.grid,
        ) & (history.drawn[here] == end)
    return answer


def waiting_images(history: CountsHistory, record: RunRecord) -> NDArray[np.bool_]:
    """Which images are open, without those whose block is already at a later stage.

    Before a run was extended, its forecasts were for fewer samples; an image that they stopped stays stopped. history:
    of any images of the run, if it has all images of each of their blocks.
    """
    ids = np.asarray(record.image_ids)
    order = np.argsort(ids)
    block = order[np.searchsorted(ids, history.image_ids, sorter=order)] // record.images_per_unit
    furthest = np.zeros(len(ids), np.int64)
    np.maximum.at(furthest, block, history.drawn)
    return np.asarray(open_images(history, record) & (history.drawn == furthest[block]), np.bool_)
