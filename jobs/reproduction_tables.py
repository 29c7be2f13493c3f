"""The tables of docs/reproduction.md, from its runs: `python jobs/reproduction_tables.py docs/reproduction/runs`.

Everything is computed from the stored votes and certificates, without torch, data or a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from drs_ray.certificates.curve import average_certified_radius
from drs_ray.certificates.paired import holm
from drs_ray.certificates.rounding import format_down
from drs_ray.counts.history import read_counts
from drs_ray.report.columns import BASELINE, baseline_of
from drs_ray.report.comparison import Pair, PairInMean, p_text, paired_differences
from drs_ray.report.convergence import convergence
from drs_ray.report.summary import SHARE_DIGITS, RunSummary, summarise_side_by_side
from drs_ray.results.reduce import RunResult, compare_rule, read_result
from drs_ray.storage import LocalStore

FEW = 782
"""Samples of the first stage of all runs: here all images have equally many."""
BEGIN, END = "<!-- made by jobs/reproduction_tables.py -->", "<!-- end -->"
"""The lines of docs/reproduction.md around the tables."""


def tables(folder: Path) -> str:
    """All tables, as Markdown, of the runs in a folder: one run per directory, by name."""
    stores = [LocalStore(path.parent) for path in sorted(folder.glob("*/run.json"))]
    results = [read_result(store) for store in stores]
    names = [Path(result.uri).name for result in results]
    few = {name: from_few(result, store) for result, name, store in zip(results, names, stores, strict=True)}
    parts = ["## Certified accuracy", *_accuracy(results, names, few)]
    parts += ["", "## The same votes by other rules", *_rules(results, names, stores)]
    parts += ["", "## The votes", *_votes(results, names)]
    pairs = _pairs(dict(zip(names, results, strict=True)))
    parts += ["", "## Differences of the mean radius", *_means(pairs, few)]
    parts += ["", "## Differences at each radius", *_shares(pairs)]
    return "\n".join(parts) + "\n"


def from_few(result: RunResult, store: LocalStore) -> NDArray[np.float64]:
    """Radii in the order of image ids, 0 if wrong, from `FEW` samples of each image without the price of stages."""
    (found,) = (point for point in convergence(result, read_counts(store, result.record)) if point.samples == FEW)
    order = np.argsort(result.certificates["image_id"].to_numpy(), kind="stable")
    return np.asarray(np.where(found.correct, np.maximum(found.radius, 0.0), 0.0)[order], np.float64)


def _accuracy(
    results: Sequence[RunResult], names: Sequence[str], few: Mapping[str, NDArray[np.float64]]
) -> Iterator[str]:
    summaries = summarise_side_by_side(results)
    grid = [row.radius_text for row in summaries[0].at_radii]
    yield from _table(
        [
            "run",
            *(f"r = {radius}" for radius in grid),
            "ACR",
            "on the grid",
            f"from {FEW}",
            "abstains",
            "samples",
            "time",
        ],
        (
            [
                name,
                *(f"{row.accuracy_text} {row.interval_text}" for row in summary.at_radii),
                summary.acr_text,
                format_down(on_grid(summary), SHARE_DIGITS),
                format_down(float(few[name].mean()), SHARE_DIGITS),
                summary.abstention_text,
                f"{summary.samples:,}",
                summary.time_text,
            ]
            for name, summary in zip(names, summaries, strict=True)
        ),
    )


def _rules(results: Sequence[RunResult], names: Sequence[str], stores: Sequence[LocalStore]) -> Iterator[str]:
    def rows() -> Iterator[list[str]]:
        for result, name, store in zip(results, names, stores, strict=True):
            rule = baseline_of(result.certified_by)
            plain = compare_rule(read_counts(store, result.record), result, rule, BASELINE)
            printed = "-"
            if result.record.sub_images <= 2:
                printed = format_down(average_certified_radius(*published(result)), SHARE_DIGITS)
            acr = (plain.average_certified_radius, printed, result.average_certified_radius)
            yield [name, *(each if isinstance(each, str) else format_down(each, SHARE_DIGITS) for each in acr)]

    yield from _table(["run", "p_A, alpha in equal shares", "as published code prints", "drs-ray's default"], rows())


def published(result: RunResult) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The radii that the published code of DRS prints on CIFAR-10 from the same votes. They are not certificates.

    See theory 9, items 1 to 3: the root of the sum of squares of sigma Phi^-1(p), where negative terms are set to 0. p
    is a sub-image's Clopper-Pearson lower bound at level alpha, from the estimation samples of the run's certificate.
    For one sub-image it is what the code of RS (Cohen et al. 2019) prints.

    Returns:
        In the order of the certificates: radius, float64 [N], pixel units, 0 where the code abstains; and whether the
        class is the label, bool [N].
    """
    table, sigmas = result.certificates, np.array(result.record.config.sigmas)
    votes = np.array(table["class_votes"].to_pylist(), np.float64)
    samples = np.array(table["estimation_samples"].to_pylist(), np.float64)
    lower = np.where(votes > 0, beta.ppf(result.alpha, np.maximum(votes, 1), samples - votes + 1), 0.0)
    radius = np.sqrt((np.maximum(sigmas * norm.ppf(lower), 0.0) ** 2).sum(axis=1))
    right = table["selected_class"].to_numpy() == table["label"].to_numpy()
    return radius, np.asarray(right & (radius > 0))


def on_grid(summary: RunSummary) -> float:
    """ACR of radii that are rounded down to the grid."""
    grid = [0.0, *(row.radius for row in summary.at_radii)]
    return sum(
        (row.radius - below) * row.certified / row.images for below, row in zip(grid, summary.at_radii, strict=False)
    )


def _votes(results: Sequence[RunResult], names: Sequence[str]) -> Iterator[str]:
    """Vote shares of the sub-images for the class that the selection samples chose."""

    def rows() -> Iterator[list[str]]:
        for result, name in zip(results, names, strict=True):
            table = result.certificates
            votes, samples = (np.array(table[key].to_pylist()) for key in ("class_votes", "estimation_samples"))
            shares = votes / samples
            right = table["selected_class"].to_numpy() == table["label"].to_numpy()
            least, most = shares[right].min(axis=1), shares[right].max(axis=1)
            found = [right.mean(), shares[right].mean(), (shares.min(axis=1) > 0.99).mean()]
            if result.record.sub_images > 1:
                found += [(most - least > 0.1).mean(), (least < 0.5).mean()]
            yield [name, *(f"{value:.2f}" for value in found), *["-"] * (5 - len(found))]

    heads = [
        "right class",
        "its mean share",
        "all shares > 0.99",
        "right, shares differ by > 0.1",
        "right, one share < 0.5",
    ]
    yield from _table(["run", *heads], rows())


def partners(name: str) -> list[str]:
    """The runs that a run is compared with, by name.

    They are that of RS with its total sigma, training and seed, and of one network for several sub-images also that
    with a network for each.
    """
    kind, _, rest = name.partition("-")
    if kind == "rs":
        return []
    for word in ("filled-", "masked-", "shared-", "columns-"):
        rest = rest.replace(word, "")
    return [f"rs-{rest}", *([name.replace("shared-", "")] if "shared-" in name and "columns-" not in name else [])]


def _pairs(results: dict[str, RunResult]) -> list[Pair]:
    """Every run with its `partners`. Raises KeyError if there is none of RS."""
    return [
        pair
        for name, other in results.items()
        for partner in partners(name)
        if partner.startswith("rs-") or partner in results
        for pair in paired_differences([results[partner], other], other.curve["radius"].to_pylist())
    ]


def _means(pairs: Sequence[Pair], few: Mapping[str, NDArray[np.float64]]) -> Iterator[str]:
    def rows() -> Iterator[list[str]]:
        for pair in pairs:
            apart = few[pair.second_name] - few[pair.first_name]
            found = (*pair.in_mean, PairInMean.of(apart, on_grid=False))
            cells = (f"{row.difference_text} {row.interval_text}, {_p(row.p_text)}" for row in found)
            yield [f"{pair.first_name}, {pair.second_name}", *cells]

    yield from _table(["pair", "ACR", "ACR on the grid", f"ACR from {FEW} samples"], rows())


def _shares(pairs: Sequence[Pair]) -> Iterator[str]:
    adjusted = iter(holm([row.p_value for pair in pairs for row in pair.at_radii]).tolist())

    def rows() -> Iterator[list[str]]:
        for pair in pairs:
            cells = (f"{row.only_first} : {row.only_second}, {_p(p_text(next(adjusted)))}" for row in pair.at_radii)
            yield [f"{pair.first_name}, {pair.second_name}", *cells]

    yield from _table(["pair", *(f"r = {row.radius_text}" for row in pairs[0].at_radii)], rows())


def _p(text: str) -> str:
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _table(heads: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    print(tables(Path(sys.argv[1])), end="")
