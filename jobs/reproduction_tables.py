"""The tables of docs/reproduction.md: `python jobs/reproduction_tables.py docs/reproduction/runs`.

Everything is computed from the stored votes and certificates, without torch, data or a GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import beta, norm

from drs_ray.certificates.curve import average_certified_radius
from drs_ray.certificates.paired import holm
from drs_ray.certificates.rounding import format_down
from drs_ray.counts.history import CountsHistory, read_counts
from drs_ray.errors import CountsError, DrsError
from drs_ray.report.columns import BASELINE, baseline_of
from drs_ray.report.comparison import Pair, PairInMean, on_grid, p_text, paired_differences
from drs_ray.report.convergence import convergence
from drs_ray.report.summary import SHARE_DIGITS, summarise_side_by_side
from drs_ray.results.reduce import RunResult, certify_counts, compare_rule, read_result
from drs_ray.results.selected_votes import rule_of
from drs_ray.storage import LocalStore

FEW, EQUAL = 782, 12_500
"""Samples of the first stage of all runs, where every image has equally many; and of the last that most runs have."""
STAGES = (FEW, 1563, 3125, 6250, EQUAL)
"""Ends of the stages that most runs have, in samples of an image and sub-image."""
WEIGHTS = (0.5, 0.8, 1.0, 1.25, 2.0)
"""Weights of the first sub-image's vote in one table; the others have 1."""
EQUAL_CONSISTENCY = {
    "rs-unshuffled-0.50-consistency": ["rs-unshuffled-0.50"],
    "drs-shared-0.50-across": ["rs-unshuffled-0.50-consistency", "drs-shared-0.50"],
    "k4-shared-0.50-across": ["rs-unshuffled-0.50-consistency", "k4-shared-0.50"],
}
"""Partners of the runs with `consistency` that cost as much as those without; those of second seeds likewise."""
_TUNED = "tuning-"
TUNING_BASE = "rate-0.005"
"""The setting that the others are compared with: that of all runs."""
BEGIN, END = "<!-- made by jobs/reproduction_tables.py -->", "<!-- end -->"
"""The lines of docs/reproduction.md around the tables."""


def tables(*folders: Path) -> str:
    """All tables, as Markdown, of the runs in folders: one run per directory, by name.

    Raises:
        CountsError: there is no run, or one cannot be read or has no early stage.
    """
    stores: dict[str, LocalStore] = {}
    for folder in folders:
        here = {path.parent.name: LocalStore(path.parent) for path in sorted(folder.glob("*/run.json"))}
        if not here:
            raise CountsError(f"{folder}: no runs here; name a folder that has a directory for each run")
        if twice := here.keys() & stores.keys():
            raise CountsError(f"{folder}: the run {min(twice)} is in another folder too; name one of them")
        stores |= here
    tuned = {name: read_result(store) for name, store in stores.items() if name.startswith(_TUNED)}
    compared = {name: store for name, store in stores.items() if name not in tuned}
    sections = ["\n".join(_compared(compared))] if compared else []
    if tuned:
        sections.append("\n".join(["### Settings on held-out images", *_tuning(tuned)]))
    return "\n\n".join(sections) + "\n"


def _compared(stores: Mapping[str, LocalStore]) -> Iterator[str]:
    results = {name: read_result(store) for name, store in stores.items()}
    histories = [read_counts(store, results[name].record) for name, store in stores.items()]
    grid = next(iter(results.values())).curve["radius"].to_numpy()
    ends: dict[str, dict[int, Radii]] = {}
    for (name, result), history in zip(results.items(), histories, strict=True):
        reached = [samples for samples in STAGES if samples <= history.cuts[-1]]
        ends[name] = dict(zip(reached, radii_from(reached, result, history), strict=True))
    few = {name: radii[FEW] for name, radii in ends.items()}
    rounded = {name: {samples: on_grid(each, grid) for samples, each in radii.items()} for name, radii in ends.items()}
    equal = {name: radii[max(radii)] for name, radii in rounded.items()}
    yield from ("### Certified accuracy", *_accuracy(results, equal, few))
    yield from ("", "### On the grid from fewer samples", *_fewer(rounded))
    yield from ("", "### The same votes by other rules", *_rules(results, histories))
    if any(result.record.sub_images > 1 for result in results.values()):
        yield from ("", "### Other weights", *_weights(results, histories))
    yield from ("", "### The votes", *_votes(results))
    if pairs := _pairs(results):
        exact = {name: _exact(result) for name, result in results.items()}
        shares = {name: EQUAL // result.record.sub_images for name, result in results.items()}
        passes = {name: radii[shares[name]] for name, radii in rounded.items() if shares[name] in radii}
        measures = {
            "ACR": exact,
            f"on the grid from {EQUAL:,}": equal,
            f"on the grid from {EQUAL:,} passes": passes,
            f"from {FEW}": few,
        }
        yield from ("", "### Differences of the mean radius", *_means(pairs, measures))
        yield from ("", "### Differences at each radius", *_shares(pairs))


Radii = NDArray[np.float64]
"""Of each image in the order of image ids, 0 where the class is wrong; pixel units, float64 [N]."""


def _exact(result: RunResult) -> Radii:
    """The radii of the run's certificates."""
    table = result.certificates.sort_by("image_id")
    return np.where(table["correct"].to_numpy(), np.maximum(table["radius"].to_numpy(), 0.0), 0.0)


def radii_from(limits: Sequence[int], result: RunResult, history: CountsHistory) -> list[Radii]:
    """For each limit: from the last stage that has at most so many samples of an image, without the price of stages.

    Raises:
        CountsError: there is no such stage.
    """
    points = convergence(result, history)
    order = np.argsort(result.certificates["image_id"].to_numpy(), kind="stable")
    found = []
    for most in limits:
        at = [point for point in points if point.samples <= most]
        if not at:
            raise CountsError(
                f"run {result.uri}: no stage ends at {most} samples or fewer; take runs with such a stage"
            )
        found.append(np.where(at[-1].correct, np.maximum(at[-1].radius, 0.0), 0.0)[order])
    return found


def _accuracy(results: Mapping[str, RunResult], equal: Mapping[str, Radii], few: Mapping[str, Radii]) -> Iterator[str]:
    summaries = summarise_side_by_side(list(results.values()))
    grid = [row.radius_text for row in summaries[0].at_radii]
    yield from _table(
        [
            "run",
            *(f"r = {radius}" for radius in grid),
            "ACR",
            f"on the grid from {EQUAL:,}",
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
                *(format_down(float(radii[name].mean()), SHARE_DIGITS) for radii in (equal, few)),
                summary.abstention_text,
                f"{summary.samples:,}",
                summary.time_text,
            ]
            for name, summary in zip(results, summaries, strict=True)
        ),
    )


def _fewer(rounded: Mapping[str, Mapping[int, Radii]]) -> Iterator[str]:
    def rows() -> Iterator[list[str]]:
        for name, radii in rounded.items():
            means = (float(radii[samples].mean()) if samples in radii else None for samples in STAGES)
            yield [name, *("-" if mean is None else format_down(mean, SHARE_DIGITS) for mean in means)]

    yield from _table(["run", *(f"{samples:,}" for samples in STAGES)], rows())


def _rules(results: Mapping[str, RunResult], histories: Sequence[CountsHistory]) -> Iterator[str]:
    def rows() -> Iterator[list[str]]:
        for (name, result), history in zip(results.items(), histories, strict=True):
            rule = baseline_of(result.certified_by)
            plain = compare_rule(history, result, rule, BASELINE)
            printed = "-"
            if result.record.sub_images <= 2:
                printed = format_down(average_certified_radius(*published(result)), SHARE_DIGITS)
            acr = (plain.average_certified_radius, printed, result.average_certified_radius)
            yield [name, *(each if isinstance(each, str) else format_down(each, SHARE_DIGITS) for each in acr)]

    yield from _table(["run", "p_A, alpha in equal shares", "as published code prints", "drs-ray's default"], rows())


def _tuning(results: Mapping[str, RunResult]) -> Iterator[str]:
    """Settings in the rows, kinds of runs in the columns: mean radius, and its difference from `TUNING_BASE`."""
    radii: dict[str, dict[str, Radii]] = {}
    for name, result in results.items():
        found = re.fullmatch(rf"{_TUNED}(.+)-((?:rate|shift)-[\d.]+)", name)
        if found is None:
            raise CountsError(f"{name}: a run of tuning is called {_TUNED}KIND-rate-0.005 or the like; rename it")
        kind, setting = found.groups()
        radii.setdefault(setting, {})[kind] = _exact(result)
    bases = radii.get(TUNING_BASE, {})
    kinds = sorted({kind for each in radii.values() for kind in each})
    if missing := set(kinds) - bases.keys():
        raise CountsError(
            f"{_TUNED}{min(missing)}-{TUNING_BASE}: not there, and the others are compared with it; run it"
        )

    def cell(setting: str, kind: str) -> str:
        found = radii[setting].get(kind)
        if found is None:
            return "-"
        mean = format_down(float(found.mean()), SHARE_DIGITS)
        if setting == TUNING_BASE:
            return mean
        apart = PairInMean.of(found - bases[kind], on_grid=False)
        return f"{mean} ({apart.difference_text} {apart.interval_text})"

    rows = ([setting, *(cell(setting, kind) for kind in kinds)] for setting in sorted(radii))
    yield from _table(["setting", *kinds], rows)


def _weights(results: Mapping[str, RunResult], histories: Sequence[CountsHistory]) -> Iterator[str]:
    def rows() -> Iterator[list[str]]:
        for (name, result), history in zip(results.items(), histories, strict=True):
            if result.record.sub_images > 1:
                found = (mean_radius_of_weight(weight, result, history) for weight in WEIGHTS)
                yield [name, *(format_down(mean, SHARE_DIGITS) for mean in found)]

    yield from _table(["run", *(f"{weight:g}" for weight in WEIGHTS)], rows())


def mean_radius_of_weight(weight: float, result: RunResult, history: CountsHistory) -> float:
    """The mean radius from `FEW` samples if the first sub-image had this weight, and each other had weight 1.

    The rule is otherwise that of the run, but for pooled votes, which need equal weights: no weight has them here.
    """
    record, others = result.record, result.record.sub_images - 1
    changes = {"weights": (weight, *[1.0] * others), "pooled": False}
    rule = rule_of(record.config, record.config.certificate.model_copy(update=changes))
    table = certify_counts(history.at(FEW), record, rule, result.alpha)
    return average_certified_radius(table["radius"].to_numpy(), table["correct"].to_numpy())


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


def _votes(results: Mapping[str, RunResult]) -> Iterator[str]:
    """Vote shares of the sub-images for the class that the selection samples chose."""

    def rows() -> Iterator[list[str]]:
        for name, result in results.items():
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

    They are that of RS with its total sigma, training and seed; of filled halves also packed ones; of one network for
    several sub-images also that with a network for each, and RS by a cheaper network. One of RS takes as many steps of
    the optimizer as `k4-shared`.
    Runs at another rate are compared with RS by the cheaper network at that rate, and with those at the usual rate.
    """
    first = name.removesuffix("-seed1")
    if first in EQUAL_CONSISTENCY:
        return [f"{partner}{name.removeprefix(first)}" for partner in EQUAL_CONSISTENCY[first]]
    usual, _, rate = name.partition("-rate-")
    if rate:
        return [usual] if usual.startswith("rs-") else [f"rs-unshuffled-0.50-rate-{rate}", usual]
    kind, _, rest = name.partition("-")
    if kind == "rs":
        return [re.sub(r"unshuffled\d*-", "", name)] if "unshuffled" in name else []
    for word in ("filled-", "masked-", "shared-", "columns-"):
        rest = rest.replace(word, "")
    found = [f"rs-{rest}", *([f"drs-{rest}"] if "filled-" in name else [])]
    if "shared-" in name and "columns-" not in name and "unshuffled-" not in name:
        found += [name.replace("shared-", ""), f"rs-unshuffled-{rest}"]
    return [*found, "rs-0.50-small-batch"] if name == "k4-shared-0.50-seed1" else found


def _pairs(results: Mapping[str, RunResult]) -> list[Pair]:
    """Every run with those of its `partners` that are there."""
    return [
        pair
        for name, other in results.items()
        for partner in partners(name)
        if partner in results
        for pair in paired_differences([results[partner], other], other.curve["radius"].to_pylist())
    ]


def _means(pairs: Sequence[Pair], measures: Mapping[str, Mapping[str, Radii]]) -> Iterator[str]:
    """A row for each pair, and one for each pair with two seeds: of each image's mean difference."""
    ends = [(pair.first_name, pair.second_name) for pair in pairs]
    both = [[one, other] for one in ends if (other := (f"{one[0]}-seed1", f"{one[1]}-seed1")) in ends]

    def row(name: str, seeds: Sequence[tuple[str, str]]) -> list[str]:
        cells = []
        for radii in measures.values():
            if not all(run in radii for pair in seeds for run in pair):
                cells.append("-")
                continue
            found = PairInMean.of(
                np.mean([radii[second] - radii[first] for first, second in seeds], axis=0), on_grid=False
            )
            cells.append(f"{found.difference_text} {found.interval_text}, {_p(found.p_text)}")
        return [name, *cells]

    rows = [row(", ".join(each), [each]) for each in ends]
    rows += [row(f"{', '.join(seeds[0])}: both seeds", seeds) for seeds in both]
    yield from _table(["pair", *measures], iter(rows))


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


def main(folders: Annotated[list[Path], typer.Argument(help="Folders with a directory for each run.")]) -> None:
    """Print the tables of docs/reproduction.md."""
    try:
        print(tables(*folders), end="")
    except DrsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    typer.run(main)
