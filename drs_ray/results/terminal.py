"""The table on the terminal: certified accuracy of one or several runs at the radii, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from drs_ray.results.reduce import RunResult
from drs_ray.results.summary import AtRadius, RunSummary, summarise_side_by_side


def render_table(results: Sequence[RunResult]) -> Table:
    """Rows are radii, then totals; one column per run. Plain ASCII text; 80 columns hold two runs.

    Args:
        results: at least one run.

    Raises:
        ConfigError: no runs, or runs over different test sets.
    """
    runs = summarise_side_by_side(results)
    first = runs[0]
    table = Table(
        title=Text(f"Certified accuracy on {first.images:,} images of {first.dataset} ({first.split})"),
        caption=Text(
            "certified accuracy [95 % interval over images] >= share of these images that holds with 99 % "
            "probability over the noise. Radii: l2, pixel units, images in [0, 1]. Shares and ACR are rounded down."
        ),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
        title_justify="left",
    )
    table.add_column("radius", justify="right", no_wrap=True)
    for run in runs:
        table.add_column(_header(run), overflow="fold")
    for position, row in enumerate(first.at_radii):
        last = position == len(first.at_radii) - 1
        table.add_row(row.radius_text, *(_cell(run.at_radii[position]) for run in runs), end_section=last)
    table.add_row("ACR", *(Text(run.acr_text, "bold") for run in runs))
    table.add_row("abstains", *(f"{run.abstention_text} ({run.abstained:,} images)" for run in runs))
    table.add_row("samples", *(f"{run.samples:,}" for run in runs))
    table.add_row("time", *(run.time_text for run in runs))
    return table


def _header(run: RunSummary) -> Text:
    lines = [
        f"{run.method}, sigma {run.sigma_text}",
        f"n = {run.budget_text}",
        f"alpha = {run.alpha:g}",
        run.rule,
    ]
    return Text.assemble((run.name, "bold"), *(("\n" + line, "not bold dim") for line in lines))


def _cell(row: AtRadius) -> Text:
    return Text.assemble((row.accuracy_text, "bold"), (f" {row.interval_text}", "dim"), f" >= {row.guaranteed_text}")
