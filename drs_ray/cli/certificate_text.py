"""The output of `drs-ray certificate`: one certificate as names and values for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drs_ray.certificates.rounding import exact_text, format_down, format_up
from drs_ray.errors import counted
from drs_ray.results.image_certificate import BOUND_DIGITS, ImageCertificate
from drs_ray.results.tables import ABSTAIN

_RADIUS_DIGITS = 9
_LOG_DIGITS = 4


def certificate_values(found: ImageCertificate) -> dict[str, str]:
    """A certificate as names and values: votes, levels, bounds, and the inequality in numbers."""
    row, k = found.row, len(found.sigmas)
    abstains = row["prediction"] == ABSTAIN
    each = [""] if k == 1 else [f", sub-image {index}" for index in range(k)]
    chosen = [f"{votes:,} of {counted(found.selection_samples, 'vote')}" for votes in found.selection_votes]
    values = {
        "run": found.uri,
        "image": f"{found.image_id}, label {row['label']}",
        "answer": "abstains" if abstains else f"class {row['prediction']} ({'right' if row['correct'] else 'wrong'})",
        "certified radius": "none" if abstains else f"{_radius(row['radius'])} (l2, pixel units)",
        "votes": f"of classifiers in {found.arithmetic}",
        "alpha": exact_text(row["alpha"]),
        "rule": row["rule"],
        "selection": f"class {row['selected_class']}, "
        + ", ".join(f"{votes}{name}" for votes, name in zip(chosen, each, strict=True))
        + (": unanimous" if found.unanimous else ""),
    }
    if found.rule.radius is not None:
        return values | _at_fixed_radius(found, found.rule.radius, each) | _sources(found)
    if len(found.stages) > 1:
        values["stages"] = "\n".join(
            f"n = {stage.samples:,}, {stage.share:.12g} of every level: radius {_radius(stage.radius)}"
            + (" (decides)" if index == row["stage"] else "")
            for index, stage in enumerate(found.stages)
        )
    values["levels"] = _levels(found)
    values |= _pooled_bound(found) if found.pooled else _bounds(found, each)
    if found.rival_levels is not None:
        values["rivals"] = "each bounded as if it were alone: the radius is certified, not all of their bounds at once"
    values["inequality"] = _inequality(found)
    return values | _sources(found)


def _sources(found: ImageCertificate) -> dict[str, str]:
    return {
        "units": "\n".join(found.units),
        "recompute": f"drs-ray verify {found.uri} --image {found.image_id}",
    }


def _at_fixed_radius(found: ImageCertificate, radius: float, each: Sequence[str]) -> dict[str, str]:
    row = found.row
    threshold = -math.log(row["alpha"])
    votes = zip(row["class_votes"], row["estimation_samples"], each, strict=True)
    return {
        "question": f"radius {exact_text(radius)} or none; no other radius was asked for",
        f"class {row['selected_class']}": ", ".join(
            f"{mine:,} of {counted(n, 'vote')}{name}" for mine, n, name in votes
        ),
        "evidence": "\n".join(
            f"n = {stage.samples:,}: log E >= {format_down(stage.log_e, _LOG_DIGITS)}"
            + (" (certified)" if stage.radius > 0 else "")
            for stage in found.stages
            if stage.log_e is not None
        ),
        "inequality": f"certified where log E >= log(1 / alpha) = {format_up(threshold, _LOG_DIGITS)} at some stage",
    }


def _levels(found: ImageCertificate) -> str:
    levels = ", ".join(map(_level, found.levels))
    halved = "; selection was unanimous: pooled bound and boxes have half of alpha each, and " if found.halved else ""
    if found.pooled:
        return f"{levels}{halved}the pooled bound gives more"
    of_boxes = f", the one of {found.boxes:,} boxes with the least radius" if found.boxes > 1 else ""
    return f"{levels} ({found.rule.confidence}{of_boxes}){halved and halved + 'the boxes give more'}"


def _pooled_bound(found: ImageCertificate) -> dict[str, str]:
    row = found.row
    votes, samples = sum(row["class_votes"]), sum(row["estimation_samples"])
    return {
        f"class {row['selected_class']}": f"{votes:,} of {counted(samples, 'vote')} of all sub-images; at level "
        f"{_level(found.class_levels[0])}: mean probability >= {format_down(row['p_lower'][0], BOUND_DIGITS)}, "
        f"a = Phi^-1 >= {format_down(found.a_lower[0], BOUND_DIGITS)}"
    }


def _bounds(found: ImageCertificate, each: Sequence[str]) -> dict[str, str]:
    row, values = found.row, {}
    for index, name in enumerate(each):
        number = "" if len(each) == 1 else f"_{index}"
        votes, samples = row["class_votes"][index], row["estimation_samples"][index]
        values[f"class {row['selected_class']}{name}"] = (
            f"{votes:,} of {counted(samples, 'vote')}; at level {_level(found.class_levels[index])}: probability >= "
            f"{format_down(row['p_lower'][index], BOUND_DIGITS)}, "
            f"a{number} = Phi^-1 >= {format_down(found.a_lower[index], BOUND_DIGITS)}"
        )
        if found.rival_levels is None:
            continue
        rival = "a class without votes" if found.rival == -1 else f"class {found.rival}"
        rest = " (what the class leaves)" if found.b_upper[index] == -found.a_lower[index] else ""
        values[f"closest rival{name}"] = (
            f"{rival}, {found.rival_votes[index]:,} of {counted(samples, 'vote')}; "
            f"at level {_level(found.rival_levels[index])}: "
            f"probability <= {format_up(row['rival_upper'][index], BOUND_DIGITS)}, "
            f"b{number} = Phi^-1 <= {format_up(found.b_upper[index], BOUND_DIGITS)}{rest}"
        )
    return values


def _inequality(found: ImageCertificate) -> str:
    if not found.expression:
        return f"{found.formula}; a bound is missing (no vote, or too few), so nothing is certified"
    written = f"{found.formula}\nR >= {found.expression}\n  >= {_radius(found.written_radius)}"
    return written + ("" if found.row["radius"] > 0 else ": not above 0, so nothing is certified")


def _level(level: float) -> str:
    return f"{level:.12g}"  # enough digits to compute the shown digits of a bound again


def _radius(radius: float) -> str:
    return format_down(radius, _RADIUS_DIGITS)
