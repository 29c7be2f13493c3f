"""The table on the terminal: certified accuracy of one or several runs at the radii, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from drs_ray.errors import counted
from drs_ray.published.imported_run import ReportedRun
from drs_ray.report.columns import Columns
from drs_ray.report.convergence import AtSamples
from drs_ray.report.distributions import saving
from drs_ray.report.summary import RunSummary, run_names, summarise_side_by_side
from drs_ray.results.reduce import RunResult


def render_table(results: Sequence[ReportedRun]) -> Table:
    """Rows are radii, then totals; one column per run or comparison. Plain ASCII text.

    80 characters hold three runs. With more than two, a row with the allowed failures replaces the guaranteed shares.

    Args:
        results: at least one run.

    Raises:
        ConfigError: no runs, or runs over different test sets.
    """
    runs = summarise_side_by_side(results)
    first, many = runs[0], len(runs) > 2
    table = Table(
        title=Text(f"{_partial(first)}Certified accuracy on {first.scope_text} of {first.dataset} ({first.split})"),
        caption=Text(f"{_MEANING_OF_MANY if many else _MEANING} {_UNITS}{_chosen_later(runs)}"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
        title_justify="left",
    )
    table.add_column("radius", justify="right", no_wrap=True)
    for run in runs:
        table.add_column(_header(run, many), overflow="fold", ratio=1 if many else None)
    for position, row in enumerate(first.at_radii):
        last = position == len(first.at_radii) - 1
        table.add_row(row.radius_text, *(_cell(run, position, many) for run in runs), end_section=last)
    if first.progress is not None:
        middle = first.middle
        at_least = (
            f"at radius {middle.radius_text} >= {run.when_finished_text(run.middle)} of all {run.planned:,}"
            for run in runs
        )
        table.add_row("finished", *at_least)
    if many:
        failed = ("not known" if run.imported else f"<= {counted(run.failures_allowed, 'image')}" for run in runs)
        table.add_row("failed", *failed)
    table.add_row("ACR", *(Text(run.acr_text, "bold") for run in runs))
    table.add_row("abstains", *(f"{run.abstention_text} ({counted(run.abstained, 'image')})" for run in runs))
    table.add_row("samples", *(_samples(result) for result in results))
    table.add_row("time", *(run.time_text for run in runs))
    return table


def render_convergence(columns: Columns) -> Table:
    """ACR and abstentions by the number of samples, one column per run whose counts were read."""
    names = dict(zip(columns.results, run_names(columns.results), strict=True))
    table = Table(
        title=Text("With fewer samples, from the same votes (not certificates of these runs: each image has one)"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
    )
    table.add_column("n", justify="right", no_wrap=True)
    for result, _ in columns.convergence:
        table.add_column(Text(names[result]), overflow="fold")
    by_run = [{point.samples: point for point in points} for _, points in columns.convergence]
    for samples in sorted({samples for points in by_run for samples in points}):
        cells = (points.get(samples) for points in by_run)
        table.add_row(f"{samples:,}", *(_point(point) for point in cells))
    return table


_MEANING = (
    "certified accuracy [95 % interval over images] >= share of these images that holds with 99 % probability over the "
    "noise."
)
_MEANING_OF_MANY = (
    "certified accuracy [95 % interval over images]. failed: with 99 % probability over the noise, no more "
    "certificates than that are wrong."
)
_IMPORTED = " Imported: radii, alpha and samples as published and stated; there are no votes to check them against."
_PREDICTIONS = " -: a log of predictions has no radii."
_UNITS = "Radii: l2, pixel units, images in [0, 1]. Shares and ACR are rounded down."


def _chosen_later(runs: Sequence[RunSummary]) -> str:
    """Name the runs whose rule or alpha was chosen after their start; headers of comparisons say so already."""
    names = [run.name for run in runs if not run.as_planned and not run.variant]
    later = f" Rule or alpha chosen after the run began: {', '.join(names)}." if names else ""
    imported = _IMPORTED if any(run.imported for run in runs) else ""
    return later + imported + ("" if all(run.has_radii for run in runs) else _PREDICTIONS)


def _partial(run: RunSummary) -> str:
    return "" if run.progress is None else f"{run.progress.text.upper()}. "


def _header(run: RunSummary, narrow: bool) -> Text:
    lines = [
        *(["comparison"] if run.variant and not run.imported else []),
        *([f"{run.images:,} of its {run.whole:,} images"] if run.whole is not None else []),
        *([run.method, f"sigma {run.sigma_text}"] if narrow else [f"{run.method}, sigma {run.sigma_text}"]),
        f"n = {run.budget_text}",
        f"alpha = {run.alpha}",
        run.rule,
    ]
    return Text.assemble((run.name, "bold"), *(("\n" + line, "not bold dim") for line in lines))


def _cell(run: RunSummary, position: int, many: bool) -> Text:
    row = run.at_radii[position]
    interval = row.interval_text.replace(", ", ",") if many else row.interval_text
    text = Text.assemble((row.accuracy_text, "bold"), (f" {interval}", "dim"))
    return text if many or run.imported else text.append(f" >= {row.guaranteed_text}")


def _samples(result: ReportedRun) -> str:
    saved = saving(result) if isinstance(result, RunResult) else None
    return f"{result.samples:,}" + (f" ({saved.factor_text} times fewer)" if saved else "")


def _point(point: AtSamples | None) -> str:
    return "" if point is None else f"ACR {point.acr_text}, abstains {point.abstention_text}"
