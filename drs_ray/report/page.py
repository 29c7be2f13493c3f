"""report.html: one self-contained page about one or several runs, and the figure files beside it."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drs_ray.certificates.curve import band_half_width
from drs_ray.certificates.rounding import exact_text, format_up
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import ReportedRun
from drs_ray.report.columns import Columns, RuleGain, rule_gains
from drs_ray.report.comparison import EnvelopeAtRadius, Pair, envelope, paired_differences
from drs_ray.report.figure import PALETTE, certified_accuracy_figure, convergence_figure, save_figures
from drs_ray.report.image_table import ImageTable, PictureSource, image_table
from drs_ray.report.inline_svg import inline_svg
from drs_ray.report.run_details import RunDetails, run_details
from drs_ray.report.summary import SHARE_DIGITS, RunSummary, summarise_side_by_side
from drs_ray.results.reduce import RunResult
from drs_ray.storage import Store

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

REPORT_KEY = "report.html"

_PALETTE_ON_DARK = ("#58a6ff", "#ff8f5a", "#3fc79a", "#e5a3cb", "#e0b050", "#9ad6f7", "#b392f0", "#9aa7b4")


@dataclass(frozen=True, eq=False)
class _Page:
    """The computed data of the templates; fields have the names that the templates use."""

    runs: Sequence[RunSummary]
    details: Sequence[RunDetails]
    gains: Sequence[RuleGain]
    pairs: Sequence[Pair]
    envelope: Sequence[EnvelopeAtRadius]
    images: ImageTable | None
    band: str
    figure: Markup
    convergence_figure: Markup | None

    @property
    def one(self) -> bool:
        """Whether the page is about a single run."""
        return len(self.runs) == 1

    @property
    def first(self) -> RunSummary:
        """The run from which common facts are taken: not an imported one, or else one with radii, if possible."""
        if self.details:
            return self.details[0].run
        return max(self.runs, key=lambda run: run.has_radii)

    @property
    def variants(self) -> list[RunSummary]:
        """The comparisons with another rule."""
        return [run for run in self.runs if run.variant and not run.imported]

    @property
    def imported(self) -> list[RunSummary]:
        """The imported runs."""
        return [run for run in self.runs if run.imported]

    @property
    def radius_peak(self) -> int:
        """The largest number in the table of radii, for which a bar has full length, in all runs."""
        radii = [detail.radii for detail in self.details]
        return max(max(*one.correct.counts, *one.wrong.counts, one.abstained, 1) for one in radii)

    @property
    def p_lower_peak(self) -> int:
        """The same for the table of lower bounds."""
        return max(max(*histogram.counts, 1) for detail in self.details for histogram in detail.p_lower)

    @property
    def tests(self) -> int:
        """Number of paired tests on the page."""
        return sum(len(pair.at_radii) for pair in self.pairs)


def write_report(
    columns: Columns | Sequence[ReportedRun], target: Store, pictures: PictureSource | None = None
) -> list[str]:
    """Write report.html, certified_accuracy.svg and certified_accuracy.png to the store; returns their keys.

    Args:
        columns: at least one run; from `read_columns`, with convergence and comparisons.
        target: destination.
        pictures: source of the images' small pictures (`drs_ray.report.thumbnails`); None: no pictures.

    Raises:
        ConfigError: no runs, runs over different test sets, or jinja2 or matplotlib is missing.
        StoreError: `target` cannot be written.
    """
    page = render_report(columns, pictures)
    figures = save_figures(_results(columns), target)
    target.put(REPORT_KEY, page.encode())
    return [REPORT_KEY, *figures]


def render_report(columns: Columns | Sequence[ReportedRun], pictures: PictureSource | None = None) -> str:
    """The HTML page: it opens offline and fetches nothing. The same runs give the same page.

    With only imported logs, the page has no sections about votes, classes and images. Its one script sorts, searches
    and pages tables. The page allows only this script, by its digest, and shows everything without it too.

    Raises:
        ConfigError: no runs, runs over different test sets, or jinja2 or matplotlib is missing.
    """
    results = _results(columns)
    runs = summarise_side_by_side(results)
    environment = _environment()
    details = list(run_details(results, runs, dict(columns.convergence if isinstance(columns, Columns) else ())))
    shrinking = [(one.run.name, one.convergence) for one in details if one.convergence]
    radii = [row.radius for row in runs[0].at_radii]
    page = _Page(
        runs=runs,
        details=details,
        gains=rule_gains(results),
        pairs=paired_differences(results, radii),
        envelope=envelope(results, radii),
        images=image_table(
            [result for result in results if isinstance(result, RunResult) and not result.variant],
            [one.run.name for one in details],
            pictures,
        )
        if details
        else None,
        band=format_up(band_half_width(results[0].images), SHARE_DIGITS),
        figure=inline_svg(
            certified_accuracy_figure(results, legend=False),
            "figure",
            "Certified accuracy against l2 radius",
            "Falling step curves, one per run. " + " ".join(_in_words(run) for run in runs),
        ),
        convergence_figure=inline_svg(
            convergence_figure(shrinking),
            "convergence",
            "Certified accuracy against l2 radius after fewer samples",
            "Falling step curves, one per number of samples; the numbers are in the tables below.",
        )
        if shrinking
        else None,
    )
    script = _template("report.js")
    return environment.get_template("report.html.j2").render(
        page=page,
        runs=page.runs,
        details=page.details,
        one=page.one,
        first=page.first,
        colours=[(index, light, _PALETTE_ON_DARK[index]) for index, light in enumerate(PALETTE)],
        exact_text=exact_text,
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _results(columns: Columns | Sequence[ReportedRun]) -> tuple[ReportedRun, ...]:
    return columns.results if isinstance(columns, Columns) else tuple(columns)


def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("the report needs jinja2: install drs-ray[report]") from error
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return importlib.resources.files("drs_ray.report").joinpath("templates", name).read_text(encoding="utf-8")


def _in_words(run: RunSummary) -> str:
    values = ", ".join(f"{row.accuracy_text} at radius {row.radius_text}" for row in run.at_radii)
    return f"{run.name} ({run.method}): {values}; ACR {run.acr_text}."
