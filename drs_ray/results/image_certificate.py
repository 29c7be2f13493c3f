"""One certificate in full: every number between an image's votes and its radius, and the formula with these numbers.

The bounds are written with ten decimals, rounded to the safe side (down for the class, up for its rival). So the
written expression gives the stored radius or a little less, never more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drs_ray.certificates.confidence import level_region
from drs_ray.certificates.fixed_radius import log_e_values
from drs_ray.certificates.radii import PAIR_SHARE
from drs_ray.certificates.radius import Floats, cross_pairing_radius, margins, mean_radius, probit_radius
from drs_ray.certificates.rounding import exact_text, format_down, format_up
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.votes import votes_of
from drs_ray.counts.history import CountsHistory, read_image
from drs_ray.counts.run_record import RunRecord
from drs_ray.errors import CountsError
from drs_ray.results.reduce import read_result
from drs_ray.results.selected_votes import selected_votes
from drs_ray.storage import Store

BOUND_DIGITS = 10
"""Decimals of bounds in the written expression."""


@dataclass(frozen=True)
class StageRadius:
    """The radius that an image's votes certify at a stage that it reached, with the stage's share of every level.

    log_e: with a rule for a fixed radius, the logarithm of the e-value; the share is not used then.
    """

    samples: int
    share: float
    radius: float
    log_e: float | None = None


@dataclass(frozen=True)
class ImageCertificate:
    """An image's certificate, and everything from which it follows, at the deciding stage.

    row: of certificates.parquet. unanimous: whether all selection votes are for the class. selection_votes: for the
    class, of selection_samples, per sub-image. halved: whether boxes and the pooled bound have half of alpha each.
    pooled: whether the pooled bound decides. boxes: number of boxes of the rule. levels: of the box with the least
    radius, per sub-image, or the level of the pooled bound. class_levels, rival_levels: levels of the bounds;
    rival_levels is None if rivals are not bounded. rival: the deciding rival, -1 if it has no votes. rival_votes: its
    estimation votes. a_lower, b_upper: bounds as quantiles, per sub-image. units: keys of the counts with the image.
    arithmetic: of the classifiers that voted, which the certificate is about.
    """

    uri: str
    arithmetic: str
    image_id: int
    row: dict[str, Any]
    rule: Rule
    halved: bool
    pooled: bool
    sigmas: tuple[float, ...]
    selection_votes: tuple[int, ...]
    selection_samples: int
    unanimous: bool
    stages: tuple[StageRadius, ...]
    boxes: int
    levels: tuple[float, ...]
    class_levels: tuple[float, ...]
    rival_levels: tuple[float, ...] | None
    rival: int
    rival_votes: tuple[int, ...]
    a_lower: tuple[float, ...]
    b_upper: tuple[float, ...]
    units: tuple[str, ...]

    @property
    def expression(self) -> str:
        """The radius as a Python expression (with sqrt): the stored radius, or less by some 1e-10; "" without one."""
        if not np.isfinite([*self.a_lower, *self.b_upper]).all():
            return ""
        a = [format_down(value, BOUND_DIGITS) for value in self.a_lower]
        b = [format_up(value, BOUND_DIGITS) for value in self.b_upper]
        sigmas = [exact_text(sigma) for sigma in self.sigmas]
        k = len(sigmas)
        if self.pooled:
            return f"{sigmas[0]} * sqrt({k}) * {_signed(a[0])}"
        bounded = self.rival_levels is not None
        if self.rule.vote == "mean" and k > 1:
            norm = f"sqrt({' + '.join(f'1 / {sigma}**2' for sigma in sigmas)})"
            if bounded:
                return f"min({a[0]} - {_signed(b[1])}, {a[1]} - {_signed(b[0])}) / {norm}"
            return f"({a[0]} + {_signed(a[1])}) / {norm}"
        margins = [
            f"{sigma} * ({low} - {_signed(high)}) / 2" if bounded else f"{sigma} * {_signed(low)}"
            for sigma, low, high in zip(sigmas, a, b, strict=True)
        ]
        if k == 1:
            return margins[0]
        weights = self.rule.weights
        if weights is None:
            return f"({' + '.join(margins)}) / sqrt({k})"
        terms = [f"{exact_text(weight)} * {margin}" for weight, margin in zip(weights, margins, strict=True)]
        norm = " + ".join(f"{exact_text(weight)}**2" for weight in weights)
        return f"({' + '.join(terms)}) / sqrt({norm})"

    @property
    def written_radius(self) -> float:
        """The value of `expression`; -inf if a bound is missing."""
        a = np.array([float(format_down(value, BOUND_DIGITS)) for value in self.a_lower])
        b = np.array([float(format_up(value, BOUND_DIGITS)) for value in self.b_upper])
        if self.rival_levels is None:
            b = -a
        if not np.isfinite([a, b]).all():
            return -math.inf
        if self.rule.vote == "mean" and not self.pooled:
            bounded = self.rival_levels is not None
            return float(cross_pairing_radius(a, b, self.sigmas) if bounded else mean_radius(a, self.sigmas))
        return float(probit_radius(margins(a, b, self.sigmas), self.rule.weights))

    @property
    def formula(self) -> str:
        """The formula of `expression`, in symbols; sub-images are numbered from 0."""
        k = len(self.sigmas)
        if self.pooled:
            return "R = sigma sqrt(K) a" if k > 1 else "R = sigma a"
        bounded = self.rival_levels is not None
        if self.rule.vote == "mean" and k > 1:
            top = "min(a_0 - b_1, a_1 - b_0)" if bounded else "(a_0 + a_1)"
            return f"R = {top} / sqrt(1/sigma_0^2 + 1/sigma_1^2)"
        margin = "m_k = sigma_k (a_k - b_k) / 2" if bounded else "m_k = sigma_k a_k"
        if k == 1:
            return margin.replace("_k", "").replace("m =", "R =")
        return f"R = sum_k {'w_k ' if self.rule.weights else ''}m_k / ||w||, {margin}"


def read_certificate(store: Store, image_id: int) -> ImageCertificate:
    """One image's certificate as last reduced, derived again from its votes.

    Raises:
        ConfigError: the image is not one of the run. CountsError: an imported or unreduced run, or counts that are
        missing, cannot be trusted or give another radius than the stored one.
    """
    result = read_result(store)
    record, rule, alpha = result.record, result.certified_by, result.alpha
    history, units = read_image(store, record, image_id)
    row = result.certificates.slice(record.image_ids.index(image_id), 1).to_pylist()[0]
    stages = tuple(_stages(history, record, rule, alpha))
    deciding = max(range(len(stages)), key=lambda stage: stages[stage].radius)  # the first maximum, as in reduce
    counts, share = history.at(stages[deciding].samples), stages[deciding].share
    votes = selected_votes(counts, rule)
    least = votes.radii(record.config.sigmas, rule, alpha, share)
    if (row["radius"], row["stage"]) != (stages[deciding].radius, deciding) or row["label"] != int(counts.labels[0]):
        raise CountsError(
            f"{store.uri}: image {image_id} has the stored radius {row['radius']!r}, its votes give "
            f"{stages[deciding].radius!r}; write the certificates again with `drs-ray reduce`"
        )
    k, others = record.sub_images, record.dataset.num_classes - 1
    pooled = bool(least.pooled[0])
    bounded = rule.rivals and others > 1 and not pooled
    level = least.level[0][:1] if pooled else least.level[0]
    selected, rival = int(votes.selected[0]), int(least.rival[0])
    return ImageCertificate(
        uri=store.uri,
        image_id=image_id,
        row=row,
        rule=rule,
        halved=bool(least.halved[0]),
        pooled=pooled,
        sigmas=record.config.sigmas,
        selection_votes=_votes(counts.selection, selected),
        selection_samples=record.config.budget.selection,
        unanimous=bool(votes.unanimous[0]),
        stages=stages,
        boxes=level_region(rule.confidence, alpha, k).count(k),
        levels=_floats(level / (PAIR_SHARE if bounded else 1)),
        class_levels=_floats(level),
        rival_levels=_floats(level) if bounded else None,
        rival=rival,
        rival_votes=_votes(counts.estimation, rival),
        a_lower=_floats(least.a_lower[0]),
        b_upper=_floats(least.b_upper[0]),
        units=units,
        arithmetic=record.arithmetic,
    )


def _stages(history: CountsHistory, record: RunRecord, rule: Rule, alpha: float) -> list[StageRadius]:
    schedule, stages = record.schedule, []
    for end, share in zip(schedule.samples, schedule.shares, strict=True):
        if history.drawn[0] < end:
            break
        votes = selected_votes(history.at(end), rule)
        log_e = None
        if rule.radius is not None:
            found = log_e_values(
                votes.class_votes,
                votes.samples,
                record.config.sigmas,
                rule.radius,
                vote=rule.vote,
                weights=rule.weights,
            )
            log_e = float(found[0])
        radius = votes.radii(record.config.sigmas, rule, alpha, share).radius[0]
        stages.append(StageRadius(end, share, float(radius), log_e))
    return stages


def _signed(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _votes(parts: Sequence[Any], number: int) -> tuple[int, ...]:
    return tuple(votes_of(parts, np.array([0]), np.array([number]))[0].tolist())
