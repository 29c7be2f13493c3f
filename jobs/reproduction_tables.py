"""The tables of docs/reproduction.md, from its runs: `python jobs/reproduction_tables.py docs/reproduction/runs`.

Everything is computed from the stored votes and certificates, without torch, data or a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from drs_ray.certificates.curve import average_certified_radius
from drs_ray.certificates.rounding import format_down
from drs_ray.counts.history import read_counts
from drs_ray.report.columns import BASELINE, baseline_of
from drs_ray.report.comparison import paired_differences
from drs_ray.report.summary import SHARE_DIGITS, summarise_side_by_side
from drs_ray.results.reduce import RunResult, compare_rule, read_result
from drs_ray.storage import LocalStore

BEGIN, END = "<!-- made by jobs/reproduction_tables.py -->", "<!-- end -->"
"""The lines of docs/reproduction.md around the tables."""


def tables(folder: Path) -> str:
    """All tables, as Markdown, of the runs in a folder: one run per directory, by name."""
    stores = [LocalStore(path.parent) for path in sorted(folder.glob("*/run.json"))]
    results = [read_result(store) for store in stores]
    names = [Path(result.uri).name for result in results]
    parts = ["## Certified accuracy", *_accuracy(results, names)]
    parts += ["", "## The same votes by other rules", *_rules(results, names, stores)]
    parts += ["", "## Paired tests", *_pairs(dict(zip(names, results, strict=True)))]
    return "\n".join(parts) + "\n"


def _accuracy(results: Sequence[RunResult], names: Sequence[str]) -> Iterator[str]:
    summaries = summarise_side_by_side(results)
    grid = [row.radius_text for row in summaries[0].at_radii]
    yield from _table(
        ["run", *(f"r = {radius}" for radius in grid), "ACR", "abstains", "samples", "time"],
        (
            [
                name,
                *(f"{row.accuracy_text} {row.interval_text}" for row in summary.at_radii),
                summary.acr_text,
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
            if result.record.sub_images == 2:
                printed = format_down(average_certified_radius(*published(result)), SHARE_DIGITS)
            acr = (plain.average_certified_radius, printed, result.average_certified_radius)
            yield [name, *(each if isinstance(each, str) else format_down(each, SHARE_DIGITS) for each in acr)]

    yield from _table(["run", "p_A, alpha in equal shares", "as the DRS code prints", "drs-ray's default"], rows())


def published(result: RunResult) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The radii that the published code of DRS prints on CIFAR-10 from the same votes. They are not certificates.

    See theory 9, items 1 to 3: the root of the sum of squares of sigma Phi^-1(p), where negative terms are set to 0. p
    is a sub-image's Clopper-Pearson lower bound at level alpha, from the estimation samples of the run's certificate.

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


def _pairs(results: dict[str, RunResult]) -> Iterator[str]:
    """RS compared with every other run of the same total sigma, training and seed."""

    def rows() -> Iterator[list[str]]:
        for name, other in results.items():
            kind, _, rest = name.partition("-")
            base = f"rs-{rest.removeprefix('filled-').replace('masked-', '')}"
            if kind == "rs" or base not in results:
                continue
            (pair,) = paired_differences([results[base], other], [float(r) for r in other.curve["radius"].to_numpy()])
            for row in pair.at_radii:
                yield [
                    f"{base}, {name}",
                    row.radius_text,
                    str(row.only_first),
                    str(row.only_second),
                    f"{row.difference_text} {row.interval_text}",
                    row.p_text,
                    row.p_holm_text,
                ]

    heads = ["pair", "r", "only the first", "only the second", "difference, 95 % interval", "p", "p (Holm)"]
    for _, group in groupby(rows(), key=lambda row: row[0]):
        yield from _table(heads, group)
        yield ""


def _table(heads: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    print(tables(Path(sys.argv[1])), end="")
