"""Reduced runs as plain data, side by side: the numbers of both the terminal table and the HTML report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.curve import certified_accuracy_curve, failed_certificates
from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rounding import exact_text, format_down, format_ratio_down, format_ratio_up, format_up
from drs_ray.errors import counted
from drs_ray.published.imported_run import MARK, ImportedResult, ReportedRun
from drs_ray.report.provenance import import_provenance, provenance
from drs_ray.report.test_sets import check_same_test_set
from drs_ray.results.reduce import Progress, RunResult
from drs_ray.results.tables import ABSTAIN

SHARE_DIGITS = 3
"""Decimals of displayed shares of images and of radii."""


class Certified(Protocol):
    """Images with their certificates: a run, or its images at fewer samples. radius: float64 [N]; correct: bool [N]."""

    @property
    def radius(self) -> Floats:
        """Certified radii, pixel units, 0 where abstaining."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction equals the label; False where abstaining."""

    @property
    def failure_probability(self) -> float:
        """Failure probability of one certificate."""


UNKNOWN = "-"
"""Shown where a log of predictions has no value: certified accuracy beyond radius 0, and ACR."""


@dataclass(frozen=True)
class AtRadius:
    """Certified accuracy at one radius (pixel units), as numbers of images, because shares are exact only as ratios.

    known: False where nothing is known, which is beyond radius 0 of a log of predictions; certified is 0 there. ci_low,
    ci_high: pointwise 95 % Clopper-Pearson. guaranteed: certified minus the number of certificates that may have failed
    (see `certificates.curve`).
    """

    radius: float
    images: int
    certified: int
    guaranteed: int
    ci_low: float
    ci_high: float
    known: bool = True

    @property
    def accuracy_text(self) -> str:
        """Certified accuracy, rounded down."""
        return UNKNOWN if not self.known else format_ratio_down(self.certified, self.images, SHARE_DIGITS)

    @property
    def guaranteed_text(self) -> str:
        """Guaranteed certified accuracy on these images, rounded down."""
        return format_ratio_down(self.guaranteed, self.images, SHARE_DIGITS)

    @property
    def interval_text(self) -> str:
        """The 95 % interval, both ends rounded outwards."""
        if not self.known:
            return ""
        return f"[{format_down(self.ci_low, SHARE_DIGITS)}, {format_up(self.ci_high, SHARE_DIGITS)}]"

    @property
    def radius_text(self) -> str:
        """The radius in full."""
        return exact_text(self.radius)


@dataclass(frozen=True)
class RunSummary:
    """One run as plain data.

    sigmas, radii and acr are in pixel units; selection, estimation: samples of the budget, per image and sub-image;
    samples: noise samples of the whole run; seconds: None if not measured. all_timed: False if `seconds` lacks the time
    of a session, which was killed or is not over. variant: empty for the run's own certificates, else the name of the
    comparison. split_size: images of the split, None if the record does not have it. stages: cumulative estimation
    samples. image_rules: (rule, number of images with it). progress: None for a finished run. asked: the radius of a
    rule for a fixed radius, else None. has_radii: False for a log of predictions. whole: images of the run, if only
    those that all runs have are shown; else None.
    """

    name: str
    variant: str
    uri: str
    run_id: str
    method: str
    dataset: str
    split: str
    split_size: int | None
    images: int
    sub_images: int
    sigmas: tuple[float, ...]
    selection: int
    estimation: int
    stages: tuple[int, ...]
    alpha: float
    failure_probability: float
    rule: str
    as_planned: bool
    image_rules: tuple[tuple[str, int], ...]
    noise_law: str
    arithmetic: str
    correct: int
    abstained: int
    acr: float
    samples: int
    seconds: float | None
    all_timed: bool
    at_radii: tuple[AtRadius, ...]
    provenance: tuple[tuple[str, str], ...]
    progress: Progress | None = None
    asked: float | None = None
    has_radii: bool = True
    whole: int | None = None

    @property
    def imported(self) -> bool:
        """Whether it is an imported run."""
        return self.variant == MARK

    @property
    def accuracy(self) -> float:
        """Share of images predicted correctly."""
        return self.correct / self.images

    @property
    def abstention_rate(self) -> float:
        """Share of images on which the smoothed classifier abstains."""
        return self.abstained / self.images

    @property
    def accuracy_text(self) -> str:
        """Accuracy, rounded down."""
        return format_ratio_down(self.correct, self.images, SHARE_DIGITS)

    @property
    def abstention_text(self) -> str:
        """Abstention rate, rounded up: abstaining is a cost."""
        return format_ratio_up(self.abstained, self.images, SHARE_DIGITS)

    @property
    def acr_text(self) -> str:
        """ACR, rounded down."""
        return UNKNOWN if not self.has_radii else format_down(self.acr, SHARE_DIGITS)

    @property
    def sigma_text(self) -> str:
        """Noise levels, one for each sub-image unless all are the same."""
        return ", ".join(f"{sigma:.4g}" for sigma in dict.fromkeys(self.sigmas))

    @property
    def budget_text(self) -> str:
        """Samples per image and sub-image: selection + estimation."""
        return f"{self.selection:,} + {'up to ' if self.adaptive else ''}{self.estimation:,}"

    @property
    def adaptive(self) -> bool:
        """Whether images may stop at different numbers of samples."""
        return len(self.stages) > 1

    @property
    def asked_text(self) -> str:
        """The fixed radius in full, or nothing."""
        return "" if self.asked is None else exact_text(self.asked)

    @property
    def scope_text(self) -> str:
        """The number of images, and of how many: 200 images must not be mistaken for all 10,000."""
        if self.progress is not None:
            return f"{self.images:,} of {counted(self.progress.planned, 'planned image')}"
        if self.whole is not None:
            return counted(self.images, "common image")
        if self.split_size is None:
            return counted(self.images, "image")
        if self.split_size == self.images:
            return "the one image" if self.images == 1 else f"all {self.images:,} images"
        return f"{self.images:,} of {counted(self.split_size, 'image')}"

    @property
    def middle(self) -> AtRadius:
        """The radius in the middle of the grid, quoted where there is room for only one."""
        return self.at_radii[len(self.at_radii) // 2]

    @property
    def time_text(self) -> str:
        """The run's duration as text."""
        if self.seconds is None:
            return "not recorded"
        text = duration_text(self.seconds) if self.all_timed else f">= {duration_text(self.seconds)}"
        return text + ("" if self.whole is None else f" for all {self.whole:,} images")

    @property
    def common_text(self) -> str:
        """Which images are shown, if they are not all images of the run; else nothing."""
        return "" if self.whole is None else f"only the {self.images:,} images that all of these have"

    @property
    def failures_allowed(self) -> int:
        """m*: number of failed certificates that `AtRadius.guaranteed` allows for."""
        return failed_certificates(self.planned, self.failure_probability)

    @property
    def planned(self) -> int:
        """Number of images that the run is to certify."""
        return self.images if self.progress is None else self.progress.planned

    @property
    def missing(self) -> int:
        """Number of images of an unfinished run without a certificate."""
        return self.planned - self.images

    def when_finished_text(self, row: AtRadius) -> str:
        """The least certified accuracy of all planned images that an unfinished run can end with, rounded down."""
        return format_ratio_down(row.certified, self.planned, SHARE_DIGITS)


def summarise(result: ReportedRun, name: str, *, radii: Sequence[float] | None = None) -> RunSummary:
    """One run as plain data.

    Args:
        result: a reduced or imported run.
        name: its name.
        radii: increasing, pixel units; None: those of the run's curve table. Radius 0, where certified accuracy is the
            accuracy, is added if it is missing.
    """
    described = _described(result) if isinstance(result, RunResult) else _described_import(result)
    return RunSummary(
        name=name,
        variant=result.variant,
        uri=result.uri,
        run_id=result.record.run_id,
        images=result.images,
        sub_images=result.record.sub_images,
        alpha=result.alpha,
        failure_probability=result.failure_probability,
        rule=result.rule,
        correct=int(result.correct.sum()),
        abstained=int((result.certificates["prediction"].to_numpy() == ABSTAIN).sum()),
        acr=result.average_certified_radius,
        samples=result.samples,
        seconds=result.seconds,
        all_timed=result.all_timed,
        at_radii=at_radii(
            result, radius_grid([result]) if radii is None else radii, result.planned, has_radii=result.has_radii
        ),
        progress=result.progress,
        has_radii=result.has_radii,
        whole=result.whole,
        **described,
    )


def _described(result: RunResult) -> dict[str, Any]:
    """The fields of the summary from a run's record."""
    record, config = result.record, result.record.config
    return {
        "method": f"{'RS' if record.sub_images == 1 else 'DRS'} (K = {record.sub_images})",
        "dataset": record.dataset_name,
        "split": config.dataset.split,
        "split_size": record.dataset.size,
        "sigmas": config.sigmas,
        "selection": config.budget.selection,
        "estimation": config.budget.estimation,
        "stages": record.schedule.samples,
        "image_rules": tuple(Counter(result.certificates["rule"].to_pylist()).most_common()),
        "noise_law": config.noise.law,
        "arithmetic": record.arithmetic,
        "as_planned": result.as_planned,
        "asked": result.certified_by.radius,
        "provenance": (*provenance(record), ("rule and alpha", _PLANNED if result.as_planned else _UNPLANNED)),
    }


def _described_import(result: ImportedResult) -> dict[str, Any]:
    """The fields of the summary from an imported run's record, which states neither its noise nor its planned rule."""
    record = result.record
    return {
        "method": f"imported (K = {record.sub_images})",
        "dataset": record.dataset,
        "split": record.split,
        "split_size": None,
        "sigmas": record.sigmas,
        "selection": record.selection,
        "estimation": record.estimation,
        "stages": (record.estimation,),
        "image_rules": ((result.rule, result.images),),
        "noise_law": "not stated",
        "arithmetic": "not stated",
        "as_planned": False,
        "asked": record.radius,
        "provenance": tuple(import_provenance(record)),
    }


def summarise_side_by_side(results: Sequence[ReportedRun]) -> list[RunSummary]:
    """Runs over one test set as plain data, with unique names and one grid of radii.

    Args:
        results: at least one run.

    Raises:
        ConfigError: no runs, or runs over different test sets.
    """
    check_same_test_set(results)
    radii = radius_grid(results)
    names = run_names(results)
    return [summarise(result, name, radii=radii) for result, name in zip(results, names, strict=True)]


def run_names(results: Sequence[ReportedRun]) -> list[str]:
    """Unique names of runs: the last component of each uri, with components before it if two would be equal.

    The progress of an unfinished run and the variant of a comparison follow the name.
    """
    paths = {}
    for uri in (result.uri for result in results):
        parts = [part for part in uri.rpartition("://")[2].split("/") if part]
        paths[uri] = parts or [uri]
    depths = dict.fromkeys(paths, 1)
    while True:
        names = {uri: "/".join(path[-depths[uri] :]) for uri, path in paths.items()}
        taken = Counter(names.values())
        deeper = {uri: min(depths[uri] + (taken[names[uri]] > 1), len(path)) for uri, path in paths.items()}
        if deeper == depths:
            break
        depths = deeper
    seen: Counter[str] = Counter()
    unique = []
    for result in results:
        progress = "" if result.progress is None else result.progress.text
        name = ", ".join(part for part in (names[result.uri], progress, result.variant) if part)
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")  # one run twice, for example at two alphas
    return unique


def radius_grid(results: Iterable[ReportedRun]) -> list[float]:
    """The union of the runs' radii and 0, increasing."""
    return sorted({0.0, *(float(radius) for result in results for radius in result.curve["radius"].to_numpy())})


def duration_text(seconds: float) -> str:
    """ "8.4 s", "2 min 05 s", "3 h 07 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def at_radii(
    certified: Certified, radii: Sequence[float], planned: int | None = None, *, has_radii: bool = True
) -> tuple[AtRadius, ...]:
    """Certified accuracy at radius 0 and at increasing radii, pixel units.

    planned: see `certified_accuracy_curve`. has_radii: False if nothing is known beyond radius 0.
    """
    grid = radii if radii and radii[0] == 0 else [0.0, *radii]
    failing = certified.failure_probability
    curve = certified_accuracy_curve(grid, certified.radius, certified.correct, failing, planned=planned)
    images = len(certified.radius)
    return tuple(
        AtRadius(
            float(radius),
            images,
            round(accuracy * images),
            round(guaranteed * images),
            float(low),
            float(high),
            known=has_radii or radius == 0,
        )
        for radius, accuracy, low, high, guaranteed in zip(
            curve.radii, curve.certified_accuracy, curve.ci_low, curve.ci_high, curve.guaranteed_low, strict=True
        )
    )


_PLANNED = "fixed when the run began"
_UNPLANNED = (
    "chosen after the run began: of several reductions of the same counts, quote one that was not chosen by its radii"
)
